"""The entries of text files: objects of JSON Lines, rows of CSV and TSV, texts of .txt files.

The one rule: an entry that cannot be read is handed on with its line and the reason, and the next is read. In a .txt file a
blank line separates documents, as in CC-100 (https://data.statmt.org/cc-100/), if not told otherwise.
"""

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from langext.data import delimited
from langext.data import lines as text_lines
from langext.data.delimited import Row
from langext.data.lines import Line, Unreadable
from langext.data.source_files import Division


class Number(str):
    """A number or constant of a JSON file, as it is written there: nothing computes with it, and it may be of any length."""


_JSON = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=Number)
KINDS = {Number: "a number", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object",
         bytes: "binary", str: "a text", type(None): "null"}  # fmt: skip
"""Class of a value -> what it is called in messages."""


class Entry(NamedTuple):
    """One entry of a file."""

    number: int
    """A line of the file: of an object its line, of a row its first, of the text of several lines that after its end, or the
    first in it that cannot be read."""
    data: dict[str, Any] | None
    """Its fields; None when it cannot be read."""
    why: str = ""
    """Why it cannot be read."""
    text: str = ""
    """What stands there then."""
    lines: int = 1
    """How many entries it counts as when it cannot be read."""


def objects(found: Iterable[Line]) -> Iterator[Entry]:
    """The objects of JSON Lines. Blank lines are none."""
    for number, line, why, _ in found:
        if not line.strip() and not why:
            continue
        data: Any = None
        if not why:
            try:
                data = _JSON.decode(line)
                why = "" if isinstance(data, dict) else f"not a JSON object, but {KINDS[type(data)]}"
            except json.JSONDecodeError as error:
                why = f"not a JSON object: {error.msg}"
            except RecursionError:
                why = "not a JSON object: brackets inside brackets without end"
        yield Entry(number, None, why, line) if why else Entry(number, data)


def rows(found: Iterable[Line], kind: str) -> Iterator[Entry]:
    """The rows of CSV or TSV (see `delimited`) below the header in the first row.

    A broken one counts as many entries as it has lines: a quotation mark that is not closed where it should be takes other rows
    with it. Raises Unreadable for a header that cannot be read, and a quotation mark that is never closed.
    """
    parsed = delimited.parsed(found, kind)
    names = next(parsed, Row(1, []))
    if names.why:
        raise Unreadable(f"line {names.start}: the header cannot be read: {names.why}")
    for row in parsed:
        why, text = row.why, row.text
        if not why and len(row.cells) != len(names.cells):
            why, text = (
                f"{len(row.cells)} fields, where the header has {len(names.cells)}",
                delimited.MARK_OF[kind].join(row.cells),
            )
        if why:
            yield Entry(row.start, None, why, text, row.lines)
        else:
            yield Entry(row.start, dict(zip(names.cells, row.cells, strict=True)))


def header(found: Iterable[Line], kind: str) -> list[str]:
    """The names of the columns of CSV or TSV; [] when there is no row that can be read."""
    return next(delimited.parsed(found, kind), Row(1, [])).cells


def texts(found: Iterable[Line], columns: Sequence[str], division: Division) -> Generator[Entry, None, bool]:
    """The documents of a .txt file as the first field of `columns`; the others are empty.

    Returns True when blank lines were to divide the text, and there are several lines and none is blank. Raises Unreadable for
    a document without end.
    """
    empty = dict.fromkeys(columns)
    if division == "lines":
        for number, line, why, _ in found:
            if line.strip() or why:
                yield Entry(number, None, why, line) if why else Entry(number, {**empty, columns[0]: line})
        return False
    block: list[str] = []
    number = size = blocks = filled = 0
    bad: Line | None = None

    def whole() -> Entry:
        text = "\n".join(block).rstrip("\n")
        return Entry(bad.number, None, bad.why, text) if bad else Entry(number, {**empty, columns[0]: text})

    for number, line, why, _ in found:
        if line.strip() or why or (division == "files" and block):
            block.append(line)
            filled, size = filled + 1, size + len(line.encode("utf-8", "surrogatepass")) + 1
            bad = bad or (Line(number, line, why) if why else None)
            if size > text_lines.MOST_BYTES:
                raise Unreadable(
                    f"line {number}: one document is longer than {text_lines.MOST_BYTES >> 20} MiB; if every line is a "
                    "document, give the source txt_documents: lines"
                )
        elif block:
            yield whole()
            block, size, blocks, bad = [], 0, blocks + 1, None
    if block:
        yield whole()
        blocks += 1
    return division == "blocks" and blocks == 1 and filled > 1
