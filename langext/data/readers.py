"""Read documents from text files and Parquet files. Rule: unreadable input stops the run; it is never skipped.

In a `.txt` file a blank line separates documents, as in CC-100 (https://data.statmt.org/cc-100/), if not told otherwise.
A `.jsonl` file has one object per line. Both may be gzipped. From wherever it comes, text becomes valid Unicode in the form
NFC, with line feeds as line ends, so that what is judged, kept and measured is one text.
"""

import gzip
import io
import json
import re
import unicodedata
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from langext.console import Progress
from langext.data import source_files
from langext.data.source_files import Division
from langext.errors import ConfigError, RunFailed, one_line
from langext.spec import near

MARK = "\ufeff"
"""The byte order mark. Files begin with it, and it is no part of their text."""
MOST_BYTES = 256 << 20
"""Longest line that is read, and largest document of a .txt file."""
MENDED, COMPOSED, UNDIVIDED = "mended", "composed", "undivided"
"""Counts: documents with broken Unicode, documents brought into form NFC, and .txt files without a blank line."""
_LINE_END = re.compile(r"\r\n?")


class _Number(str):
    """A number or constant of a JSON file, as it is written there: nothing computes with it, and it may be of any length."""


_JSON = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_Number)
_KINDS = {_Number: "a number", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object",
          bytes: "binary", str: "a text"}  # fmt: skip


def mend(text: str) -> str:
    """The text with U+FFFD in place of every half of a character, as JSON can have it, and UTF-8 not.

    Both halves of a character, one after the other, become that character.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class Reader(PipelineStep):
    """Common to all readers: turns one entry of a source into a document. The filter counts those without text."""

    type = "reader"
    column: str
    """The field that holds the text."""

    def document(self, data: dict[str, Any], where: str, name: str) -> Document:
        """The document of one entry, which is called `name` if it has no id. `where` tells the user which one it is.

        Raises ConfigError when the text column is missing or not text.
        """
        if self.column not in data:
            raise ConfigError(
                f"{where}: no {self.column!r}.{near(self.column, map(str, data))} It has: {source_files.names(data)}. "
                "Name the right one with text_column."
            )
        raw = "" if data[self.column] is None else data[self.column]
        if type(raw) is not str:
            raise ConfigError(f"{where}: {self.column!r} is {_KINDS.get(type(raw), type(raw).__name__)}, not text")
        whole = mend(raw)
        if whole != raw:
            self.stat_update(MENDED)
        plain = _LINE_END.sub("\n", whole.removeprefix(MARK))
        text = unicodedata.normalize("NFC", plain)
        if text != plain:
            self.stat_update(COMPOSED)
        key = data.get("id")
        named = isinstance(key, str | int) and not isinstance(key, bool)
        return Document(text=text, id=mend(str(key)) if named else name)


class FileReader(Reader):
    """Reads the files of one source, in their order; task number n of N takes every Nth file, beginning with number n."""

    def __init__(self, files: dict[str, Path], column: str, limit: int | None):
        super().__init__()
        self.files, self.column, self.limit = files, column, limit

    @abstractmethod
    def read_file(self, name: str, path: Path) -> Iterator[Document]:
        """Yield the documents of one file. Raises ConfigError with file and line when something cannot be read."""

    def begin(self, names: Sequence[str]) -> None:
        """Called before the files `names` of a task are read."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of this task's files. Raises RunFailed when the disk does not give them."""
        mine = list(self.files)[rank::world_size]
        self.begin(mine)
        yield from islice((document for name in mine for document in self._from_disk(name)), self.limit)

    def _from_disk(self, name: str) -> Iterator[Document]:
        path = self.files[name]
        try:
            yield from self.read_file(name, path)
        except OSError as error:
            reason = f"{one_line(path)}: cannot be read: {error.strerror or error}"
            raise RunFailed(f"{reason}; run the same command again to go on") from None


