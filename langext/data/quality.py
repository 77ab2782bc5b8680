"""What the quality rules must know of a language, found in the text itself. The one rule: nothing is assumed that was not seen.

FineWeb-2 finds such values in reference corpora of each language (https://arxiv.org/abs/2506.20920, section 3.5). Here the
reference are the sources of the language that are not judged by quality, as they were chosen by hand, or else those that are.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.text import TERMINAL_PUNCTUATION

from langext.artifacts import write_json
from langext.console import warn
from langext.data.filters.web import (
    LINE_ENDS,
    LINE_ENDS_FRAC,
    PARTS_OF_LINES,
    SHORT_LINE,
    SHORT_LINES,
    SHORT_LINES_FRAC,
    STOP_WORDS,
    WORD_LENGTH,
    WORDS,
)
from langext.data.word_units import WordUnits, missing
from langext.data.working import Read
from langext.text_summaries import LanguageRecord, QualityValues

PER_PART = 500
"""Documents of each part that are looked at."""
CHARACTERS = 20_000
"""Of each document, from its beginning."""
FREQUENT = 0.008
"""A word is a stop word when it makes up this share of all words, or is one of the most frequent LEAST."""
LEAST = 8
"""As many stop words as Gopher has for English."""
ENGLISH = 4.8
"""Median over documents of the mean length of words in English text, measured on news, novels, laws and manuals."""
GOPHER = (3, 10)
"""Gopher's limits of that mean length, for English."""


class Reference(PipelineStep):
    """One task: looks at text of a language, and writes a LanguageRecord into a file."""

    name = "reference"

    def __init__(
        self, parts: Mapping[str, Sequence[Path]], units: WordUnits, file: Path, published: QualityValues | None = None
    ):
        """`parts` are the working files by source; `published`, what is to be applied in place of what is found."""
        super().__init__()
        self.parts, self.units, self.file, self.published = parts, units, file, published

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Write the record; yield nothing."""
        paths = [path for paths in self.parts.values() for path in paths]
        read = Read(paths, "what text of this language is like")
        texts = [doc.text[:CHARACTERS] for rank in range(len(paths)) for doc in islice(read.run(rank=rank), PER_PART)]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        found = describe(texts, list(self.parts), self.units)
        write_json(self.file, found.model_copy(update={"published": self.published}))
        yield from ()


def tell_missing(codes: Sequence[str]) -> None:
    """Warn of languages, of those that are judged by quality, whose words nothing divides before a package is installed."""
    if names := [f"{code} ({package})" for code in dict.fromkeys(codes) if (package := missing(code))]:
        warn(
            f"quality: web: nothing is installed that divides the words of {', '.join(names)}; characters stand for words, and "
            "rules that need words are left out. Install that package, or all: pip install '.[words]' in langext's folder"
        )


def describe(texts: Sequence[str], sources: list[str], units: WordUnits) -> LanguageRecord:
    """What these texts say about their language."""
    words = [[word for word in units.word_tokenize(text) if word[0].isalpha()] for text in texts] if units.are_words else []
    words = [found for found in words if found]
    counts = Counter(word for found in words for word in found)
    least = FREQUENT * counts.total()
    stop_words = [word for n, (word, count) in enumerate(counts.most_common(100)) if n < LEAST or count >= least]
    out = {}
    if not units.are_words:
        out[WORDS] = "nothing divides its words, and no tokenizer that datatrove has for it is installed"
    elif not words or statistics.median(len(set(found).intersection(stop_words)) for found in words) < 2:
        out[STOP_WORDS] = "half of its documents do not have two of them"
    if not units.are_spaced:
        out[PARTS_OF_LINES] = "no spaces divide its words, and sentences end without one"
    lengths = [sum(map(len, found)) / len(found) for found in words]
    if units.are_words and not lengths:
        out[WORD_LENGTH] = "there was no text to measure it on"
    lines = [found for text in texts if (found := [line.rstrip() for line in text.split("\n") if line.strip()])]
    if not lines or statistics.median(_share(found, _ends) for found in lines) < LINE_ENDS_FRAC:
        out[LINE_ENDS] = "half of its documents hardly have a line that ends like a sentence"
    if not lines or statistics.median(_share(found, _is_short) for found in lines) > SHORT_LINES_FRAC:
        out[SHORT_LINES] = "half of its documents are of short lines"
    return LanguageRecord(
        words=units.kind,
        sources=sources,
        documents=len(texts),
        stop_words=stop_words,
        mean_word_length=[round(limit * statistics.median(lengths) / ENGLISH, 2) for limit in GOPHER] if lengths else [],
        left_out=out,
    )


def _share(lines: Sequence[str], what: Callable[[str], bool]) -> float:
    return sum(map(what, lines)) / len(lines)


def _ends(line: str) -> bool:
    return line.endswith(tuple(TERMINAL_PUNCTUATION))


def _is_short(line: str) -> bool:
    return len(line) <= SHORT_LINE
