"""Read documents from text files and tables. Rule: what cannot be read is counted and kept, or it stops the run.

From wherever it comes, text becomes valid Unicode in the form NFC, with line feeds as line ends, so that what is judged, kept
and measured is one text.
"""

import re
import unicodedata
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO, Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.logging import logger

from langext import languages
from langext.console import Progress
from langext.data import columns as fields
from langext.data import entries, formats, heads, unread
from langext.data.entries import KINDS, Entry
from langext.data.formats import JSONL, MARK, TXT
from langext.data.halves import mend
from langext.data.lines import Closed, Line, Unreadable, lines
from langext.data.source_files import Division, Place
from langext.data.tasks import READS
from langext.data.unread import Broken, Lacking, Unread
from langext.errors import ConfigError, RunFailed, one_line

ROWS, BATCH = 1000, 16 << 20
"""Rows of a Parquet file, and bytes of them, that are read together."""
MENDED, COMPOSED, UNDIVIDED = "mended", "composed", "undivided"
"""Counts: documents with broken Unicode, documents brought into form NFC, and .txt files without a blank line."""
MARKS, LOST_FILES, LOST_BYTES = "marks", "lost_files", "lost_bytes"
"""Counts: byte order marks that were removed, and bytes of archives of which nothing can be read."""
_LINE_END = re.compile(r"\r\n?")


class Reader(PipelineStep):
    """Common to all readers: turns one entry of a source into a document. The filter counts those without text.

    `columns` are the fields that hold the text; several are joined by a blank line. Of the entries, the share `most_bad` may be
    such that they cannot be read; they go to `rejects`.
    """

    type = "reader"
    composes = True
    """Whether text is brought into the Unicode form NFC; that of code is not."""
    columns: Sequence[str]
    unread: Unread

    def account(self, columns: Sequence[str], rejects: DiskWriter | None, most_bad: float) -> None:
        """Set what is the same for all readers."""
        self.columns, self.unread = columns, Unread(rejects, most_bad)

    def document(self, data: dict[str, Any], name: str) -> Document:
        """The document of one entry, which is called `name` if it has no id. Raises Broken when it has no text."""
        parts = [self._text(data, column) for column in self.columns]
        raw = parts[0] if len(parts) == 1 else "\n\n".join(filter(None, parts))
        whole = mend(raw)
        if whole != raw:
            self.stat_update(MENDED)
        clean = whole.replace(MARK, "") if self.composes else whole.removeprefix(MARK)
        if marks := len(whole) - len(clean):
            self.stat_update(MARKS, value=marks)
        plain = _LINE_END.sub("\n", clean)
        text = unicodedata.normalize("NFC", plain) if self.composes else plain
        if text != plain:
            self.stat_update(COMPOSED)
        key = data.get("id")
        named = isinstance(key, str | int) and not isinstance(key, bool)
        return Document(text=text, id=mend(str(key)) if named else name)

    def _text(self, data: dict[str, Any], column: str) -> str:
        there, value = fields.pick(data, column)
        if not there:
            raise Lacking(fields.lacking(self.columns, fields.every(data)))
        if value is None:
            return ""
        if type(value) is not str:
            why = value if isinstance(value, Broken) else f"is {KINDS.get(type(value), type(value).__name__)}, not text"
            raise Broken(f"{column!r} {why}")
        return value

    def accept(self, data: dict[str, Any], where: str, name: str) -> Document | None:
        """The document of one entry; None of an entry that cannot be read. `where` tells the user which one it is.

        Raises ConfigError when too many cannot be read.
        """
        try:
            document = self.document(data, name)
        except Broken as why:
            self.refuse(where, name, why, str(data))
            return None
        self.unread.good()
        return document

    def refuse(self, where: str, name: str, why: Broken | str, text: str, count: int = 1) -> None:
        """Count and keep what cannot be read, which are `count` entries. Raises ConfigError when that is one too many."""
        self.unread.bad(where, name, why, text, count)
        self.stat_update("dropped_broken", value=count)

    def refuse_rest(self, where: str, name: str, error: Unreadable) -> None:
        """Count and keep the rest of a file. Raises ConfigError if anything may be lost at all."""
        self.unread.rest(where, f"{name}/rest", str(error), error.text, error.lines)
        self.stat_update("dropped_broken", value=error.lines)


class FileReader(Reader):
    """Reads the files of one source, in their order; task number n of N takes every Nth file, beginning with number n."""

    def __init__(
        self,
        files: dict[str, Place],
        columns: Sequence[str],
        limit: int | None,
        rejects: DiskWriter | None = None,
        most_bad: float = 0.0,
    ):
        super().__init__()
        self.files, self.limit = files, limit
        self.account(columns, rejects, most_bad)

    @abstractmethod
    def read_file(self, name: str, place: Place) -> Iterator[Document]:
        """Yield the documents of one file. Raises ConfigError when too much of it cannot be read."""

    def begin(self, names: Sequence[str]) -> None:
        """Called before the files `names` of a task are read."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of this task's files. Raises RunFailed when the disk does not give them."""
        mine = list(self.files)[rank::world_size]
        self.begin(mine)
        self.unread.begin(rank)
        with self.unread.writing():
            yield from islice((document for name in mine for document in self._from_disk(name)), self.limit)
        self.unread.end()

    def _from_disk(self, name: str) -> Iterator[Document]:
        place = self.files[name]
        if self.unread.rejects:  # it is a task, which has a log, and no look at the source
            logger.info(f"{READS}{one_line(place)}")  # which is told when a library crashes on it
        try:
            yield from self.read_file(name, place)
        except OSError as error:
            reason = f"{one_line(place)}: cannot be read: {error.strerror or error}"
            raise RunFailed(f"{reason}; run the same command again to go on") from None


