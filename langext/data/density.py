"""How much a character of each script says. The one rule: a length that is meant for letters is compared with `letters`.

A sentence of 96 letters in English has 43 characters in Chinese, 41 in Japanese and 55 in Korean (medians of the same kind of
sentences); in Thai, Khmer, Arabic, Hindi and all other scripts it has nearly as many as in English.
"""

import regex

LETTERS = {"Hani": 3, "Yiii": 3, "Hira": 2, "Kana": 2, "Bopo": 2, "Hang": 2}
"""ISO 15924 code of a script -> how many letters of an alphabet one of its characters stands for; of all others 1."""
_OF = {
    worth: regex.compile("[" + "".join(rf"\p{{Script={code}}}" for code, much in LETTERS.items() if much == worth) + "]")
    for worth in sorted(set(LETTERS.values()))
}


def letters(text: str) -> int:
    """The length of a text in letters of an alphabet."""
    if text.isascii():
        return len(text)
    return len(text) + sum((worth - 1) * len(kind.findall(text)) for worth, kind in _OF.items())
