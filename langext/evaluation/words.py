"""Words to count and to cut between, also in scripts that put no spaces between words. Rule: one choice for all of a language.

Thai, Lao, Khmer, Burmese, Tibetan, Chinese and Japanese put spaces, if at all, between sentences or phrases. There three
graphemes (characters as readers see them, https://unicode.org/reports/tr29) stand for a word, which is about its length.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import regex

PER_SPACE = 16
"""Characters for each space from which on a text has no spaces between its words. Languages with such spaces have 5 to 11."""
GRAPHEMES = regex.compile(r"\X{1,3}")


@dataclass(frozen=True)
class Words:
    """How the texts of one language divide into words."""

    gap: str
    """What stands between two words: a space, or nothing."""

    @staticmethod
    def of(texts: Sequence[str]) -> "Words":
        """The division that fits these texts, by their share of white space."""
        characters, parts = sum(map(len, texts)), sum(len(text.split()) for text in texts)
        return Words(" " if characters <= PER_SPACE * parts else "")

    def split(self, text: str) -> list[str]:
        """The words of a text; where there are no spaces between words, pieces of three graphemes."""
        return text.split() if self.gap else GRAPHEMES.findall(" ".join(text.split()))

    def join(self, words: Iterable[str]) -> str:
        """The text of these words."""
        return self.gap.join(words)
