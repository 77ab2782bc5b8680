"""Words to count and to cut between, also in scripts that put no spaces between words. Rule: one choice for all of a language.

In the scripts of `UNSPACED`, spaces, if there are any, stand between sentences, phrases or syllables. There three graphemes
(characters as readers see them, https://unicode.org/reports/tr29) stand for a word, which is about its length. The script
decides, not the number of spaces: Burmese and Lao put one after every few words, and Korean and Vietnamese after each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import regex

UNSPACED = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Tai_Tham}\p{New_Tai_Lue}\p{Tai_Viet}"
    r"\p{Tai_Le}\p{Javanese}\p{Balinese}\p{Yi}]"
)
"""Letters and signs of scripts without spaces between words: those of line breaking class SA, and others that break lines
within a phrase (https://unicode.org/reports/tr14)."""
LETTERS = regex.compile(r"[\p{L}\p{M}]")
GRAPHEMES = regex.compile(r"\X{1,3}")


@dataclass(frozen=True)
class Words:
    """How the texts of one language divide into words."""

    gap: str
    """What stands between two words: a space, or nothing."""

    @staticmethod
    def of(texts: Sequence[str]) -> "Words":
        """The division that fits these texts: by spaces, unless half of their letters or more are of `UNSPACED`."""
        unspaced, letters = (sum(len(kind.findall(text)) for text in texts) for kind in (UNSPACED, LETTERS))
        return Words("" if unspaced and 2 * unspaced >= letters else " ")

    def split(self, text: str) -> list[str]:
        """The words of a text; where there are no spaces between words, pieces of three graphemes."""
        return text.split() if self.gap else GRAPHEMES.findall(" ".join(text.split()))

    def join(self, words: Iterable[str]) -> str:
        """The text of these words."""
        return self.gap.join(words)
