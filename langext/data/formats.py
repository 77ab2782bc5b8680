"""What the files of a source are: their kind and compression, from the end of their name, and their encoding.

The one rule: a file is what its name says, or it is refused; nothing is guessed but for a message.
"""

import codecs
import gzip
import io
import lzma
import re
import sys
import zlib
from typing import IO, Any, cast

from langext.errors import ConfigError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TXT, JSONL, CSV, TSV, PARQUET = "txt", "jsonl", "csv", "tsv", "parquet"
PACKINGS = {".gz": "gzip", ".zst": "Zstandard", ".xz": "xz"}
"""End of a name -> the compression that it means."""
SUFFIXES = (*(f".{kind}{end}" for kind in (TXT, JSONL, CSV, TSV) for end in ("", *PACKINGS)), f".{PARQUET}")
"""Ends of the names of files that are read, in small or capital letters."""
READS = f".{TXT}, .{JSONL}, .{CSV}, .{TSV} (also {', '.join(PACKINGS)}) and .{PARQUET}"
"""The same in words."""
DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError)
"""What is raised for a compressed file that is damaged or cut short."""
UTF_8 = "utf-8"
MARK = "\ufeff"
"""The byte order mark. Files begin with it, and it is no part of their text."""
WIDE = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
        codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
"""Byte order marks of encodings that are read without being named. UTF-32 comes first, because its marks begin like others."""
PARQUET_MARK = b"PAR1"
PACKED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"\xfd7zXZ": ".xz"}
"""First bytes of a compressed file -> the end of its name."""
KINDS = {b"PK\x03\x04": "a zip archive", b"%PDF-1": "a PDF document"} | {
    mark: f"{PACKINGS[end]} (then its name must end in {end})" for mark, end in PACKED.items()
}
"""First bytes -> what the file is, of files that people take for text."""
BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
"""First bytes of a bzip2 file; the first three alone can begin a text."""


def kind(place: Any) -> str:
    """txt, jsonl, csv, tsv or parquet, from the end of the name of a file."""
    return place.name.casefold().removesuffix(packing(place)).rsplit(".", 1)[-1]


def packing(place: Any) -> str:
    """The end of the name that says how a file is compressed: .gz, .zst, .xz, or an empty string."""
    return next((end for end in PACKINGS if place.name.casefold().endswith(end)), "")


def pattern(path: str) -> int:
    """Where the first letter stands that makes a path a pattern (*, ? or [); -1 when there is none."""
    found = re.search(r"[*?\[]", path)
    return found.start() if found else -1


def unpacked(raw: IO[bytes], end: str) -> IO[bytes]:
    """The stream `raw` without the compression that the end `end` of its name means. Reading it may raise `DAMAGED`."""
    if end == ".gz":
        return cast(IO[bytes], io.BufferedReader(gzip.GzipFile(fileobj=raw)))  # type: ignore[arg-type]
    if end == ".zst":
        # Dumps are often made with --long=31, which takes 2 GiB to read and is refused otherwise.
        return cast(IO[bytes], zstd.ZstdFile(raw, options={zstd.DecompressionParameter.window_log_max: 31}))
    return cast(IO[bytes], lzma.LZMAFile(raw)) if end == ".xz" else raw


def opens(raw: IO[bytes], end: str) -> bool:
    """False for a stream that begins as one which is compressed as `end` says, and of which nothing at all can be read."""
    head = raw.read(max(map(len, PACKED)))
    raw.seek(0)
    if not any(head.startswith(mark) for mark in PACKED if PACKED[mark] == end):
        return True  # it is something else
    try:
        unpacked(raw, end).read(1)
    except DAMAGED:
        return False
    return True


def looks_like(data: bytes, tail: bytes = b"") -> str:
    """What bytes are that are no text, an empty string when nothing speaks against text.

    `tail` is the end of the file, when it is known: a Parquet file has its mark at both ends.
    """
    if data.startswith(PARQUET_MARK) and tail == PARQUET_MARK:
        return "Parquet"
    if BZIP2.match(data):
        return "bzip2"
    found = next((name for mark, name in KINDS.items() if data.startswith(mark)), "")
    # A zero here and there, as programs that read PDF leave it, is the matter of its line.
    return found or (ZERO if data.count(0) * MOST_ZEROS > len(data) and not wide(data) else "")


MOST_ZEROS = 50
"""Text has fewer zeros than one byte in so many; UTF-16 has them in every other byte, or beside every line feed."""
ZERO = "UTF-16 without a byte order mark (then set encoding: utf-16-le), or no text at all, because it holds zero bytes"
"""What bytes look like in which a zero is."""


def wide(data: bytes) -> str:
    """utf-16 or utf-32 when `data`, the beginning of a file, has a byte order mark of it; else an empty string."""
    return next((encoding for mark, encoding in WIDE.items() if data.startswith(mark)), "")


def encoding(name: str) -> str:
    """The encoding that a user names, as Python spells it. Raises ValueError when Python has no such encoding of text."""
    try:
        found = codecs.lookup(name)
        "".encode(found.name)
    except LookupError:
        raise ValueError(f"{name!r} is no encoding; name one of Python's, as cp1252, utf-16-le, shift_jis or gb18030") from None
    return UTF_8 if found.name == "utf-8-sig" else found.name


def check_packed(data: bytes, end: str, where: str, size: int) -> bytes:
    """The first `size` bytes of text in `data`, the beginning of a file that is compressed as the end of its name says.

    Raises ConfigError when it is not.
    """
    stream, text = unpacked(io.BytesIO(data), end), bytearray()
    try:
        while len(text) < size and (part := stream.read1(8192)):  # type: ignore[attr-defined]
            text += part
    except DAMAGED as error:  # it may be cut, because only the beginning of the file is here
        if not any(data.startswith(mark) for mark in PACKED if PACKED[mark] == end) and not text:
            what = ": it is empty" if not data else f", but its name ends in {end}"
            raise ConfigError(f"{where}: not a {PACKINGS[end]} file{what}") from None
        if not isinstance(error, EOFError):
            raise ConfigError(f"{where}: damaged {PACKINGS[end]} file: {str(error).rstrip('.')}; mend or remove it") from None
    if not data:  # of which the gzip module makes an empty text
        raise ConfigError(f"{where}: not a {PACKINGS[end]} file: it is empty")
    return bytes(text[:size])
