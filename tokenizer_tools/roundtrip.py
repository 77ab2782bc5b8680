"""Whether text survives a tokenizer: decoded from its ids, it is the text again.

A base can lose something by design, as runs of spaces or other forms of a letter; an extension must not lose more.
"""

from collections.abc import Iterable
from typing import Any


def checked(text: str) -> str:
    """The text itself. Raises ValueError for a lone surrogate: half of a character, which no tokenizer can read."""
    for i, sign in enumerate(text):
        if "\ud800" <= sign <= "\udfff":
            raise ValueError(f"the text has a lone surrogate (U+{ord(sign):04X}) at character {i}, which is no character")
    return text


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text alone. Names of special tokens in it are text."""
    return tokenizer(checked(text), add_special_tokens=False, split_special_tokens=True).input_ids


def survives(tokenizer: Any, text: str) -> bool:
    """Whether decoding the ids of a text gives the text."""
    return tokenizer.decode(encode(tokenizer, text), clean_up_tokenization_spaces=False) == text


def lost(base: Any, bigger: Any, texts: Iterable[str]) -> str:
    """A text that the base gives back and the extended tokenizer does not; empty when there is none."""
    return next((text for text in texts if survives(base, text) and not survives(bigger, text)), "")
