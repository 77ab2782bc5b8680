"""Lines of text from bytes. Rule: a line that cannot be read is handed on with its number and the reason, and the next read."""

import io
from collections.abc import Iterator
from itertools import chain
from typing import IO, Any, NamedTuple, cast

from langext import languages
from langext.data import encodings, formats
from langext.data.formats import MARK, UTF_8

MOST_BYTES = 256 << 20
"""Longest line that is read, and largest document of a .txt file."""


class Line(NamedTuple):
    """One line of a file."""

    number: int
    """From 1."""
    text: str
    """Without its end, and without a byte order mark; with U+FFFD where it cannot be read."""
    why: str = ""
    """Why it cannot be read; empty when it can."""
    marked: bool = False
    """Whether it had a byte order mark."""


class Unreadable(ValueError):
    """What follows in a file cannot be read, nor how much that is be said. The message says where it begins, and why.

    `text` is what is known to be lost, if it is, and `lines` how many lines that has.
    """

    def __init__(self, message: str, text: str = "", lines: int = 1):
        super().__init__(message)
        self.text, self.lines = text, lines


class Closed(Unreadable):
    """Nothing at all of a compressed file can be read."""


def lines(stream: IO[bytes], encoding: str = UTF_8, language: str = languages.MUL) -> Iterator[Line]:
    """Every line of a stream. Lines end with LF, CRLF or CR. UTF-16 and UTF-32 are recognised by their byte order mark.

    `language` is the code of that which the text should be in; of lines that are not UTF-8 it helps to guess the encoding.

    Raises Unreadable where a compressed stream is damaged or cut short.
    """
    source: Any = stream if hasattr(stream, "peek") else io.BufferedReader(cast(Any, stream))
    try:
        start = source.peek(4)[:4]
    except formats.DAMAGED as error:
        raise Closed(str(_damaged(0, error))) from None
    encoding = (formats.wide(start) if encoding == UTF_8 else "") or encoding
    whole = _coded_lines(source, encoding, language) if "\n".encode(encoding) == b"\n" else _wide_lines(source, encoding)
    number = 0
    for text, why in whole:
        for part in (text,) if why else text.rstrip("\r\n").split("\r"):
            number += 1
            yield Line(number, part.removeprefix(MARK), why, part.startswith(MARK))


def _damaged(line: int, error: Exception) -> Unreadable:
    if isinstance(error, UnicodeDecodeError):
        return Unreadable(f"after line {line}: not {error.encoding} text: {error.reason}")
    if isinstance(error, UnicodeError):  # of UTF-16 or UTF-32 without a byte order mark
        return Unreadable(f"after line {line}: {error}; name the order of its bytes: utf-16-le or utf-16-be")
    return Unreadable(f"after line {line}: damaged: {str(error).rstrip('.')}")


def _coded_lines(source: Any, encoding: str, language: str) -> Iterator[tuple[str, str]]:
    """Text of each line and why it cannot be read, where a line feed is the same byte as in UTF-8."""
    found, unknown = _raw_lines(source), ""
    while (raw := next(found, b"")) != b"":
        if isinstance(raw, Unreadable):
            raise raw
        if raw is None:
            yield "", f"longer than {MOST_BYTES >> 20} MiB; is this one document a line?"
            continue
        try:
            text, why = raw.decode(encoding), ""
        except UnicodeDecodeError as error:
            if not unknown and encoding == UTF_8:  # guessed once for a file, because it takes its time
                following = list(_first(found, encodings.GUESSED_BYTES))
                # From the beginning of a word, so that no letter of several bytes is cut.
                bad = [raw[max(raw.rfind(mark, 0, error.start) for mark in (b" ", b",", b'"')) + 1 :]]
                bad += [line for line in following if isinstance(line, bytes) and not _is_utf8(line)]
                unknown, found = encodings.not_utf8(bad, language), chain(following, found)
            text, why = raw.decode(encoding, "replace").rstrip("\r\n"), unknown or f"not {encoding} text"
        if "\0" in text:
            why = "holds zero bytes"
        yield text, why


def _raw_lines(source: Any) -> Iterator[bytes | Unreadable | None]:
    """The bytes of each line, None of one that is too long; at last the reason why no more can be read, if there is one."""
    number = 0
    while True:
        try:
            raw = source.readline(MOST_BYTES)
            long = len(raw) == MOST_BYTES and not raw.endswith(b"\n")
            while long and (rest := source.readline(MOST_BYTES)) and not rest.endswith(b"\n"):
                pass
        except formats.DAMAGED as error:
            yield _damaged(number, error)
            return
        if not raw:
            return
        number += 1
        yield None if long else raw


def _first(found: Iterator[bytes | Unreadable | None], most: int) -> Iterator[bytes | Unreadable | None]:
    """The next lines, of `most` bytes and a line more."""
    size = 0
    while size < most and (raw := next(found, b"")) != b"":
        size += len(raw) if isinstance(raw, bytes) else 0
        yield raw


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _wide_lines(source: Any, encoding: str) -> Iterator[tuple[str, str]]:
    """Text of each line, in encodings with another line feed; halves of characters are kept, for they are mended later."""
    number = 0
    errors = "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "strict"
    text = io.TextIOWrapper(source, encoding, errors, newline="\n")
    try:
        while True:
            try:
                line = text.readline(MOST_BYTES)
            except (*formats.DAMAGED, UnicodeError) as error:
                raise _damaged(number, error) from None
            if not line:
                return
            if len(line) == MOST_BYTES and not line.endswith("\n"):
                raise Unreadable(f"line {number + 1}: longer than {MOST_BYTES >> 20} MiB; is this one document a line?")
            number += 1
            yield line, "holds zero bytes" if "\0" in line else ""
    finally:
        text.detach()  # the stream belongs to the caller
