"""What of a source cannot be read: counted, located, kept, and too much of it stops the run.

The one rule: nothing is left out that is not in `rejects/`, with its place and the reason.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.writers.disk_base import DiskWriter

from langext.console import say
from langext.data import documents
from langext.errors import ConfigError

BROKEN = "broken"
"""The reason that rejects and the funnel have for it."""
SMALL = 1 << 16
"""Bytes of damaged archives that are borne beside others, whatever share of a small source they are."""
SHOWN = 5
"""Most places in a message."""
JUDGED = 1000
"""Entries that are read before a source is said to be another thing than it was taken for."""
MOST_JUDGED = 0.5
"""Share of them that cannot be read then."""
NO_FIELD = 100
"""Entries without the field, from the first one on, after which it is said that the column has another name."""


class Broken(ValueError):
    """One entry that cannot be read. The message says why."""


class Lacking(Broken):
    """An entry without a field that was asked for."""


class Unread:
    """The account of one task of one source."""

    def __init__(self, rejects: DiskWriter | None, most: float):
        """`most` is the share of entries that may be broken; 0 stops at the first one. `rejects` takes them."""
        self.rejects, self.most = rejects, most
        self.begin(0)

    def begin(self, rank: int) -> None:
        """Task number `rank` begins."""
        self.rank, self.entries, self.broken = rank, 0, 0
        self.places: list[str] = []
        self.lacking = ""
        self.lacks = 0
        self.had = False

    def writing(self) -> AbstractContextManager[Any]:
        """The context in which entries are written to the rejects."""
        return self.rejects or nullcontext()

    def good(self) -> None:
        """One entry was read."""
        self.entries += 1
        self.had = True

    def bad(self, where: str, name: str, why: Broken | str, text: str, count: int = 1) -> None:
        """What is called `name` cannot be read, which are `count` entries. Raises ConfigError when that is one too many."""
        self.entries, self.broken = self.entries + count, self.broken + count
        if isinstance(why, Lacking):
            self.lacks, self.lacking = self.lacks + 1, self.lacking or f"{where}: {why}"
        elif isinstance(why, Broken):  # the field is there, and holds no text
            self.had = True
        if not self.most:
            raise ConfigError(f"{where}: {why}")
        if len(self.places) < SHOWN:
            self.places.append(f"{where}: {why}")
        if not self.had and self.lacks >= NO_FIELD:
            raise ConfigError(self.lacking)
        if self.entries >= JUDGED and self.broken > max(MOST_JUDGED, self.most) * self.entries:
            raise ConfigError(too_many(self.broken, self.entries, self.most, self.places))
        if self.rejects:
            metadata = {"filter_reason": BROKEN, "where": where, "why": str(why)}
            self.rejects.write(Document(text=text, id=name, metadata=metadata), self.rank)

    def rest(self, where: str, name: str, why: str, text: str = "", count: int = 1) -> None:
        """The rest of a file cannot be read. As nobody knows how much that is, only the share 1 bears it; else ConfigError."""
        if self.most < 1:
            raise ConfigError(f"{where}: {why}")
        self.bad(where, name, why, text, count)

    def end(self) -> None:
        """The task is finished. Raises ConfigError when no entry at all had the field."""
        if self.lacking and not self.had:
            raise ConfigError(self.lacking)


def check(
    source: str, broken: int, entries: int, most: float, files: Sequence[Path], lost_files: int = 0, lost_frac: float = 0.0
) -> None:
    """Say how many of the `entries` of a finished source are `broken`, and where; `files` are their rejects.

    `lost_files` of them are files of which nothing can be read, with the share `lost_frac` of the source's bytes. Raises
    ConfigError when the others are more than the share `most` of the entries, or `lost_frac` is more than that.
    """
    if not broken:
        return
    places: list[str] = []
    for path in files:
        for document in documents.read(path):
            if len(places) == SHOWN:
                break
            places.append(f"{document['metadata']['where']}: {document['metadata']['why']}")
    if broken - lost_files > most * entries:
        raise ConfigError(too_many(broken, entries, most, places))
    if lost_frac > most:
        raise ConfigError(f"{'; '.join(places)}{too_large(lost_frac, most)}")
    say(f"  {source}: {broken} of {entries} entries cannot be read and are left out; {places[0]}")


def borne(lost_bytes: int, whole_bytes: int, most: float) -> float:
    """The share of a source's bytes that is lost in damaged archives; 0 where so little is lost that it is borne."""
    return lost_bytes / max(1, whole_bytes) if lost_bytes > SMALL or not most else 0.0


def too_large(lost_frac: float, most: float) -> str:
    """What is said of damaged archives that are a larger share of the source's bytes than `most`."""
    return f"; {lost_frac:.2%} of the source's bytes are in what is so damaged, and max_bad_frac allows {most:g} of it"


def too_many(broken: int, entries: int, most: float, places: Sequence[str]) -> str:
    """What is said when more entries are broken than the share `most`."""
    share = f"{broken} of {entries} entries cannot be read, more than max_bad_frac ({most:g}) allows"
    return f"{share}: {'; '.join(places)}{'; ...' if broken > len(places) else ''}"
