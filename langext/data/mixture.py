"""Which sequence comes when: tokenised documents, packing, and a weighted mixture of sources.

The order is defined globally, by sequence number, and sliced by process; so it does not depend on how many processes train
or how large their micro-batches are, and the whole state is one number: the sequences that have been used.
"""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from langext.data.tokens import Packed, TokenFile
from langext.spec import ConfigError, near


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

    def locate(self, index: int) -> tuple[str, int]:
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
        name, number = self.locate(index)
        starts, at = self.files[name].starts, number * self.length
        first = int(np.searchsorted(starts, at, side="right")) - 1
        last = int(np.searchsorted(starts, at + self.length, side="left"))
        return name, list(range(first, last))

    def batch(self, indices: Sequence[int]) -> "Batch":
        """The sequences of these numbers as a micro-batch."""
        rows = []
        for index in indices:
            name, number = self.locate(index)
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


def shares(
    sizes: Mapping[str, int], language: str, originals: Sequence[str], original_frac: float, given: Mapping[str, float]
) -> dict[str, float]:
    """Source, `<language>/<domain>` -> share of all tokens, summing to one.

    `sizes` are the sequences that each source has. `given` fixes the share of single languages or sources; what it leaves is
    `original_frac` for the original languages together, equally, the rest for the new one, and within a language by size.
    Raises ConfigError for names that are not there and for shares that do not add up.
    """
    codes = [code for code in (language, *originals) if any(name.split("/")[0] == code for name in sizes)]
    odd = next((name for name in given if name not in (*codes, *sizes)), None)
    if odd:
        raise ConfigError(f"shares: nothing to train on is called {odd!r}.{near(odd, [*codes, *sizes])}", at=("shares",))
    by_language = _languages([code for code in codes if code != language], original_frac, given)
    by_language[language] = given.get(language, 1 - sum(by_language.values()))
    if abs(sum(by_language.values()) - 1) > 1e-6:
        shown = ", ".join(f"{code} {share:.3g}" for code, share in by_language.items())
        raise ConfigError(f"shares: those of all languages must sum to 1; they are {shown}", at=("shares",))
    found: dict[str, float] = {}
    for code, share in by_language.items():
        found |= _sources(code, share, {name: size for name, size in sizes.items() if name.split("/")[0] == code}, given)
    return found


def _languages(originals: Sequence[str], original_frac: float, given: Mapping[str, float]) -> dict[str, float]:
    fixed = {code: given[code] for code in originals if code in given}
    free = [code for code in originals if code not in given]
    left = original_frac - sum(fixed.values())
    if left < -1e-9:
        raise ConfigError(
            f"shares: the original languages have {sum(fixed.values()):.3g}, more than original_frac {original_frac}",
            at=("shares",),
        )
    if not free and left > 1e-6:
        raise ConfigError(
            f"shares: the original languages have {sum(fixed.values()):.3g}, less than original_frac {original_frac}",
            at=("shares",),
        )
    return fixed | {code: max(0.0, left) / len(free) for code in free}


def _sources(code: str, share: float, sizes: Mapping[str, int], given: Mapping[str, float]) -> dict[str, float]:
    fixed = {name: given[name] for name in sizes if name in given}
    free = {name: size for name, size in sizes.items() if name not in given}
    left = share - sum(fixed.values())
    if left < -1e-9 or (not free and left > 1e-6):
        raise ConfigError(
            f"shares: the sources of {code} have {sum(fixed.values()):.3g}, the language {share:.3g}", at=("shares",)
        )
    total = sum(free.values())
    return fixed | {name: max(0.0, left) * size / total for name, size in free.items()}
