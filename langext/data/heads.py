"""What the beginning of a file shows, when a run is planned: that it is what its name says, and has the column of text.

The one rule: what shows here about a whole file is refused here; a single entry that cannot be read is not judged here.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langext import languages
from langext.data import columns as fields
from langext.data import encodings, entries, formats
from langext.data.formats import CSV, JSONL, PARQUET, PARQUET_MARK, TSV, TXT, UTF_8, kind, packing
from langext.data.lines import Line, Unreadable, lines
from langext.data.source_files import Place
from langext.errors import ConfigError, one_line, placeholder_of

HEAD = 1 << 16
"""Bytes at the start of a file from which it is told what it is."""
FEWEST_BAD = 3
"""Lines at the start of a file that must be no UTF-8 before all of it is said to be in another encoding."""
FEWEST_LETTERS = 5
"""Letters that are not ASCII from which bytes in another encoding can no more be UTF-8 by chance."""


@dataclass(frozen=True)
class Head:
    """What the beginning of a file shows."""

    rows: bool = True
    """False for a table without rows."""
    undivided: bool = False
    """True for a .txt file that has several lines, and no blank one at its beginning."""
    closed: bool = False
    """True for a damaged archive of which nothing at all can be read."""


def check(
    place: Place, columns: Sequence[str], encoding: str = UTF_8, alone: bool = True, language: str = languages.MUL
) -> Head:
    """Raise ConfigError for what shows at the start of a file, or in the footer of a Parquet file, without reading it all.

    `columns` are the names of the columns of text, `language` is the code of its language. Of several files, which are not
    `alone`, a damaged archive is no error here.
    """
    where = one_line(place)
    if not opens(place):
        if alone:
            what = f"damaged {formats.PACKINGS[packing(place)]} file: nothing can be read of it"
            raise ConfigError(f"{where}: {what}; mend or remove it")
        return Head(rows=False, closed=True)
    head, tail = _ends(place)
    if said := placeholder_of(head, pages=language != languages.ZXX):
        raise ConfigError(f"{where}: {said}")
    if kind(place) == PARQUET:
        if head[:4] != PARQUET_MARK or tail != PARQUET_MARK:
            raise ConfigError(f"{where}: not a Parquet file, or only a part of one{': it is empty' if not head else ''}")
        return Head(rows=_check_table(place, columns))
    complete = len(head) < HEAD
    if end := packing(place):
        head = formats.check_packed(head, end, where, HEAD)
        complete = len(head) < HEAD and complete
    if encoding == UTF_8 and (found := formats.looks_like(head, tail)):
        raise ConfigError(f"{where}: not UTF-8 text: it looks like {found}")
    try:
        whole = list(lines(io.BytesIO(head), encoding, language))
        if not complete and whole:  # the last line is cut
            del whole[-1]
        if encoding == UTF_8:
            _check_encoding(where, whole, head)
        elif _is_utf8(head):
            advice = f"put the files that are in {encoding} into a source of their own"
            raise ConfigError(f"{where}: this file is UTF-8, and encoding is {encoding}; {advice}")
        _check_fields(where, kind(place), whole, columns)
    except Unreadable as error:
        raise ConfigError(f"{where}: {error}") from None
    filled = [bool(line.text.strip()) for line in whole]
    # Blank lines at the beginning and the end divide nothing.
    body = filled[filled.index(True) : len(filled) - filled[::-1].index(True)] if True in filled else []
    return Head(undivided=kind(place) == TXT and len(body) > 1 and all(body))


def check_pointer(place: Place) -> None:
    """Raise ConfigError for a file that stands for another one, which Git LFS has not fetched."""
    if said := placeholder_of(_ends(place)[0], pages=False):
        raise ConfigError(f"{one_line(place)}: {said}")


def opens(place: Place) -> bool:
    """Whether something can be read of a local file, if it is compressed as its name says. Damage further on shows later.

    Of an object store, where only beginnings are looked at, this is always so.
    """
    if not isinstance(place, Path):
        return True
    try:
        with place.open("rb") as file:
            return not packing(place) or formats.opens(file, packing(place))
    except OSError as error:
        raise ConfigError(f"{one_line(place)}: cannot be read: {error.strerror}") from None


def _ends(place: Place) -> tuple[bytes, bytes]:
    """The first bytes of a file and the last four."""
    try:
        with place.open("rb") as file:
            head = file.read(HEAD)
            if not file.seekable():
                return head, b""
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - 4))
            return head, file.read()
    except OSError as error:
        raise ConfigError(f"{one_line(place)}: cannot be read: {error.strerror}") from None


def _is_utf8(head: bytes) -> bool:
    """Whether bytes, of which the last may be a part of a letter, are UTF-8, with enough letters that this is no chance."""
    text = encodings.decoded(head, UTF_8) or ""
    return sum(not letter.isascii() for letter in text) >= FEWEST_LETTERS


def _check_encoding(where: str, found: Sequence[Line], head: bytes) -> None:
    """Raise ConfigError when most lines with other letters than those of English are not UTF-8."""
    bad = [line for line in found if line.why]
    good = sum(not line.why and not line.text.isascii() for line in found)
    if bad and (len(bad) == len(found) or (len(bad) >= FEWEST_BAD and len(bad) > good)):
        raise ConfigError(f"{where}: line {bad[0].number}: {bad[0].why}")


def _check_fields(where: str, what: str, found: Sequence[Line], columns: Sequence[str]) -> None:
    """Raise ConfigError when no entry at the beginning has one of the columns, or none is an entry at all."""
    if what in (CSV, TSV) and found:
        header = entries.header(found, what)
        if twice := [column for column in columns if header.count(column) > 1]:
            raise ConfigError(f"{where}: the header has {twice[0]!r} more than once")
        if what == CSV and len(header) == 1 and (mark := next((mark for mark in ";\t|" if mark in header[0]), "")):
            raise ConfigError(f"{where}: the fields are divided by {mark!r}; write commas, or tabs into a .tsv file")
        if not all(column in header for column in columns):
            raise ConfigError(f"{where}: {fields.lacking(columns, header)}")
    if what == JSONL:
        there = list(entries.objects(found))
        objects = [entry.data for entry in there if entry.data is not None]
        if there and not objects:
            raise ConfigError(
                f"{where}: line {there[0].number}: {there[0].why}. A .jsonl file has one JSON object on each line"
            )
        if objects and not all(any(fields.pick(data, column)[0] for data in objects) for column in columns):
            raise ConfigError(f"{where}: {fields.lacking(columns, dict.fromkeys(n for d in objects for n in fields.every(d)))}")


def _check_table(place: Place, columns: Sequence[str]) -> bool:
    """Raise ConfigError when a Parquet file lacks a column of text. Returns whether it has rows."""
    import pyarrow
    import pyarrow.parquet

    where = one_line(place)
    try:
        with place.open("rb") as file:
            table = pyarrow.parquet.ParquetFile(file)
            schema, rows = table.schema_arrow, table.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{where}: damaged Parquet file: {' '.join(str(error).split())[:200]}") from None
    for column in columns:
        if (count := schema.names.count(column)) > 1:
            raise ConfigError(f"{where}: has {count} columns {column!r}")
        found = leaf(schema, column)
        if found is None:
            raise ConfigError(f"{where}: {fields.lacking(columns, _leaves(schema))}")
        if not is_text(found):
            raise ConfigError(f"{where}: column {column!r} is {found!s:.60}, not text")
    return rows > 0


def leaf(schema: Any, column: str) -> Any:
    """The Arrow type of a column of a table, which may lie in others (`meta.body`); None when it has none of that name."""
    from pyarrow import types

    if column in schema.names:
        return schema.field(column).type
    first, *rest = column.split(".")
    at = schema.field(first).type if schema.names.count(first) == 1 else None
    for part in rest:
        if at is None or not types.is_struct(at) or at.get_field_index(part) < 0:
            return None
        at = at.field(part).type
    return at


def _leaves(schema: Any) -> list[str]:
    """The names of all columns, of those in others with a dot before each part."""
    from pyarrow import types

    found = []
    for field in schema:
        found += [field.name]
        if types.is_struct(field.type):
            found += [f"{field.name}.{inner}" for inner in _leaves(field.type)]
    return found[: fields.MOST_NAMES]


def is_text(column: Any) -> bool:
    """Whether a type of Arrow is one of text."""
    from pyarrow import types

    if types.is_dictionary(column):
        return is_text(column.value_type)
    # A column of nothing but nulls has no type of its own.
    return any(same(column) for same in (types.is_string, types.is_large_string, types.is_string_view, types.is_null))
