"""Filter web: drops pages that are no running text, by the rules of Gopher, C4 and FineWeb as datatrove has them.

The one rule: a number that was found for English is applied to another language only where that language says it may.
Rules and numbers: https://arxiv.org/abs/2112.11446 (Gopher, appendix A.1), https://arxiv.org/abs/1910.10683 (C4, section 2.2),
https://arxiv.org/abs/2406.17557 (FineWeb, section 3.6). C4's rule that every line must end a sentence is left out, as there.
"""

from collections.abc import Sequence
from typing import Any, Literal

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.filters.c4_filters import CITATION_REGEX
from datatrove.pipeline.writers.disk_base import DiskWriter

from langext.data.filters.base import TextFilter
from langext.data.word_units import WordUnits
from langext.text_summaries import LanguageRecord

STOP_WORDS, WORD_LENGTH, WORDS = "stop words", "word length", "all that count words"
LINE_ENDS, SHORT_LINES = "ends of lines", "short lines"
"""Rules that may be left out for a language, see `LanguageRecord.left_out`."""
LINE_ENDS_FRAC, SHORT_LINES_FRAC, SHORT_LINE = 0.12, 0.67, 30
"""FineWeb's least share of lines that end like a sentence, and most share of lines of no more than so many characters."""
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
    lines: dict[str, Any] = {"language": words, "line_punct_thr": 0 if LINE_ENDS in out else LINE_ENDS_FRAC}
    lines |= {"short_line_thr": 1 if SHORT_LINES in out else SHORT_LINES_FRAC, "short_line_length": SHORT_LINE}
    if WORDS in out:
        none: Any = ()
        return [
            GopherRepetitionFilter(top_n_grams=none, dup_n_grams=none, language=words),
            FineWebQualityFilter(**lines, new_line_ratio=float("inf")),
        ]
    least, most = language.mean_word_length or (None, None)
    gopher: dict[str, Any] = {"min_avg_word_length": least, "max_avg_word_length": most}
    gopher |= {"min_stop_words": 0 if STOP_WORDS in out else 2, "stop_words": language.stop_words}
    return [
        GopherRepetitionFilter(language=words),
        GopherQualityFilter(**gopher, language=words),
        C4QualityFilter(filter_no_terminal_punct=False, language=words),
        FineWebQualityFilter(**lines),
    ]


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
        if left and CITATION_REGEX.sub("", line.strip()).strip() == left[-1].strip():  # they take citations out of lines, too
            left.pop()
        elif line.strip():
            lines.append(line)
    return lines