class TextReader(FileReader):
    """Reads files of text line by line, and prints its progress through the files of a task.

    `sizes` are the bytes of the files, by name, and `language` is the code of that which the text should be in.
    """

    name = "text"

    def __init__(
        self,
        files: dict[str, Place],
        columns: Sequence[str],
        limit: int | None,
        rejects: DiskWriter | None = None,
        most_bad: float = 0.0,
        *,
        division: Division,
        encoding: str,
        label: str,
        sizes: dict[str, int],
        language: str = languages.MUL,
    ):
        super().__init__(files, columns, limit, rejects, most_bad)
        self.division: Division = division
        self.encoding, self.language, self.label, self.sizes = encoding, language, label, sizes
        self.begin([])

    def begin(self, names: Sequence[str]) -> None:
        """One progress for all files of the task."""
        self.progress = Progress(self.label, max(1, sum(self.sizes[name] for name in names)))
        self.done_bytes = 0

    def read_file(self, name: str, place: Place) -> Iterator[Document]:
        """Yield the documents of one file."""
        where, shown = one_line(place), one_line(name)
        with place.open("rb") as raw:
            try:
                for number, data, why, text, count in self._entries(raw, place):
                    at, key = f"{where}: line {number}", f"{name}/{number}"
                    document = self.accept(data, at, key) if data is not None else self.refuse(at, key, why, text, count)
                    if document:
                        yield document
                    # The position in the compressed file: its size is known, that of the text is not.
                    self.progress.at(self.done_bytes + raw.tell(), f"{number} lines of {shown}")
            except Closed as error:
                self._lose(where, name, str(error))
            except Unreadable as error:
                self.refuse_rest(where, name, error)
        self.done_bytes += self.sizes[name]

    def _lose(self, where: str, name: str, why: str) -> None:
        """Count a file of which nothing can be read. Raises ConfigError when it is too much of the source."""
        lost, whole = self.sizes[name], sum(self.sizes.values())
        if len(self.files) == 1:
            raise ConfigError(f"{where}: {why}")
        if self.unread.most and unread.borne(lost, whole, self.unread.most) > self.unread.most:
            raise ConfigError(f"{where}: {why}{unread.too_large(lost / whole, self.unread.most)}")
        self.refuse(where, f"{name}/rest", why, "")
        self.stat_update(LOST_FILES)
        self.stat_update(LOST_BYTES, value=lost)

    def _marks_counted(self, found: Iterator[Line]) -> Iterator[Line]:
        for line in found:
            if line.marked:
                self.stat_update(MARKS)
            yield line

    def _entries(self, raw: IO[bytes], place: Place) -> Iterator[Entry]:
        whole = lines(formats.unpacked(raw, formats.packing(place)), self.encoding, self.language)
        found = self._marks_counted(whole)
        kind = formats.kind(place)
        if kind == JSONL:
            yield from entries.objects(found)
        elif kind == TXT:
            if (yield from entries.texts(found, self.columns, self.division)):
                self.stat_update(UNDIVIDED)
        else:
            yield from entries.rows(found, kind)


class TableReader(FileReader):
    """Reads Parquet files: the columns of text, and `id` if there is one."""

    name = "parquet"

    def read_file(self, name: str, place: Place) -> Iterator[Document]:
        """Yield one document for each row."""
        import pyarrow
        import pyarrow.parquet

        where, number = one_line(place), 0
        try:
            with place.open("rb") as file, pyarrow.parquet.ParquetFile(file) as table:
                schema = table.schema_arrow
                wanted = {column for column in self.columns if heads.leaf(schema, column) is not None}
                wanted |= {"id"} if _names_rows(schema) else set()
                for batch in table.iter_batches(_rows(table.metadata), columns=sorted(wanted)):
                    values = {column: _values(batch, column) for column in wanted}
                    for i in range(batch.num_rows):
                        row = {column: rows[i] for column, rows in values.items()}
                        if document := self.accept(row, f"{where}: row {number}", f"{name}/{number}"):
                            yield document
                        number += 1
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise  # the disk, not the file
            why = f"after row {number}: damaged: {' '.join(str(error).split())[:200]}"
            self.refuse_rest(where, name, Unreadable(why))


def _rows(metadata: Any) -> int:
    """How many rows of a Parquet file are read together: not more than ROWS, nor than take BATCH bytes on average."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    widest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    return max(1, min(ROWS, BATCH // max(1, widest)))


def _names_rows(schema: Any) -> bool:
    """Whether a table has one column of ids, of text or whole numbers."""
    from pyarrow import types

    found = schema.get_all_field_indices("id")
    return len(found) == 1 and (types.is_integer(kind := schema.field(found[0]).type) or heads.is_text(kind))


def _values(batch: Any, name: str) -> list[Any]:
    """The values of a column. Text that is not UTF-8, because it has halves of characters, is read with them."""
    import pyarrow
    import pyarrow.compute

    if name in batch.schema.names:
        column = batch.column(name)
    else:
        first, *rest = name.split(".")
        column = pyarrow.compute.struct_field(batch.column(first), rest)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_decoded(value) for value in column.cast(pyarrow.large_binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | Broken | None:
    if value is None:
        return None
    try:
        return value.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return Broken("is not UTF-8 text")
