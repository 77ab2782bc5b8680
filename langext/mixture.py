"""Which sequence comes when: tokenised documents, packing, and a weighted mixture of sources.

The order is defined globally, by sequence number, and sliced by process; so it does not depend on how many processes train
or how large their micro-batches are, and the whole state is one number: the sequences that have been used.
"""

import copy
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from langext.architectures.cross_entropy import IGNORE
from langext.artifacts import read_json, write_json


@dataclass(frozen=True)
class TokenFile:
    """The documents of one source in one memory-mapped stream; every document ends with the tokenizer's end token."""

    tokens: np.ndarray
    """(num_tokens,) uint32."""
    starts: np.ndarray
    """(num_documents,) int64, where each document begins, in order."""

    @staticmethod
    def write(folder: Path, documents: Iterable[list[int]], mark: str = "") -> "TokenFile":
        """Write documents of token ids to `folder`; `done.json` comes last and marks it complete. `mark` says what it is of."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "done.json").unlink(missing_ok=True)
        starts, at = [], 0
        with (folder / "tokens.bin").open("wb") as file:
            for ids in documents:
                starts.append(at)
                file.write(np.asarray(ids, dtype=np.uint32).tobytes())
                at += len(ids)
            file.flush()
            os.fsync(file.fileno())
        np.save(folder / "starts.npy", np.asarray(starts, dtype=np.int64))
        write_json(folder / "done.json", {"tokens": at, "documents": len(starts), "mark": mark})
        return TokenFile.open(folder)

    @staticmethod
    def is_done(folder: Path, mark: str) -> bool:
        """Is there a finished file of what `mark` says?"""
        return (folder / "done.json").is_file() and read_json(folder / "done.json")["mark"] == mark

    @staticmethod
    def open(folder: Path) -> "TokenFile":
        """Map a finished file into memory."""
        size = read_json(folder / "done.json")["tokens"]
        tokens = np.memmap(folder / "tokens.bin", dtype=np.uint32, mode="r", shape=(size,)) if size else np.zeros(0, np.uint32)
        return TokenFile(tokens, np.load(folder / "starts.npy"))

    def num_sequences(self, length: int) -> int:
        """Sequences of `length` inputs with a label each that the stream holds."""
        return max(0, (len(self.tokens) - 1) // length)

    def sequence(self, index: int, length: int) -> "Packed":
        """The `index`-th run of `length` tokens, with labels and positions that keep its documents apart."""
        at = index * length
        window = np.asarray(self.tokens[at : at + length + 1], dtype=np.int64)
        first, last = np.searchsorted(self.starts, [at, at + length + 1], side="left")
        begins = np.asarray(self.starts[first:last]) - at  # document starts inside the window, 0 .. length
        positions = np.arange(length)
        for begin in begins[begins < length]:
            positions[begin:] = np.arange(length - begin)
        labels = window[1:].copy()
        labels[begins[begins > 0] - 1] = IGNORE  # the end of one document does not predict the start of the next
        return Packed(window[:-1], labels, positions)


@dataclass(frozen=True)
class Packed:
    """One packed training sequence; all arrays are (length,) int64."""

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    """Start again at 0 with every document, which is how attention is told not to cross into another one."""


@dataclass(frozen=True)
class Phase:
    """A part of the training with its own shares."""

    num_sequences: int
    shares: Mapping[str, float]
    """Source, `<language>/<domain>` -> share of all tokens; they sum to one."""


class Mixture:
    """A fixed order over several token files."""

    def __init__(self, files: Mapping[str, TokenFile], phases: Sequence[Phase], language: str, length: int, seed: int):
        """Plan the sequences of `length` tokens of all phases.

        In every prefix of a phase the new `language` is within half a sequence of its share, and a single source within one of
        its own when there are up to three, within about one and a third when there are ten (measured in tests).
        """
        self.files, self.length, self.seed = dict(files), length, seed
        self.names = list(files)
        order = []
        for phase in phases:
            assert abs(sum(phase.shares.values()) - 1) < 1e-9
            weights = np.array([phase.shares.get(name, 0.0) for name in self.names])
            new = [k for k, name in enumerate(self.names) if name.split("/")[0] == language]
            rest = [k for k in range(len(self.names)) if k not in new]
            order.append(_interleave([new, rest], weights, phase.num_sequences))
        self.owner = np.concatenate(order).astype(np.int16)
        """(total,) which source each sequence is from, as a place in `names`."""
        self.turn = np.zeros(len(self.owner), dtype=np.int64)
        """(total,) how many sequences of that source came before."""
        for k in range(len(self.names)):
            mine = self.owner == k
            self.turn[mine] = np.arange(mine.sum())
        self._permutations: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.owner)

    def first_repeat(self) -> int:
        """The number of the first sequence that would be read a second time; the number of all when there is none."""
        sizes = np.array([self.files[name].num_sequences(self.length) for name in self.names])
        again = self.turn >= sizes[self.owner]
        return int(again.argmax()) if again.any() else len(self)

    def cut(self, total: int) -> "Mixture":
        """The first `total` sequences of this one."""
        shorter = copy.copy(self)
        shorter.owner, shorter.turn = self.owner[:total], self.turn[:total]
        return shorter

    def epochs(self) -> dict[str, float]:
        """Source -> how often its text is gone through."""
        used = np.bincount(self.owner, minlength=len(self.names))
        return {n: float(used[k] / self.files[n].num_sequences(self.length)) for k, n in enumerate(self.names)}

    def shares(self) -> dict[str, float]:
        """Source -> its share of all tokens."""
        return {name: float((self.owner == k).mean()) for k, name in enumerate(self.names)}

    def place(self, index: int) -> tuple[str, int]:
        """The source of the `index`-th sequence of the run, and its number there. Text is shuffled anew in every epoch."""
        k = int(self.owner[index])
        size = self.files[self.names[k]].num_sequences(self.length)
        epoch, place = divmod(int(self.turn[index]), size)
        if (k, epoch) not in self._permutations:
            self._permutations = {key: value for key, value in self._permutations.items() if key[0] != k}
            self._permutations[k, epoch] = np.random.default_rng([self.seed, k, epoch]).permutation(size)
        return self.names[k], int(self._permutations[k, epoch][place])

    def documents(self, index: int) -> tuple[str, list[int]]:
        """The source of the `index`-th sequence, and the numbers of the documents that are in it."""
        name, number = self.place(index)
        starts, at = self.files[name].starts, number * self.length
        first = int(np.searchsorted(starts, at, side="right")) - 1
        last = int(np.searchsorted(starts, at + self.length, side="left"))
        return name, list(range(first, last))

    def batch(self, indices: Sequence[int]) -> "Batch":
        """The sequences of these numbers as a micro-batch."""
        rows = []
        for index in indices:
            name, number = self.place(index)
            rows.append((name.split("/")[0], self.files[name].sequence(number, self.length)))
        return Batch.of(list(indices), rows)

    def micro_batches(self, step: int, batch: int, micro: int, rank: int, world_size: int) -> "Iterator[Batch]":
        """One process's part of a step: its `batch` sequences in their global order, cut by `micro`, dealt out by rank."""
        first = step * batch
        for at in range(first + rank * micro, first + batch, micro * world_size):
            yield self.batch(range(at, at + micro))

    def count(self, step: int, batch: int, languages: Collection[str]) -> int:
        """Sequences of the named languages in a whole step, over all processes."""
        owners = self.owner[step * batch : (step + 1) * batch]
        return sum(int((owners == k).sum()) for k, name in enumerate(self.names) if name.split("/")[0] in languages)


