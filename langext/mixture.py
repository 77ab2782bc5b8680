"""Which sequence comes when: tokenised documents, packing, and a weighted mixture of languages.

The order is defined globally, by sequence number, and sliced by process; so it does not depend on how many processes train
or how large their micro-batches are, and the whole state is one number: the sequences that have been used.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from langext.artifacts import read_json, write_json

IGNORE = -100


@dataclass(frozen=True)
class TokenFile:
    """The documents of one language in one memory-mapped stream; every document ends with the tokenizer's end token."""

    tokens: np.ndarray
    """(num_tokens,) uint32."""
    starts: np.ndarray
    """(num_documents,) int64, where each document begins, in order."""

    @staticmethod
    def write(folder: Path, documents: Iterable[list[int]]) -> "TokenFile":
        """Write documents of token ids to `folder`; `done.json` comes last and marks it complete."""
        folder.mkdir(parents=True, exist_ok=True)
        starts, at = [], 0
        with (folder / "tokens.bin").open("wb") as file:
            for ids in documents:
                starts.append(at)
                file.write(np.asarray(ids, dtype=np.uint32).tobytes())
                at += len(ids)
            file.flush()
            os.fsync(file.fileno())
        np.save(folder / "starts.npy", np.asarray(starts, dtype=np.int64))
        write_json(folder / "done.json", {"tokens": at, "documents": len(starts)})
        return TokenFile.open(folder)

    @staticmethod
    def open(folder: Path) -> "TokenFile":
        """Map a finished file into memory."""
        size = read_json(folder / "done.json")["tokens"]
        tokens = np.memmap(folder / "tokens.bin", dtype=np.uint32, mode="r", shape=(size,))
        return TokenFile(tokens, np.load(folder / "starts.npy"))

    def num_sequences(self, length: int) -> int:
        """Sequences of `length` inputs with a label each that the stream holds."""
        return max(0, (len(self.tokens) - 1) // length)

    def sequence(self, index: int, length: int) -> "Sequence":
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
        return Sequence(window[:-1], labels, positions)


@dataclass(frozen=True)
class Sequence:
    """One packed training sequence; all arrays are (length,) int64."""

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    """Start again at 0 with every document, which is how attention is told not to cross into another one."""


class Mixture:
    """A fixed order over several token files. `weights` are shares of all tokens and sum to one."""

    def __init__(self, files: Mapping[str, TokenFile], weights: Mapping[str, float], length: int, total: int, seed: int):
        """Plan `total` sequences of `length` tokens. In every prefix each language is within one sequence of its share."""
        self.files, self.length, self.seed = dict(files), length, seed
        self.names = list(files)
        times, owners = [], []
        for k, name in enumerate(self.names):
            if weights[name] > 0:
                count = int(np.ceil(total * weights[name])) + 1
                times.append((np.arange(count) + 0.5) / weights[name])
                owners.append(np.full(count, k, dtype=np.int16))
        order = np.argsort(np.concatenate(times), kind="stable")[:total]
        self.owner = np.concatenate(owners)[order]
        """(total,) which language each sequence is from."""
        self.turn = np.zeros(total, dtype=np.int64)
        """(total,) how many sequences of that language came before."""
        for k in range(len(self.names)):
            mine = self.owner == k
            self.turn[mine] = np.arange(mine.sum())
        self._permutations: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.owner)

    def epochs(self, upto: int | None = None) -> dict[str, float]:
        """Language -> how often its text is gone through within the first `upto` sequences (all when None)."""
        used = np.bincount(self.owner[:upto], minlength=len(self.names))
        return {n: float(used[k] / self.files[n].num_sequences(self.length)) for k, n in enumerate(self.names)}

    def sequence(self, index: int) -> tuple[str, Sequence]:
        """The language and the content of the `index`-th sequence of the run. Text is shuffled anew in every epoch."""
        k = int(self.owner[index])
        file = self.files[self.names[k]]
        epoch, place = divmod(int(self.turn[index]), file.num_sequences(self.length))
        if (k, epoch) not in self._permutations:
            self._permutations = {key: value for key, value in self._permutations.items() if key[0] != k}
            generator = np.random.default_rng([self.seed, k, epoch])
            self._permutations[k, epoch] = generator.permutation(file.num_sequences(self.length))
        return self.names[k], file.sequence(int(self._permutations[k, epoch][place]), self.length)

    def micro_batches(self, step: int, batch: int, micro: int, rank: int, world_size: int) -> "Iterator[Batch]":
        """One process's part of a step: its `batch` sequences in their global order, cut by `micro`, dealt out by rank."""
        first = step * batch
        for at in range(first + rank * micro, first + batch, micro * world_size):
            yield Batch.of([self.sequence(i) for i in range(at, at + micro)])

    def count(self, step: int, batch: int, names: Collection[str]) -> int:
        """Sequences of the named languages in a whole step, over all processes."""
        owners = self.owner[step * batch : (step + 1) * batch]
        return sum(int((owners == k).sum()) for k, name in enumerate(self.names) if name in names)


@dataclass(frozen=True)
class Batch:
    """A micro-batch: (B, T) int64 tensors and the language of every row."""

    languages: list[str]
    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor

    @staticmethod
    def of(rows: "list[tuple[str, Sequence]]") -> "Batch":
        """Stack sequences."""
        stacked = [np.stack(field) for field in zip(*((s.input_ids, s.labels, s.position_ids) for _, s in rows), strict=True)]
        return Batch([name for name, _ in rows], *map(torch.from_numpy, stacked))
