"""Find text that holds a piece of a benchmark. The one rule: what is looked for, and what cannot be found, is recorded.

As for GPT-3 (https://arxiv.org/abs/2005.14165, appendix C), a text is contaminated where it shares a run of 13 words with an
item, or holds the longest text of an item that has no such run, if that has 5 words. It is cut out with 200 characters on both
sides, and text of which there is too little left, or with too many cuts, is dropped. Cuts are made between sentences. datatrove
drops all of such a text, a law or a novel for one quotation.
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from langext.data.halves import mend
from langext.data.split import sentences
from langext.data.word_units import WordUnits, ordered_runs, runs, runs_of, simplified
from langext.errors import ConfigError, one_line, placeholder

COMMON = 0.1
"""A run that more than this share of a task's items has, and at least FEWEST of them, is its wording, not its content."""
FEWEST = 5
MARGIN, LEAST, MOST_CUTS = 200, 200, 10
"""Characters on both sides of a run that are cut out with it, the fewest that may be left between two cuts, and most cuts."""
SHORTEST = 5
"""Words of the shortest item that can be found. What is shorter is chance nearly always."""
TOO_MANY_SHORT = 0.2
"""Share of a task's items that cannot be found from which on it is said in a warning."""
FORM = 2
"""Number of the form in which `write_index` leaves what to look for. Raise it with any change of it."""
PARTS = "benchmark_parts"
"""Count: parts that were cut out of texts that are kept."""


def file_items(path: Path) -> list[tuple[str, ...]]:
    """The items of a file of one's own: every object of a .jsonl file with all its texts, or every line of a .txt file.

    Raises ConfigError when it cannot be read.
    """
    where = one_line(path)
    kind = path.name.casefold().removesuffix(".gz").rsplit(".", 1)[-1]
    if kind not in ("jsonl", "txt"):
        raise ConfigError(f"contamination: {where}: write .jsonl or .txt, plain or .gz")
    if said := placeholder(path):
        raise ConfigError(f"contamination: {where}: {said}")
    try:
        with (gzip.open if path.name.casefold().endswith(".gz") else open)(path, "rt", encoding="utf-8-sig") as file:
            lines = [line.rstrip("\n") for line in file if line.strip()]
        return [tuple(_texts(json.loads(line))) if kind == "jsonl" else (line,) for line in lines]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = error.strerror or error if isinstance(error, OSError) else "no lines of JSON, or no UTF-8"
        raise ConfigError(f"contamination: {where}: cannot be read: {reason}") from None


def _texts(value: Any) -> list[str]:
    """All texts in a value of JSON. Half a character becomes U+FFFD."""
    if isinstance(value, str):
        return [mend(value)]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inner for text in _texts(part)]


@dataclass(frozen=True)
class Wanted:
    """What to look for of one task."""

    runs: np.ndarray
    """Hashes of runs of units, ascending uint64."""
    lengths: list[int]
    """How many units these runs have."""
    begins: np.ndarray
    """Hashes of the first SHORTEST words of the items that are looked for as a whole: a text without them has none of these."""
    short: int = 0
    """Items that cannot be found: they are too short, or many items have all that they have."""


def index(items: Sequence[Iterable[str]], units: WordUnits, words: int) -> Wanted:
    """What to look for of these items."""
    count: Counter[int] = Counter()
    each = list[set[int]]()
    wholes = dict[int, tuple[int, set[int]]]()
    least = units.count(SHORTEST)
    for item in items:
        texts = list(item)
        found = {int(run) for text in texts for run in runs(text, units, words)}
        if not found:
            longest = max((simplified(text, units) for text in texts), key=len, default=[])
            if len(longest) >= least:
                found = _hashes(longest, len(longest))
                wholes |= {run: (len(longest), _hashes(longest[:least], least)) for run in found}
        count.update(found)
        each.append(found)
    most = max(FEWEST, COMMON * len(items))
    wanted = {run for run, times in count.items() if times <= most}
    kept = [whole for run, whole in wholes.items() if run in wanted]
    lengths = {units.count(words), *(length for length, _ in kept)}
    begins = {begin for _, hashes in kept for begin in hashes}
    return Wanted(_array(wanted), sorted(lengths), _array(begins), sum(wanted.isdisjoint(found) for found in each))


def _hashes(units: Sequence[str], length: int) -> set[int]:
    return {int(run) for _, hashes in ordered_runs(units, [length]) for run in hashes}


def _array(hashes: set[int]) -> np.ndarray:
    return np.array(sorted(hashes), np.uint64)


def write_index(folder: Path, items: Mapping[str, Sequence[Iterable[str]]], units: WordUnits, words: int) -> dict[str, int]:
    """Write what to look for in text of one language: `<number>.npz` for each task. Returns how many items cannot be found."""
    folder.mkdir(parents=True, exist_ok=True)
    short = {}
    for number, (task, entries) in enumerate(items.items()):
        wanted = index(entries, units, words)
        short[task] = wanted.short
        np.savez(folder / f"{number:05d}.npz", runs=wanted.runs, lengths=np.array(wanted.lengths), begins=wanted.begins)
    return short


