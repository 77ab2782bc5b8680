"""Where the text of an entry is: one field or several, each by its name or by a way through objects (`meta.body`).

The one rule: a field of that very name comes before a way through objects.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langext.data.source_files import names
from langext.spec import near

MOST_NAMES = 200
"""Most names of fields that are looked at for a message: they come with the data."""


def pick(entry: Mapping[str, Any], column: str) -> tuple[bool, Any]:
    """Whether an entry has the field `column`, and what is in it; None when an object on the way to it is null."""
    if column in entry:
        return True, entry[column]
    at: Any = entry
    for part in column.split("."):
        if at is None:
            return True, None
        if not isinstance(at, Mapping) or part not in at:
            return False, None
        at = at[part]
    return True, at


def every(entry: Mapping[str, Any], before: str = "") -> list[str]:
    """The names of all fields of an entry, of objects in it with a dot before each part."""
    found: list[str] = []
    for key, value in entry.items():
        found.append(f"{before}{key}")
        if isinstance(value, Mapping) and before.count(".") < 3 and len(found) < MOST_NAMES:
            found += every(value, f"{before}{key}.")
    return found[:MOST_NAMES]


def lacking(columns: Sequence[str], there: Iterable[str]) -> str:
    """What is said when no entry has one of `columns`: the fields that are there, and those with a similar name."""
    known = list(there)
    missing = next(column for column in columns if column not in known)
    advice = f"It has: {names(known)}. Name the right one with text_column."
    return f"no {missing!r}.{near(missing, known)} {advice}"
