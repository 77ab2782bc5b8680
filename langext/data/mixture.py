"""The order of training sequences: a weighted mixture of several sources.

Rule: the order is one global list of sequences, and each process takes its part of it. So the order does not depend on the
number of processes or on the micro-batch size, and one number is enough to resume: how many sequences have been used.
"""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from langext.data.tokens import Packed, TokenFile
from langext.errors import ConfigError
from langext.spec import near

MOST_READINGS = 4
"""Up to so many readings of a text teach about as much as new text would."""
TOO_MANY = f"more than {MOST_READINGS} readings teach little (https://arxiv.org/abs/2305.16264)"
"""What is said of more."""
BYTES_PER_SEQUENCE = 48
"""Memory that planning the order takes at its peak, measured with several sources."""


@dataclass(frozen=True)
class Phase:
    """A part of the training with its own shares of the sources."""

    num_sequences: int
    shares: Mapping[str, float]
    """Source (`<language>/<domain>`) -> its share of all tokens. The shares sum to one."""


class Mixture:
    """A fixed order of sequences from several token files."""

    def __init__(self, files: Mapping[str, TokenFile], phases: Sequence[Phase], language: str, length: int, seed: int):
        """Plan the order of all phases; a sequence has `length` tokens.

        In the first n sequences of a phase, for every n, the count of the new `language` differs from its share by at most half
        a sequence. The count of a single source differs by at most one sequence with up to three sources, and by about one
        and a third with ten (measured in tests).
        """
        self.files, self.length, self.seed = dict(files), length, seed
        self.names = list(files)
        order = []
        for phase in phases:
            assert abs(sum(phase.shares.values()) - 1) < 1e-9
            # The new language against the rest comes first, because its share matters most and must be the most exact.
            weights = np.array([phase.shares.get(name, 0.0) for name in self.names])
            new = [k for k, name in enumerate(self.names) if name.split("/")[0] == language]
            rest = [k for k in range(len(self.names)) if k not in new]
            order.append(_interleave([new, rest], weights, phase.num_sequences))
        self.owner = np.concatenate(order).astype(np.int16)
        """(total,) the source of each sequence, as an index into `names`."""
        self.turn = np.zeros(len(self.owner), dtype=np.int64)
        """(total,) how many sequences of the same source come before this one."""
        for k in range(len(self.names)):
            mine = self.owner == k
            self.turn[mine] = np.arange(mine.sum())
        self._permutations: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.owner)

    def first_repeat(self) -> int:
        """Index of the first sequence whose text is used a second time; the total number of sequences when none is."""
        sizes = np.array([self.files[name].num_sequences(self.length) for name in self.names])
        repeated = self.turn >= sizes[self.owner]
        return int(repeated.argmax()) if repeated.any() else len(self)  # argmax of booleans is the first True

    def cut(self, total: int) -> "Mixture":
        """A mixture of the first `total` sequences of this one."""
        shorter = copy.copy(self)
        shorter.owner, shorter.turn = self.owner[:total], self.turn[:total]
        return shorter

    def epochs(self) -> dict[str, float]:
        """Source -> how many times its text is read; 0.5 means that half of it is used."""
        used = np.bincount(self.owner, minlength=len(self.names))
        return {n: float(used[k] / self.files[n].num_sequences(self.length)) for k, n in enumerate(self.names)}

    def shares(self) -> dict[str, float]:
        """Source -> its share of all tokens."""
        return {name: float((self.owner == k).mean()) for k, name in enumerate(self.names)}

    def locate(self, index: int) -> tuple[str, int]:
        """The source of the `index`-th sequence of the run, and its number in that source. Each epoch has its own shuffle."""
        k = int(self.owner[index])
        size = self.files[self.names[k]].num_sequences(self.length)
        epoch, position = divmod(int(self.turn[index]), size)
        if (k, epoch) not in self._permutations:
            # Training goes forward, so one epoch per source is enough: a permutation can be large.
            self._permutations = {key: value for key, value in self._permutations.items() if key[0] != k}
            self._permutations[k, epoch] = np.random.default_rng([self.seed, k, epoch]).permutation(size)
        return self.names[k], int(self._permutations[k, epoch][position])

    def documents(self, index: int) -> tuple[str, list[int]]:
        """The source of the `index`-th sequence, and the numbers of the documents that its inputs come from."""
        name, number = self.locate(index)
        starts, at = self.files[name].starts, number * self.length
        first = int(np.searchsorted(starts, at, side="right")) - 1  # the document that began at `at` or before
        last = int(np.searchsorted(starts, at + self.length, side="left"))
        return name, list(range(first, last))

    def batch(self, indices: Sequence[int]) -> "Batch":
        """The sequences with these numbers as one micro-batch."""
        rows = []
        for index in indices:
            name, number = self.locate(index)
            rows.append((name.split("/")[0], self.files[name].sequence(number, self.length)))
        return Batch.of(list(indices), rows)

    def micro_batches(self, step: int, batch: int, micro: int, rank: int, world_size: int) -> "Iterator[Batch]":
        """Yield the micro-batches that process `rank` computes in one step.

        The step's `batch` sequences are cut, in their global order, into pieces of `micro`, and the processes take turns.
        """
        first = step * batch
        for at in range(first + rank * micro, first + batch, micro * world_size):
            yield self.batch(range(at, at + micro))

    def count(self, step: int, batch: int, languages: Collection[str]) -> int:
        """Number of sequences of `languages` in a whole step, over all processes."""
        owners = self.owner[step * batch : (step + 1) * batch]
        return sum(int((owners == k).sum()) for k, name in enumerate(self.names) if name.split("/")[0] in languages)