class TextReader(FileReader):
    """Reads .txt and .jsonl, plain or gzipped, and prints its progress through the files of a task.

    `sizes` are the bytes of the files, by name.
    """

    name = "text"

    def __init__(
        self, files: dict[str, Path], column: str, limit: int | None, division: Division, label: str, sizes: dict[str, int]
    ):
        super().__init__(files, column, limit)
        self.division, self.label, self.sizes = division, label, sizes
        self.begin([])

    def begin(self, names: Sequence[str]) -> None:
        """One progress for all files of the task."""
        self.progress = Progress(self.label, max(1, sum(self.sizes[name] for name in names)))
        self.done_bytes = 0

    def read_file(self, name: str, path: Path) -> Iterator[Document]:
        """Yield the documents of one file."""
        where, shown = one_line(path), one_line(name)
        with path.open("rb") as raw:
            stream = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if source_files.is_gzipped(path) else raw  # type: ignore[arg-type]
            lines = _lines(stream, where)
            jsonl = source_files.kind(path) == source_files.JSONL
            for number, data in _objects(lines, where) if jsonl else self._texts(lines, where):
                yield self.document(data, f"{where}: line {number}", f"{name}/{number}")
                # The position in the compressed file: its size is known, that of the text is not.
                self.progress.at(self.done_bytes + raw.tell(), f"{number} lines of {shown}")
        self.done_bytes += self.sizes[name]

    def _texts(self, lines: Iterable[tuple[int, str]], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """The documents of a .txt file, each with the number of the line after it."""
        if self.division == "lines":
            yield from ((number, {self.column: line}) for number, line in lines if line.strip())
            return
        block: list[str] = []
        number = size = blocks = filled = 0
        for number, line in lines:
            if line.strip() or (self.division == "files" and block):
                block.append(line)
                filled, size = filled + 1, size + len(line.encode()) + 1
                if size > MOST_BYTES:
                    raise ConfigError(
                        f"{where}: line {number}: one document is longer than {MOST_BYTES >> 20} MiB; if every line is a "
                        "document, give the source txt_documents: lines"
                    )
            elif block:
                yield number, {self.column: "\n".join(block)}
                block, size, blocks = [], 0, blocks + 1
        if block:
            yield number, {self.column: "\n".join(block).rstrip("\n")}
            blocks += 1
        if self.division == "blocks" and blocks == 1 and filled > 1:
            self.stat_update(UNDIVIDED)


class TableReader(FileReader):
    """Reads Parquet files: the column of text, and `id` if there is one."""

    name = "parquet"

    def read_file(self, name: str, path: Path) -> Iterator[Document]:
        """Yield one document for each row."""
        import pyarrow
        import pyarrow.parquet

        where, number = one_line(path), 0
        try:
            with pyarrow.OSFile(str(path)) as file, pyarrow.parquet.ParquetFile(file) as table:
                columns = {field.name for field in table.schema_arrow if field.name == self.column or _names_rows(field)}
                for batch in table.iter_batches(1000, columns=sorted(columns)):
                    values = {column: _values(batch.column(column)) for column in batch.schema.names}
                    for i in range(batch.num_rows):
                        row = {column: rows[i] for column, rows in values.items()}
                        yield self.document(row, f"{where}: row {number}", f"{name}/{number}")
                        number += 1
        except UnicodeDecodeError:
            raise ConfigError(f"{where}: after row {number}: not UTF-8 text") from None
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise  # the disk, not the file
            raise ConfigError(f"{where}: after row {number}: damaged: {' '.join(str(error).split())[:200]}") from None


def _names_rows(field: Any) -> bool:
    from pyarrow import types

    return field.name == "id" and (types.is_integer(field.type) or types.is_string(field.type))


def _values(column: Any) -> list[Any]:
    """The values of a column. Text that is not UTF-8, because it has halves of characters, is read with them."""
    import pyarrow

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        binary = column.cast(pyarrow.large_binary()).to_pylist()
        return [value if value is None else value.decode("utf-8", "surrogatepass") for value in binary]


def _lines(stream: Any, name: str) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of every line, without its end (LF, CRLF or CR) and without a byte order mark."""
    number = 0
    while True:
        try:
            raw = stream.readline(MOST_BYTES)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ConfigError(f"{name}: after line {number}: damaged: {error}") from None
        if not raw:
            return
        if len(raw) == MOST_BYTES:
            raise ConfigError(f"{name}: line {number + 1}: longer than {MOST_BYTES >> 20} MiB; is this one document a line?")
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            seems = source_files.looks_like(raw) or "Latin-1 or Windows-1252; convert it to UTF-8"
            raise ConfigError(f"{name}: line {number + 1}: not UTF-8 text: it looks like {seems}") from None
        if "\0" in text:
            raise ConfigError(f"{name}: line {number + 1}: not UTF-8 text: it looks like {source_files.looks_like(raw)}")
        for part in text.rstrip("\r\n").split("\r"):
            number += 1
            yield number, part.removeprefix(MARK)


def _objects(lines: Iterable[tuple[int, str]], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            data = _JSON.decode(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{name}: line {number}: not a JSON object: {error.msg}") from None
        except RecursionError:
            raise ConfigError(f"{name}: line {number}: not a JSON object: brackets inside brackets without end") from None
        if not isinstance(data, dict):
            raise ConfigError(f"{name}: line {number}: not a JSON object, but {_KINDS.get(type(data), 'null')}")
        yield number, data
