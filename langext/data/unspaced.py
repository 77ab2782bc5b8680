"""Scripts that put no spaces between words. The one rule: what needs to know it asks here, by the code of a script or a text.

Spaces, if there are any, stand there between sentences, phrases or syllables: Burmese and Lao put one after every few words. A
script decides, not the number of spaces: Korean and Vietnamese have one after each word or syllable.
"""

from collections.abc import Sequence

import regex

SCRIPTS = (
    "Hani", "Hira", "Kana", "Bopo", "Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Lana", "Talu", "Tavt", "Tale", "Java", "Bali",
    "Yiii",
)  # fmt: skip
"""ISO 15924 codes of scripts of line breaking class SA (https://unicode.org/reports/tr14), and of others that break lines
within a phrase."""
MIXED = ("Hans", "Hant", "Jpan")
"""Codes of ISO 15924 for text in these that Unicode has no script for."""
GRAPHEMES_PER_WORD = 3
"""So many graphemes (characters as readers see them, https://unicode.org/reports/tr29) stand for a word: about its length."""
FEWER = {"Hani": 1.5, "Hans": 1.5, "Hant": 1.5, "Jpan": 2.0, "Hira": 2.0, "Kana": 2.0, "Bopo": 2.0, "Yiii": 2.0}
"""Script -> the same, where a grapheme says more: a sentence has 43 of them in Chinese, and 96 letters in English."""
LETTERS = "".join(rf"\p{{Script={code}}}" for code in SCRIPTS)
"""All letters of these scripts, for a class of characters."""
_OF_SCRIPTS = regex.compile(f"[{LETTERS}]")
_LETTERS = regex.compile(r"[\p{L}\p{M}]")


def is_unspaced(script: str) -> bool:
    """Whether a script, by its ISO 15924 code, puts no spaces between words."""
    return script in SCRIPTS or script in MIXED


def graphemes_per_word(script: str) -> float:
    """How many graphemes of such a script stand for a word."""
    return FEWER.get(script, GRAPHEMES_PER_WORD)


def are_unspaced(texts: Sequence[str]) -> bool:
    """Whether half of the letters of these texts or more are of such scripts."""
    found, letters = (sum(len(kind.findall(text)) for text in texts) for kind in (_OF_SCRIPTS, _LETTERS))
    return bool(found) and 2 * found >= letters