def check_size(total: int) -> None:
    """Raise ConfigError when the order of `total` sequences is more than the memory of this machine can hold."""
    needed, there = total * BYTES_PER_SEQUENCE, psutil.virtual_memory().total
    if needed > there:
        raise ConfigError(
            f"steps x batch_sequences is {total:,} sequences, whose order takes {needed // 10**9:,} GB of memory, and this "
            f"machine has {there // 10**9:,} GB",
            at=("steps",),
        )


def _interleave(groups: list[list[int]], weights: np.ndarray, total: int) -> np.ndarray:
    """(total,) members of one or two groups, spread evenly by weight: first over the groups, then within each group.

    Each group of share s gets the times (i + 1/2) / s, i = 0, 1, ..., and all times are sorted. The half puts a sequence in the
    middle of its interval, so that two groups are never more than half a sequence away from their shares.
    """
    groups = [group for group in groups if weights[group].sum() > 0]
    if len(groups) == 1:
        members = [k for k in groups[0] if weights[k] > 0]
        if len(members) == 1:
            return np.full(total, members[0])
        # Two halves at a time: with many members in one sort, several can be due at once and the errors add up.
        return _interleave(_halves(members, weights), weights, total)
    sums = [weights[group].sum() for group in groups]
    times = [(np.arange(np.ceil(total * s / sum(sums)) + 1) + 0.5) / s for s in sums]
    turns = np.concatenate([np.full(len(t), g) for g, t in enumerate(times)])
    turns = turns[np.argsort(np.concatenate(times), kind="stable")[:total]]  # stable: equal times need a fixed order
    order = np.empty(total, dtype=np.int64)
    for g, group in enumerate(groups):
        order[turns == g] = _interleave([group], weights, int((turns == g).sum()))
    return order


def _halves(members: list[int], weights: np.ndarray) -> list[list[int]]:
    """Two groups of about the same weight. The closer the weights, the smaller the error of the members' shares."""
    halves: list[list[int]] = [[], []]
    for k in sorted(members, key=lambda k: -weights[k]):
        min(halves, key=lambda half: weights[half].sum() if half else 0.0).append(k)
    return halves


@dataclass(frozen=True)
class Batch:
    """A micro-batch: (B, T) int64 tensors, and for every row its number in the run and its language."""

    indices: list[int]
    languages: list[str]
    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor

    @staticmethod
    def of(indices: list[int], rows: list[tuple[str, Packed]]) -> "Batch":
        """Stack B sequences of T tokens; `rows` are pairs of language and sequence."""
        stacked = [np.stack(field) for field in zip(*((s.input_ids, s.labels, s.position_ids) for _, s in rows), strict=True)]
        return Batch(indices, [name for name, _ in rows], *map(torch.from_numpy, stacked))


def shares(
    sizes: Mapping[str, int], language: str, originals: Sequence[str], original_frac: float, given: Mapping[str, float]
) -> dict[str, float]:
    """Source (`<language>/<domain>`) -> its share of all tokens. The shares sum to one.

    `sizes` has the number of sequences of each source. `given` fixes the shares of some languages or sources. The others are
    set like this: the original languages together get `original_frac`, divided equally; the new language gets the rest; the
    sources of one language share its part by their size.
    Raises ConfigError for unknown names, for shares that do not add up, and for `original_frac` without original text.
    """
    codes = [code for code in (language, *originals) if any(name.split("/")[0] == code for name in sizes)]
    unknown = next((name for name in given if name not in (*codes, *sizes)), None)
    if unknown:
        close = near(unknown, [*codes, *sizes])
        raise ConfigError(f"shares: nothing to train on is called {unknown!r}.{close}", at=("shares",))
    if original_frac and not set(codes) & set(originals):
        raise ConfigError(
            f"original_frac is {original_frac}, but there is no training text of {', '.join(originals) or 'another language'}; "
            "add a source or set original_frac (and original_first_frac) to 0",
            at=("original_frac",),
        )
    by_language = _languages([code for code in codes if code != language], original_frac, given)
    by_language[language] = given.get(language, 1 - sum(by_language.values()))
    if abs(sum(by_language.values()) - 1) > 1e-6:  # possible when `given` fixes the new language as well
        shown = ", ".join(f"{code} {share:.3g}" for code, share in by_language.items())
        raise ConfigError(f"shares: those of all languages must sum to 1; they are {shown}", at=("shares",))
    by_source: dict[str, float] = {}
    for code, share in by_language.items():
        of_code = {name: size for name, size in sizes.items() if name.split("/")[0] == code}
        by_source |= _sources(code, share, of_code, given)
    return by_source


def _languages(originals: Sequence[str], original_frac: float, given: Mapping[str, float]) -> dict[str, float]:
    """Original language -> its share: the given one, or an equal part of what those leave of `original_frac`."""
    fixed = {code: given[code] for code in originals if code in given}
    free = [code for code in originals if code not in given]
    left = original_frac - sum(fixed.values())
    if left < -1e-9:  # below zero by more than a rounding error
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
    """Source of one language -> its share: the given one, or a part, by size, of what those leave of the language's share."""
    fixed = {name: given[name] for name in sizes if name in given}
    free = {name: size for name, size in sizes.items() if name not in given}
    left = share - sum(fixed.values())
    if left < -1e-9 or (not free and left > 1e-6):
        raise ConfigError(
            f"shares: the sources of {code} have {sum(fixed.values()):.3g}, the language {share:.3g}", at=("shares",)
        )
    total = sum(free.values())
    if free and not total:
        raise ConfigError(f"shares: {', '.join(free)}: not one whole sequence to train on", at=("shares",))
    return fixed | {name: max(0.0, left) * size / total for name, size in free.items()}