def _interleave(groups: list[list[int]], weights: np.ndarray, total: int) -> np.ndarray:
    """(total,) members of two groups, spread evenly by weight: first between the groups, then within each in the same way."""
    groups = [group for group in groups if weights[group].sum() > 0]
    if len(groups) == 1:
        members = [k for k in groups[0] if weights[k] > 0]
        if len(members) == 1:
            return np.full(total, members[0])
        return _interleave(_halves(members, weights), weights, total)
    sums = [weights[group].sum() for group in groups]
    times = [(np.arange(np.ceil(total * s / sum(sums)) + 1) + 0.5) / s for s in sums]
    turns = np.concatenate([np.full(len(t), g) for g, t in enumerate(times)])
    turns = turns[np.argsort(np.concatenate(times), kind="stable")[:total]]
    order = np.empty(total, dtype=np.int64)
    for g, group in enumerate(groups):
        order[turns == g] = _interleave([group], weights, int((turns == g).sum()))
    return order


def _halves(members: list[int], weights: np.ndarray) -> list[list[int]]:
    """Two groups of about the same weight: the closer, the smaller the error of what is within them."""
    halves: list[list[int]] = [[], []]
    for k in sorted(members, key=lambda k: -weights[k]):
        min(halves, key=lambda half: weights[half].sum() if half else 0.0).append(k)
    return halves


@dataclass(frozen=True)
class Batch:
    """A micro-batch: (B, T) int64 tensors, and the number in the run and the language of every row."""

    indices: list[int]
    languages: list[str]
    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor

    @staticmethod
    def of(indices: list[int], rows: list[tuple[str, Packed]]) -> "Batch":
        """Stack sequences."""
        stacked = [np.stack(field) for field in zip(*((s.input_ids, s.labels, s.position_ids) for _, s in rows), strict=True)]
        return Batch(indices, [name for name, _ in rows], *map(torch.from_numpy, stacked))
