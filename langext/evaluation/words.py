"""Words to count and to cut between, also in scripts without spaces between words. Rule: one choice for all of a language."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import regex

from langext.data.unspaced import GRAPHEMES_PER_WORD, are_unspaced

GRAPHEMES = regex.compile(rf"\X{{1,{GRAPHEMES_PER_WORD}}}")


@dataclass(frozen=True)
class Words:
    """How the texts of one language divide into words."""

    gap: str
    """What stands between two words: a space, or nothing."""

    @staticmethod
    def of(texts: Sequence[str]) -> "Words":
        """The division that fits these texts: by spaces, unless they are in scripts that have none."""
        return Words("" if are_unspaced(texts) else " ")

    def split(self, text: str) -> list[str]:
        """The words of a text; where there are no spaces between words, pieces of three graphemes."""
        return text.split() if self.gap else GRAPHEMES.findall(" ".join(text.split()))

    def join(self, words: Iterable[str]) -> str:
        """The text of these words."""
        return self.gap.join(words)
