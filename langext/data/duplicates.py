"""Find duplicates within and across the sources of one language: exact ones, and near ones by MinHash.

The one rule: of texts that are alike the first is kept, in the order of the parts; so what is only measured comes first.
MinHash is datatrove's, with the settings of FineWeb-2 (https://arxiv.org/abs/2506.20920): 14 buckets of 8 hashes of runs of 5
words. That finds 1 - (1 - s^8)^14 of the pairs that share s of these runs: 57 % for s = 0.7, 92 % for 0.8, all for 0.9.
Of a part that is divided into passages the whole documents are compared with those of other parts too; a passage goes with its
document.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from fsspec.implementations.local import LocalFileSystem

from langext.data.split import OF, text_hash
from langext.data.word_units import WordUnits, runs

MINHASH = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
EXACT, NEAR = "duplicate", "near_duplicate"
"""Reasons to drop a text."""
FORM = 2
"""Number of the form of what `Prints` writes. Raise it with any change."""
DOCUMENTS, PASSAGES = 1, 2
"""Kinds of texts, as bits: a document of a part that is not divided is compared with both."""
_PRIME_BITS = np.uint64(61)
_PRIME = np.uint64((1 << 61) - 1)
ROWS = 256
"""Runs of words that are hashed at once: enough to be fast, and all of it stays in the cache of a core."""


def _folder(path: Path) -> tuple[str, LocalFileSystem]:
    # The file system is named, because a path may hold what fsspec takes for an address.
    path.mkdir(parents=True, exist_ok=True)
    return str(path.resolve()), LocalFileSystem()


class Prints(PipelineStep):
    """Writes a number for every text of a part, the same for the same text: `<folder>/<part>.npy`, (num_texts,) uint64.

    And `<folder>/<part>.of.npy`, (num_passages,) int64: the number of the document of every passage. None are of parts that are
    not divided.
    """

    name = "prints"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield every document."""
        found, owners = [], []
        for document in data:
            found.append(text_hash(document.text))
            owners += [document.metadata[OF][0]] if OF in document.metadata else []
            yield document
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{rank:05d}.npy", np.array(found, np.uint64))
        np.save(_owners(self.folder, rank), np.array(owners, np.int64))


def _owners(folder: Path, part: int) -> Path:
    return folder / f"{part:05d}.of.npy"


class Signatures(MinhashDedupSignature):
    """datatrove's first step of MinHash, with langext's words, and with bounded memory for long texts."""

    name = "signatures"

    def __init__(self, folder: Path, units: WordUnits):
        super().__init__(_folder(folder), MINHASH, units)  # pyright: ignore[reportArgumentType]  # it takes tokenizers too
        self.units = units

    def get_shingles(self, text: str) -> np.ndarray:
        """The runs of words of a text: (number of runs, 1) uint64."""
        return runs(text, self.units, self.config.n_grams).reshape(-1, 1)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """For every bucket its hashes, of shingles (number of runs, 1)."""
        a, b = self.parameters
        least = np.full(self.num_hashes, _PRIME, np.uint64)
        for at in range(0, len(shingles), ROWS):
            hashed = shingles[at : at + ROWS] * a + b
            rest = (hashed & _PRIME) + (hashed >> _PRIME_BITS)  # modulo the Mersenne prime, without a division
            least = np.minimum(least, np.minimum(rest, rest - _PRIME).min(axis=0))
        return [bucket.tolist() for bucket in np.split(least, self.config.num_buckets)]


class Pairs(MinhashDedupBuckets):
    """The second step of MinHash: pairs of texts that are alike. Shares the buckets among its tasks."""

    name = "pairs"

    def __init__(self, signatures: Path, pairs: Path):
        super().__init__(_folder(signatures), _folder(pairs), config=MINHASH)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Write the pairs of every bucket that is this task's."""
        for bucket in range(rank, MINHASH.num_buckets, world_size):
            super().run(None, bucket, MINHASH.num_buckets)


def clusters(pairs: Path, found: Path) -> MinhashDedupCluster:
    """The third step of MinHash, one task: the groups that the pairs make."""
    return MinhashDedupCluster(_folder(pairs), _folder(found), MINHASH, save_cluster_id=True)


class Choose(PipelineStep):
    """Decides which texts of all parts go, one task: `<folder>/<part>.npy`, (num_texts,) int8: 0 stays, 1 exact, 2 near.

    `wholes`: part that is divided -> number of the part with its documents, as they were, which are only looked for.
    """

    name = "choose"

    def __init__(self, prints: Path, clusters: Path | None, parts: int, folder: Path, wholes: Mapping[int, int]):
        super().__init__()
        self.prints, self.clusters, self.parts, self.folder, self.wholes = prints, clusters, parts, folder, dict(wholes)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Write the decision; yield nothing."""
        prints = [np.load(self.prints / f"{part:05d}.npy") for part in range(self.parts)]
        every = np.concatenate([*prints, np.zeros(0, np.uint64)])
        goes = np.ones(len(every), np.int8)
        goes[np.unique(every, return_index=True)[1]] = 0  # the first of each
        at, met = 0, dict[int, int]()  # group -> kinds of its texts that were met
        self.folder.mkdir(parents=True, exist_ok=True)
        for part, own in enumerate(prints):
            mine = goes[at : at + len(own)]
            near = np.zeros(len(own), bool)
            if part in self.wholes:
                near |= np.isin(np.load(_owners(self.prints, part)), self._copies(self.wholes[part], DOCUMENTS, met))
            near[self._copies(part, PASSAGES if part in self.wholes else DOCUMENTS | PASSAGES, met)] = True
            mine[near & (mine == 0)] = 2
            np.save(self.folder / f"{part:05d}.npy", mine)
            at += len(own)
        yield from ()

    def _copies(self, part: int, kind: int, met: dict[int, int]) -> list[int]:
        """Numbers of the texts of a part that are like one of the same kind that was met before; they are met now."""
        copies = []
        for text, group in self._groups(part):
            if met.get(group, 0) & kind:
                copies.append(text)
            met[group] = met.get(group, 0) | kind
        return copies

    def _groups(self, part: int) -> list[list[int]]:
        """Number of each text of a part that is like another one, and of its group, ascending."""
        path = self.clusters / f"{part:06d}.clusters" if self.clusters else None
        return np.fromfile(path, np.dtype("<u4")).reshape(-1, 2).tolist() if path and path.exists() else []


def left(folder: Path, parts: Sequence[int]) -> int:
    """How many texts of these parts stay, as `Choose` has decided."""
    return sum(int((np.load(folder / f"{part:05d}.npy") == 0).sum()) for part in parts)


class Unique(BaseFilter):
    """Drops the texts that `Choose` has decided on. Task n reads part `first` + n of the decision."""

    name = "unique"

    def __init__(self, folder: Path, first: int, rejects: DiskWriter):
        super().__init__(rejects)
        self.folder, self.first = folder, first
        self.goes: Iterator[int] = iter(())

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the texts that stay."""
        self.goes = iter(np.load(self.folder / f"{self.first + rank:05d}.npy").tolist())
        yield from super().run(data, rank, world_size)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True, or False and the reason."""
        why = next(self.goes)
        return True if not why else (False, EXACT if why == 1 else NEAR)
