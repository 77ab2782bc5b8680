"""The local files of a source of text: which are read, which are not, and what they were when they were read.

The one rule: everything in a folder is either read or named. Hidden things are never read, and nothing but a regular file is
ever opened.
"""

import errno
import os
import re
import stat
import zlib
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from langext.artifacts import sha256_file
from langext.errors import ConfigError, RunFailed, one_line
from langext.spec import near
from langext.summaries import SourceFile

TXT, JSONL, PARQUET = "txt", "jsonl", "parquet"
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
"""Ends of the names of files that are read, in small or capital letters."""
Division = Literal["blocks", "lines", "files"]
"""What one document of a .txt file is: the text between blank lines, a line, or all of the file."""
EVERY = ("",)
"""In place of `SUFFIXES`: every name has this end."""
HEAD = 4096
"""Bytes at the start of a file from which it is told what it is."""
SHOWN, RECORDED = 5, 1000
"""Most names of unread files in a message, and in the manifest."""

LFS = b"version https://git-lfs.github.com/spec/"
"""Beginning of a file that Git LFS has put in place of a large one: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""
PARQUET_MARK = b"PAR1"
KINDS = {b"\x1f\x8b": "gzip (then its name must end in .gz)", b"\x28\xb5\x2f\xfd": "Zstandard", b"PK\x03\x04": "a zip archive",
         b"%PDF-1": "a PDF document", b"\xfd7zXZ": "xz"}  # fmt: skip
"""First bytes -> what the file is, of files that people take for text."""
BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
"""First bytes of a bzip2 file; the first three alone can begin a text."""


@dataclass(frozen=True)
class Found:
    """What is at the path of a source."""

    files: dict[str, Path]
    """Name below the folder -> path, of every file that is read, in the order of reading."""
    unread: list[str]
    """Names of what is not read, with the reason in brackets where the name does not say it."""

    def told(self) -> str:
        """What is not read, in one line: how much, and the first names; empty when all is read."""
        return f"{len(self.unread)} not read: {', '.join(self.first(SHOWN))}" if self.unread else ""

    def first(self, count: int) -> list[str]:
        """The first names of what is not read, and how many there are besides."""
        rest = len(self.unread) - count
        return [*self.unread[:count], *([f"and {rest} more"] if rest > 0 else [])]


def kind(path: Path) -> str:
    """txt, jsonl or parquet, from the end of the name."""
    return path.name.casefold().removesuffix(".gz").rsplit(".", 1)[-1]


def is_gzipped(path: Path) -> bool:
    """True when the name says so."""
    return path.name.casefold().endswith(".gz")


def find(path: Path, suffixes: Collection[str] = SUFFIXES) -> Found:
    """The file `path`, or everything in the folder `path`. Links are followed, and each file and folder is met once.

    Raises ConfigError when there is nothing to read, for a link to nothing, a folder that cannot be listed, and a file whose
    name is not UTF-8.
    """
    files: dict[str, Path] = {}
    unread: list[str] = []
    met: dict[tuple[int, int], str] = {}
    # Links come last, so that what lies here itself has its own name.
    here, links = deque([path]), deque[Path]()
    while here or links:
        at = (here or links).popleft()
        name = str(at.relative_to(path)) if at != path else path.name
        info = _stat(at)
        key = (info.st_dev, info.st_ino)
        if stat.S_ISDIR(info.st_mode):
            if key not in met:
                met[key] = name
                for child in _children(at):
                    if child.name.startswith("."):
                        unread.append(one_line(child.relative_to(path)))
                    else:
                        (links if child.is_symlink() else here).append(child)
            continue
        if reason := _not_read(at, info, suffixes, met.get(key, "")):
            unread.append(one_line(name) + (f" ({reason})" if reason != "name" else ""))
            continue
        if not name.isascii() and name.encode(errors="replace").decode() != name:
            raise ConfigError(f"{one_line(at)}: the name is not UTF-8; rename the file")
        met[key] = name
        files[name] = at
    if not files:
        _nothing(path, unread)
    order = sorted(files, key=Path)
    return Found({name: files[name] for name in order}, sorted(unread))


def _not_read(path: Path, info: os.stat_result, suffixes: Collection[str], met: str) -> str:
    """Why a file is not read; "name" when its name says it, and an empty string when it is read."""
    if not stat.S_ISREG(info.st_mode):
        return "no regular file"
    if not path.name.casefold().endswith(tuple(suffixes)):
        return "name"
    if met:
        return f"the same file as {one_line(met)}"
    # An empty file of text is a part without documents; of the other kinds it is damaged, which `check` says.
    return "empty" if not info.st_size and kind(path) in (TXT, JSONL) and not is_gzipped(path) else ""


def _nothing(path: Path, unread: list[str]) -> None:
    if path.is_dir():
        what = f"{one_line(path)}: nothing to read here" + (f" ({Found({}, unread).told()})" if unread else "")
    else:
        what = f"cannot read {one_line(path.parent)}/{unread[0]}"
    raise ConfigError(f"{what}; langext reads {', '.join(SUFFIXES)}")


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{one_line(folder)}: cannot be listed: {error.strerror}") from None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        if error.errno == errno.ENOENT and not path.is_symlink():
            raise ConfigError(f"{one_line(path)}: no such file or folder") from None
        reason = "leads to nothing" if error.errno == errno.ENOENT else f"cannot be followed: {error.strerror}"
        what = f"the link to {one_line(path.readlink())} {reason}" if path.is_symlink() else str(error.strerror)
        raise ConfigError(f"{one_line(path)}: {what}; mend or remove it") from None


def check(path: Path, column: str) -> bool:
    """Raise ConfigError for what shows at the start of a file, or in the footer of a Parquet file, without reading it all.

    `column` is the name of the column of text. Returns False for a table without rows.
    """
    where = one_line(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(-min(4, path.stat().st_size), os.SEEK_END)
            tail = file.read()
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None
    _check_pointer(path, head)
    if kind(path) == PARQUET:
        if head[:4] != PARQUET_MARK or tail != PARQUET_MARK:
            raise ConfigError(f"{where}: not a Parquet file, or only a part of one{': it is empty' if not head else ''}")
        return _check_table(path, column)
    if is_gzipped(path):
        try:
            head = zlib.decompressobj(31).decompress(head or b"none", HEAD)  # 31: with a gzip header
        except zlib.error:
            raise ConfigError(
                f"{where}: not a gzip file{'' if head else ': it is empty'}, though its name ends in .gz"
            ) from None
    if encoding := looks_like(head, tail):
        raise ConfigError(f"{where}: not UTF-8 text: it looks like {encoding}")
    return True


def check_pointer(path: Path) -> None:
    """Raise ConfigError for a file that stands for another one, which Git LFS has not fetched."""
    try:
        with path.open("rb") as file:
            _check_pointer(path, file.read(len(LFS)))
    except OSError as error:
        raise ConfigError(f"{one_line(path)}: cannot be read: {error.strerror}") from None


def _check_pointer(path: Path, head: bytes) -> None:
    if head.startswith(LFS):
        raise ConfigError(
            f"{one_line(path)}: this is a Git LFS pointer, not the file itself; fetch the file with: git lfs pull"
        )


def looks_like(data: bytes, tail: bytes = b"") -> str:
    """What bytes are that are no text in UTF-8, and what to do; an empty string when nothing speaks against text.

    `tail` is the end of the file, when it is known: a Parquet file has its mark at both ends.
    """
    if data.startswith(PARQUET_MARK) and tail == PARQUET_MARK:
        return "Parquet"
    if BZIP2.match(data):
        return "bzip2"
    for mark, name in KINDS.items():
        if data.startswith(mark):
            return name
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16; convert it to UTF-8"
    return "UTF-16, or no text at all, because it holds zero bytes; convert it to UTF-8" if b"\0" in data else ""


def _check_table(path: Path, column: str) -> bool:
    """Raise ConfigError when a Parquet file has no column of text that is called `column`. Returns whether it has rows."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.OSFile(str(path)) as file:  # a path may hold what pyarrow would read as an address
            table = pyarrow.parquet.ParquetFile(file)
            schema, rows = table.schema_arrow, table.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{one_line(path)}: damaged Parquet file: {' '.join(str(error).split())[:200]}") from None
    if (count := schema.names.count(column)) != 1:
        said = f"has {count} columns {column!r}." if count else f"has no column {column!r}.{near(column, schema.names)}"
        raise ConfigError(f"{one_line(path)}: {said} It has: {names(schema.names)}. Name the right one with text_column.")
    if not _is_text(schema.field(column).type):
        raise ConfigError(f"{one_line(path)}: column {column!r} is {schema.field(column).type!s:.60}, not text")
    return rows > 0


