"""Halves of characters, as JSON can have them (U+D83D alone) and UTF-8 not. The one rule: what is written has none."""

from typing import Any


def mend(text: str) -> str:
    """The text with U+FFFD in place of every half of a character.

    Both halves of a character, one after the other, become that character.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def mend_all(value: Any) -> Any:
    """The same for every text in a value of JSON, also the names of fields."""
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, dict):
        return {mend_all(key): mend_all(inner) for key, inner in value.items()}
    return [mend_all(inner) for inner in value] if isinstance(value, list | tuple) else value
