"""Filter web: drops pages that are no running text, by the rules of Gopher, C4 and FineWeb as datatrove has them.

The one rule: a number that was found for English is applied to another language only where that language says it may.
Rules and numbers: https://arxiv.org/abs/2112.11446 (Gopher, appendix A.1), https://arxiv.org/abs/1910.10683 (C4, section 2.2),
https://arxiv.org/abs/2406.17557 (FineWeb, section 3.6). C4's rule that every line must end a sentence is left out, as
there; and so is that which takes `[1]` and `[edit]` out of lines, because nothing may vanish that is not counted.
"""

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.writers.disk_base import DiskWriter

from langext.data.filters.base import TextFilter
from langext.data.word_units import WordUnits
from langext.text_summaries import LanguageRecord, QualityValues

STOP_WORDS, WORD_LENGTH, WORDS = "stop words", "word length", "stop words, lengths of words and words without letters"
LINE_ENDS, SHORT_LINES, PARTS_OF_LINES = "ends of lines", "short lines", "words and sentences of lines"
"""Rules that may be left out for a language, see `LanguageRecord.left_out`."""
LINE_ENDS_FRAC, SHORT_LINES_FRAC, SHORT_LINE = 0.12, 0.67, 30
"""FineWeb's least share of lines that end like a sentence, and most share of lines of no more than so many characters."""
NEW_LINE_RATIO = 0.3
"""FineWeb's most line ends for each word."""
SHORTEST, LONGEST, SYMBOLS = 50, 100_000, 0.1
"""Gopher's least and most words of a document, and most number signs or ellipses for each of them."""
LINES = "line-filter-"
"""Beginning of the names of datatrove's counts of lines that C4's rules drop."""


class Web(TextFilter):
    """Keep running text. Meant for raw web pages: of manuals, laws and lists it drops much. Text in many languages together,
    and code, is not judged by it.
    """

    name: Literal["web"]

    def step(self, units: WordUnits, language: LanguageRecord, rejects: DiskWriter) -> BaseFilter:
        """The rules, one after the other."""
        return Rules(rules(units, language), rejects)


def rules(units: WordUnits, language: LanguageRecord) -> Sequence[BaseFilter]:
    """The filters of datatrove with the numbers of a language, in FineWeb's order."""
    words: Any = units  # they take tokenizers in place of languages, which their types do not say
    out = language.left_out
    if language.published:
        return _published(units, language.published)
    lines: dict[str, Any] = {"language": words, "line_punct_thr": 0 if LINE_ENDS in out else LINE_ENDS_FRAC}
    lines |= {"short_line_thr": 1 if SHORT_LINES in out else SHORT_LINES_FRAC, "short_line_length": SHORT_LINE}
    least, most = language.mean_word_length or (None, None)
    gopher: dict[str, Any] = {"min_avg_word_length": least, "max_avg_word_length": most, "stop_words": language.stop_words}
    gopher |= {"min_stop_words": 0 if STOP_WORDS in out else 2} | _gopher(units)
    # C4 finds the words of a line at spaces, and sentences end before one.
    c4 = {} if units.are_spaced else dict.fromkeys(("min_words_per_line", "max_word_length", "min_num_sentences"), -1)
    return [
        Repetition(units),
        GopherQualityFilter(**gopher, language=words),
        C4QualityFilter(filter_no_terminal_punct=False, remove_citations=False, language=words, **c4),
        FineWebQualityFilter(**lines, new_line_ratio=NEW_LINE_RATIO / units.per_word),
    ]


def _gopher(units: WordUnits) -> dict[str, Any]:
    """Gopher's limits that count words, in units; without those that hold for words alone where the units are none."""
    limits = {"min_doc_words": units.count(SHORTEST), "max_doc_words": units.count(LONGEST)}
    none = {"min_avg_word_length": None, "max_avg_word_length": None, "max_non_alpha_words_ratio": None, "min_stop_words": 0}
    return limits | {"max_symbol_word_ratio": SYMBOLS / units.per_word} | ({} if units.are_words else none)


def _published(units: WordUnits, values: QualityValues) -> Sequence[BaseFilter]:
    """The same with FineWeb-2's values, and as it puts them together; what counts words counts units."""
    words, no_limit = cast(Any, units), float("inf")
    repetition = {"dup_para_frac": 0, "dup_line_char_frac": 0, "dup_para_char_frac": 0, "dup_line_frac": values.dup_line_frac}
    lines: dict[str, Any] = {"line_punct_thr": values.line_punct_thr, "short_line_thr": no_limit, "char_duplicates_ratio": 0.1}
    limits = values.model_dump(include={"min_avg_word_length", "max_avg_word_length", "max_non_alpha_words_ratio"})
    limits |= {"min_stop_words": 2, "stop_words": values.stopwords} | _gopher(units)
    return [
        Repetition(units, **repetition, top_n_grams=values.top_n_grams, dup_n_grams=values.dup_n_grams),
        FineWebQualityFilter(**lines, new_line_ratio=values.new_line_ratio / units.per_word, language=words),
        GopherQualityFilter(**limits, language=words),
    ]