def _is_text(column: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(column):
        return _is_text(column.value_type)
    # A column of nothing but nulls has no type of its own.
    return any(same(column) for same in (types.is_string, types.is_large_string, types.is_string_view, types.is_null))


def names(columns: Collection[Any]) -> str:
    """Names of columns for a message, cut where there are many: they come with the data."""
    shown = [f"{one_line(name)[:40]}" for name in list(columns)[:20]]
    return ", ".join([*shown, *(["..."] if len(columns) > len(shown) else [])])


def size(path: Path) -> int:
    """Bytes of a file. Raises ConfigError when it is gone."""
    return _stat(path).st_size


def record(source: str, name: str, path: Path) -> SourceFile:
    """What a file is now, with its sha256. Raises RunFailed when it changes meanwhile or cannot be read."""
    try:
        before = path.stat()
        sha256 = sha256_file(path)
        after = path.stat()
    except OSError as error:
        raise _unread(path, error) from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise RunFailed(f"{one_line(path)}: it changed while it was read; run the same command again when it is complete")
    return SourceFile(
        source=source, name=name, path=str(path.resolve()), bytes=after.st_size, modified_ns=after.st_mtime_ns, sha256=sha256
    )


def changed(path: Path, then: SourceFile) -> bool:
    """True when the file differs from `then`. Its bytes are hashed only if the size is equal and the time is not.

    Raises RunFailed when it cannot be read.
    """
    try:
        now = path.stat()
        if now.st_size != then.bytes:
            return True
        return now.st_mtime_ns != then.modified_ns and sha256_file(path) != then.sha256
    except OSError as error:
        raise _unread(path, error) from None


def _unread(path: Path, error: OSError) -> RunFailed:
    return RunFailed(f"{one_line(path)}: cannot be read: {error.strerror}; run the same command again to go on")
