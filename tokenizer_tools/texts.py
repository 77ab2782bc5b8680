"""Text files, their words, and their encoding. The one rule: text is text, what spells a special token does not become it."""

import gzip
import json
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import regex

from tokenizer_tools.roundtrip import checked

SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
GRAPHEMES_PER_WORD = 3
"""So many characters, as readers see them, stand for a word in scripts that put no space between words."""
_SPACELESS = "".join(
    rf"\p{{Script={name}}}" for name in ("Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "Han", "Hiragana", "Katakana")
)
_UNSPACED = regex.compile(rf"[{_SPACELESS}]\p{{M}}*")
_WORD = regex.compile(rf"(?:(?![{_SPACELESS}])[\w\p{{M}}])+(?:['’·-](?:(?![{_SPACELESS}])[\w\p{{M}}])+)*")


def read(path: Path) -> Iterator[str]:
    """The documents of a file in UTF-8: the field `text` of each line of JSON Lines, or the paragraphs of a .txt file.

    Paragraphs end with an empty line. Files can be compressed (.gz). Raises ValueError, with one line, for what is not such a
    file.
    """
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: expected a file that ends with {', '.join(SUFFIXES)}")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            if path.name.endswith((".txt", ".txt.gz")):
                paragraph: list[str] = []
                for line in file:
                    if line.strip():
                        paragraph.append(line)
                    elif paragraph:
                        yield "".join(paragraph)
                        paragraph = []
                if paragraph:
                    yield "".join(paragraph)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _field(line, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _field(line: str, where: str) -> str:
    try:
        text = json.loads(line).get("text")
    except (ValueError, AttributeError):
        raise ValueError(f"{where}: not an object in JSON") from None
    if not isinstance(text, str):
        raise ValueError(f"{where}: no field `text` with a string")
    try:
        return checked(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, without the tokens that a tokenizer puts before or behind it."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids


def words(text: str) -> tuple[int, int]:
    """(number of words between spaces and punctuation, number of characters of scripts that do not part words by spaces)."""
    return sum(1 for _ in _WORD.finditer(text)), sum(1 for _ in _UNSPACED.finditer(text))


def made_of(text: str | None) -> str:
    """What the text of a token is: "letters" (and anything with letters), "digits", "marks" (punctuation, blanks), or "parts".

    None is a part of a character.
    """
    if text is None:
        return "parts"
    if any(unicodedata.category(letter)[0] in "LM" for letter in text):
        return "letters"
    return "digits" if any(letter.isdigit() for letter in text) else "marks"