class Repetition(GopherRepetitionFilter):
    """Gopher's rules of repetition as datatrove has them, with the runs of words counted as numbers, which is much faster.

    Where the units are graphemes, runs are about as long as so many words; the reasons name the words.
    """

    def __init__(self, units: WordUnits, **limits: Any):
        super().__init__(language=cast(Any, units), **limits)
        self.units, none = units, cast(Any, ())
        # Length in units -> length in words, and most share of the letters.
        self.tops, self.repeats = (
            {units.count(length): (length, share) for length, share in grams} for grams in (self.top_n_grams, self.dup_n_grams)
        )
        self.top_n_grams = self.dup_n_grams = none
        self.lengths = _steps(sorted({*self.tops, *self.repeats}))

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True, or False and the reason."""
        said = super().filter(doc)
        if said is not True:
            return said
        words, letters = self.units.word_tokenize(doc.text), len(doc.text)
        number: dict[str, int] = {}
        runs = np.fromiter((number.setdefault(word, len(number)) for word in words), np.int64, len(words))
        starts = np.cumsum([0, *map(len, words)])
        before = 1
        for length in (length for length in self.lengths if length <= len(words)):
            # A run is the shorter run that begins there, and the one that ends where it ends.
            shift = length - before
            pairs = runs[: len(runs) - shift] * (int(runs.max()) + 1) + runs[shift:]
            _, first, runs, counts = np.unique(pairs, return_index=True, return_inverse=True, return_counts=True)
            before, often = length, int(counts.max())
            if length in self.tops:
                named, most = self.tops[length]
                best = int(first[counts == often].min())  # of those that are as frequent the first
                size = int(starts[best + length] - starts[best]) + (length - 1) * self.units.are_words
                if size * often / letters > most:
                    return False, f"top_{named}_gram"
            if often == 1 and length >= max([*self.tops, 0]):
                break  # longer ones are all different too
            named, most = self.repeats.get(length, (0, float("inf")))
            if named and _repeated(runs.tolist(), starts, length) / letters > most:
                return False, f"duplicated_{named}_n_grams"
        return True


def _steps(lengths: Sequence[int]) -> list[int]:
    """These lengths of runs, ascending, and what else it takes for none to be more than twice the one before, or 1."""
    steps = [1]
    for length in lengths:
        while 2 * steps[-1] < length:
            steps.append(2 * steps[-1])
        steps.append(length)
    return steps[1:]


def _repeated(runs: Sequence[int], starts: np.ndarray, length: int) -> int:
    """Letters in runs of `length` words that were there before, none of them counted twice."""
    seen, at, letters = set[int](), 0, 0
    while at < len(runs):
        if runs[at] in seen:
            letters += int(starts[at + length] - starts[at])
            at += length
        else:
            seen.add(runs[at])
            at += 1
    return letters


class Rules(BaseFilter):
    """Several filters of datatrove as one, with one reason for each document and one place for their counts."""

    name = "quality"

    def __init__(self, rules: Sequence[BaseFilter], rejects: DiskWriter):
        super().__init__(rejects)
        self.rules, self.places, self.rank = rules, rejects, 0
        for rule in rules:
            rule.stats = self.stats

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        """Yield the documents that pass."""
        self.rank = rank
        yield from super().run(data, rank, world_size)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True, or False and the reason. C4's rules take lines out of a document that is kept; these are in the rejects too."""
        whole = doc.text
        for rule in self.rules:
            kept, reason = get_filter_result(rule.filter(doc))
            if not kept:
                doc.text = whole
                return False, str(reason)
        if lines := removed(whole, doc.text):
            told = {"filter_reason": LINES.rstrip("-")}
            self.places.write(Document(text="\n".join(lines), id=f"{doc.id}#lines", metadata=told), self.rank)
        return True


def removed(before: str, after: str) -> list[str]:
    """The lines that C4's rules have taken out of a text. Blank ones and spaces around a line are none."""
    if before == after:
        return []
    left = after.split("\n")[::-1]
    lines = []
    for line in before.splitlines():
        if left and line.strip() == left[-1].strip():
            left.pop()
        elif line.strip():
            lines.append(line)
    return lines