def read_index(folder: Path, tasks: int) -> list[Wanted]:
    """What `write_index` has written of so many tasks."""
    files = [np.load(folder / f"{number:05d}.npz") for number in range(tasks)]
    return [Wanted(file["runs"], file["lengths"].tolist(), file["begins"]) for file in files]


def without(text: str, found: Wanted, units: WordUnits) -> tuple[str, list[str]]:
    """A text without the sentences that have a run of words of `found` and what is around them; and what is cut out.

    Nothing is left of a text where the rest is not worth keeping, as this module says above.
    """
    pieces = list(sentences(text))
    each = [simplified(piece, units) for piece in pieces]
    owner = np.repeat(np.arange(len(each)), [len(part) for part in each])
    edges = set[tuple[int, int]]()
    for length, hashes in ordered_runs([unit for part in each for unit in part], found.lengths):
        at = np.flatnonzero(np.isin(hashes, found.runs))
        edges.update(zip(owner[at].tolist(), owner[at + length - 1].tolist(), strict=True))
    size = np.array([len(piece) for piece in pieces])
    ends = np.cumsum(size)
    starts = ends - size
    cut = np.zeros(len(pieces), bool)
    for first, last in edges:
        # Every sentence that reaches into the characters around these.
        cut[(ends > starts[first] - MARGIN) & (starts < ends[last] + MARGIN)] = True
    stretches = _stretches(cut)
    kept, gone = list[str](), list[str]()
    for start, end in stretches:
        part = "".join(pieces[start:end]).strip()
        (gone if cut[start] or len(part) < LEAST else kept).append(part)
    cuts = sum(bool(cut[start]) for start, _ in stretches)
    return ("\n\n".join(kept), gone) if 0 < cuts <= MOST_CUTS else ("", [text])


def _stretches(cut: np.ndarray) -> list[tuple[int, int]]:
    """Begin and end of each stretch of equal values."""
    edges = [0, *(np.flatnonzero(cut[1:] != cut[:-1]) + 1).tolist(), len(cut)]
    return list(pairwise(edges))


class Decontaminate(BaseFilter):
    """Cuts out of texts what shares a run of words with an item, or drops such texts. The reason names the task."""

    name = "contamination"

    def __init__(self, folder: Path, tasks: Sequence[str], units: WordUnits, rejects: DiskWriter, whole: bool = False):
        """`whole` drops texts: a file of code is of no use without a part of it."""
        super().__init__(rejects)
        self.whole = whole
        self.folder, self.tasks, self.units = folder, list(tasks), units
        self.places, self.rank = rejects, 0
        self.runs = self.owner = self.begins = np.zeros(0, np.uint64)
        self.lengths: list[int] = []

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        """Yield what is left of the texts."""
        parts = read_index(self.folder, len(self.tasks))
        self.lengths = sorted({length for part in parts for length in part.lengths})
        self.begins = np.concatenate([np.zeros(0, np.uint64), *(part.begins for part in parts)])
        every = np.concatenate([np.zeros(0, np.uint64), *(part.runs for part in parts)])
        self.runs, first = np.unique(every, return_index=True)
        self.owner = np.repeat(np.arange(len(parts)), [len(part.runs) for part in parts])[first]
        self.rank = rank
        self.stat_update(PARTS, value=0)
        yield from super().run(data, rank, world_size)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True, or False and the reason. What is cut out of a text that is kept is in the rejects too."""
        mine = runs_of(doc.text, self.units, self._lengths_in(doc.text))
        if not len(self.runs) or not len(mine):
            return True
        at = np.minimum(np.searchsorted(self.runs, mine), len(self.runs) - 1)
        hits = at[self.runs[at] == mine]
        if not len(hits):
            return True
        reason = f"contaminated_{self.tasks[int(self.owner[hits].min())]}"
        if self.whole:
            return False, reason
        rest, gone = without(doc.text, Wanted(self.runs[hits], self.lengths, self.begins), self.units)
        if not rest:
            return False, reason
        for number, text in enumerate(gone):
            self.stat_update(PARTS)
            told = {"filter_reason": reason}
            self.places.write(Document(text=text, id=f"{doc.id}#cut{number}", metadata=told), self.rank)
        doc.text = rest
        return True

    def _lengths_in(self, text: str) -> list[int]:
        """The lengths of runs that are worth a look in a text: those of whole items only where one of these begins."""
        if not len(self.begins):
            return self.lengths[-1:]
        begun = np.isin(self.begins, runs(text, self.units, SHORTEST)).any()
        return self.lengths if begun else self.lengths[-1:]
