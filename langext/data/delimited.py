"""Rows of CSV and TSV. The one rule: what a quotation mark means is known for a whole file, before it matters.

In CSV (https://www.rfc-editor.org/rfc/rfc4180) it begins and ends a field. In TSV
(https://www.iana.org/assignments/media-types/text/tab-separated-values) it is a letter like others; but spreadsheets and pandas
write TSV as they write CSV, with whole fields in quotation marks. So the first lines of a TSV file that have one decide: when
each of them there begins a field, ends it, or is doubled inside of it, they are those of CSV.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from langext.data import lines as text_lines
from langext.data.formats import CSV, TSV
from langext.data.lines import Line, Unreadable

MARK_OF = {CSV: ",", TSV: "\t"}
"""What stands between two fields."""
LOOKED_LINES, LOOKED_LETTERS = 1000, 1 << 20
"""Most lines of a TSV file, and letters of them, that show what a quotation mark means there."""
_FIELD = re.compile(r'(?:"(?:[^"\t]|"")*+"|[^"\t\n]*+)[\t\n]')
"""A field as CSV has it, but without tabs in quotation marks, and what ends it."""
_OPEN = re.compile(r'"(?:[^"\t]|"")*+\Z')


class Row(NamedTuple):
    """One row of a table."""

    start: int
    """Its first line."""
    cells: list[str]
    why: str = ""
    """Why it cannot be read."""
    text: str = ""
    """What stands there then."""
    lines: int = 1
    """How many lines that are not blank it has."""


def parsed(found: Iterable[Line], kind: str) -> Iterator[Row]:
    """The rows of CSV or TSV, the header among them. Blank lines are none.

    Raises Unreadable for a quotation mark that is never closed.
    """
    left = iter(found)
    if kind != TSV:
        yield from _quoted(left, kind)
        return
    for line in left:
        if '"' in line.text and not line.why:
            ahead = _ahead(line, left)
            if quotes_fields(ahead):
                yield from _quoted(chain(ahead, left), kind)
                return
            yield from _plain(chain(ahead, left))
            return
        yield from _plain([line])


def _ahead(first: Line, left: Iterator[Line]) -> list[Line]:
    """The line and those after it that are looked at."""
    found, size = [first], len(first.text)
    while len(found) < LOOKED_LINES and size < LOOKED_LETTERS and (line := next(left, None)):
        found.append(line)
        size += len(line.text)
    return found


def quotes_fields(found: Sequence[Line]) -> bool:
    """Whether quotation marks are those of CSV in these lines of TSV, of which the first has one."""
    text, at, quoted = "".join(f"{line.text}\n" for line in found if not line.why), 0, False
    while at < len(text):
        match = _FIELD.match(text, at)
        if match is None:  # the last field may go on after these lines
            return quoted and _OPEN.match(text, at) is not None
        quoted |= text[at] == '"'
        at = match.end()
    return quoted


def _plain(found: Iterable[Line]) -> Iterator[Row]:
    for line in found:
        if line.text or line.why:
            yield Row(line.number, line.text.split(MARK_OF[TSV]), line.why, line.text if line.why else "")


def _quoted(found: Iterable[Line], kind: str) -> Iterator[Row]:
    held: list[Line] = []

    def fed() -> Iterator[str]:
        for line in found:
            held.append(line)
            yield line.text + "\n"

    csv.field_size_limit(text_lines.MOST_BYTES >> 2)  # a field takes four times its letters while it is read
    reader = csv.reader(fed(), delimiter=MARK_OF[kind], strict=True)
    while True:
        cells, why, unended = list[str](), "", False
        held.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            why, unended = f"not {kind.upper()}: {error}", "unexpected end" in str(error)
        why = next((line.why for line in held if line.why), why)
        text = "\n".join(line.text for line in held) if why else ""
        count = max(1, sum(bool(line.text.strip() or line.why) for line in held))
        if unended:
            what = f"line {held[0].number}: a quotation mark is opened here and never closed"
            raise Unreadable(what, text, count) from None
        if cells or why:  # a blank line is no row
            yield Row(held[0].number, cells, why, text, count)
