"""A figure before and after, and whether the difference is more than noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import erfc, inf, isfinite, isnan, nan, sqrt

import numpy as np
from scipy.stats import binom, binomtest
from scipy.stats import t as student

from langext.evaluation.scores import BpbScore, Metric, ScoresFile

RESAMPLES = 5000
FEW = 20
"""With fewer passages or items than this the bootstrap's intervals are too narrow, and Student's t takes its place."""
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Difference:
    """After - before."""

    value: float
    stderr: float
    low: float
    high: float
    """The 95 % confidence interval."""
    p: float
    """Two-sided: how often no true change would look at least as large."""
    paired: bool
    """Measured on the same passages or items, so that these do not add to the noise."""


@dataclass(frozen=True)
class Change:
    """One figure of two evaluations."""

    name: str
    before: float
    before_stderr: float
    after: float
    after_stderr: float
    difference: Difference
    higher_is_better: bool

    @property
    def relative(self) -> float:
        """Change as a share of the value before; nan from zero."""
        return self.difference.value / self.before if self.before else float("nan")

    @property
    def in_noise(self) -> bool:
        """Could it well be chance? False where that is not known."""
        return self.difference.p >= SIGNIFICANT

    @property
    def better(self) -> bool:
        """Is the figure after the better one?"""
        return (self.difference.value > 0) == self.higher_is_better

    @property
    def verdict(self) -> str:
        """better, worse or noise; unknown where no error is known, unmeasured for what is no number."""
        if not isfinite(self.difference.value):
            return "unmeasured"
        if not isfinite(self.difference.p):
            return "unknown"
        return "noise" if self.in_noise else "better" if self.better else "worse"


def bits(before: ScoresFile | None, after: ScoresFile | None) -> Iterator[Change]:
    """The changes in bits per byte of all sets that both measured."""
    if not (before and after):
        return
    for name, now in after.bits_per_byte.items():
        if then := before.bits_per_byte.get(name):
            found = _of_bits(then, now)
            yield Change(name, then.value, _error(then), now.value, _error(now), found, higher_is_better=False)


def tasks(before: ScoresFile | None, after: ScoresFile | None) -> Iterator[Change]:
    """The changes in all task figures that both measured."""
    if not (before and after):
        return
    for task, metrics in after.tasks.items():
        for metric, now in metrics.items():
            if then := before.tasks.get(task, {}).get(metric):
                found = _of_metrics(then, now)
                name = f"{task}, {metric}"
                yield Change(name, then.value, _error(then), now.value, _error(now), found, now.higher_is_better)


@dataclass(frozen=True)
class Mean:
    """The mean of several changes with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __neg__(self) -> "Mean":
        return Mean(-self.value, -self.high, -self.low)

    @property
    def sure(self) -> bool:
        """Is zero outside the interval? False where that is not known."""
        return self.low > 0 or self.high < 0


def mean(rows: Sequence[Change]) -> Mean | None:
    """The mean relative change, each row counting alike; None of nothing. The rows are of different texts, so independent."""
    found = [(row.difference, row.before) for row in rows if row.before]
    return _mean([Mean(*(x / before for x in (d.value, d.low, d.high))) for d, before in found])


def worst(rows: Sequence[Change]) -> Change | None:
    """The one of the largest relative increase, which a mean would hide; noise or not. What is no number is the worst. None of
    nothing.
    """
    return max(rows, key=lambda row: inf if isnan(row.relative) else row.relative, default=None)


def surely_worse(rows: Sequence[Change]) -> list[Change]:
    """Those that are worse beyond noise though one looked at all of them: by Bonferroni."""
    return [row for row in rows if row.verdict == "worse" and row.difference.p < SIGNIFICANT / len(rows)]


def gain(rows: Sequence[Change]) -> Mean | None:
    """The mean absolute change for the better, likewise."""
    plain = [(Mean(row.difference.value, row.difference.low, row.difference.high), row.higher_is_better) for row in rows]
    return _mean([change if good else -change for change, good in plain])


def _mean(found: Sequence[Mean]) -> Mean | None:
    if len(found) < 2:
        return found[0] if found else None
    value = sum(change.value for change in found) / len(found)
    half = sqrt(sum(((change.high - change.low) / 2) ** 2 for change in found)) / len(found)
    return Mean(value, value - half, value + half)


def unbeaten(pairs: Sequence[tuple[float, float]]) -> list[int]:
    """Which of (learned, forgotten) no other one beats, by learning as much, forgetting as little, and one of both more."""

    def beaten(pair: tuple[float, float]) -> bool:
        return any(more >= pair[0] and less <= pair[1] and (more, less) != pair for more, less in pairs)

    return [k for k, pair in enumerate(pairs) if all(map(isfinite, pair)) and not beaten(pair)]


def _error(figure: BpbScore | Metric) -> float:
    return nan if figure.stderr is None else figure.stderr


def _of_bits(then: BpbScore, now: BpbScore) -> Difference:
    if then.bytes_each != now.bytes_each or len(now.bytes_each) < 2:
        return _unpaired(then.value, _error(then), now.value, _error(now))
    return _paired(np.subtract(now.bits_each, then.bits_each), np.array(now.bytes_each, dtype=float))


def _of_metrics(then: Metric, now: Metric) -> Difference:
    same = then.items_hash == now.items_hash and then.weight_each == now.weight_each
    if not (same and then.each and now.each and len(then.each) == len(now.each) >= 2):
        return _unpaired(then.value, _error(then), now.value, _error(now))
    if now.weight_each is None and set(then.each) | set(now.each) <= {0.0, 1.0}:
        return _paired_answers(np.subtract(now.each, then.each))
    return _paired(np.subtract(now.each, then.each), np.array(now.weight_each or np.ones(len(now.each))))


def _paired_answers(more: np.ndarray) -> Difference:
    """Of items that are right or wrong. `more` is 1 where one became right, -1 where one became wrong.

    p is the mid-p of McNemar's test, https://doi.org/10.1186/1471-2288-13-91 (a sign test of the changed answers); stderr and
    interval are those of Agresti and Min, https://doi.org/10.1002/sim.1781: Wald's with half an item more in each cell of the
    2 x 2 table.
    """
    count, right, wrong = len(more), int((more > 0).sum()), int((more < 0).sum())
    middle = (right - wrong) / (count + 2)
    stderr = sqrt((right + wrong + 1 - (right - wrong) ** 2 / (count + 2)) / (count + 2) ** 2)
    low, high = max(-1.0, middle - 1.96 * stderr), min(1.0, middle + 1.96 * stderr)
    half_tail = float(binom.pmf(right, right + wrong, 0.5))
    if not right + wrong:
        return _none(paired=True)
    p = 1 - half_tail / 2 if right == wrong else float(binomtest(right, right + wrong).pvalue) - half_tail
    return Difference((right - wrong) / count, stderr, low, high, p, paired=True)


def _paired(more: np.ndarray, weight: np.ndarray, seed: int = 0) -> Difference:
    """sum(more) / sum(weight) with a bootstrap over the passages or items, https://doi.org/10.1201/9780429246593."""
    value = float(more.sum() / weight.sum())
    if not isfinite(value):
        return _unknown(value, paired=True)
    if len(more) < FEW:
        return _few(value, more, weight)
    dice, means = np.random.default_rng(seed), []
    for _ in range(RESAMPLES // 100):  # in parts: a large task has many items
        picks = dice.integers(len(more), size=(100, len(more)))
        means.append(more[picks].sum(1) / weight[picks].sum(1))
    found = np.concatenate(means)
    low, high = np.quantile(found, (0.025, 0.975))
    tail = (min((found <= 0).sum(), (found >= 0).sum()) + 1) / (len(found) + 1)
    return Difference(value, float(found.std(ddof=1)), float(low), float(high), min(1.0, 2 * float(tail)), paired=True)


def _few(value: float, more: np.ndarray, weight: np.ndarray) -> Difference:
    """Student's t with the linearised variance of a ratio of sums (Cochran, Sampling Techniques, 1977, section 6.4). Where all
    changes are the same, there is no telling how far another would be.
    """
    count = len(more)
    stderr = sqrt(count / (count - 1) * float(((more - value * weight) ** 2).sum())) / float(weight.sum())
    if stderr < 1e-9:
        return _unknown(value, paired=True) if value else _none(paired=True)
    half = float(student.ppf(0.975, count - 1)) * stderr
    p = 2 * float(student.sf(abs(value) / stderr, count - 1))
    return Difference(value, stderr, value - half, value + half, p, paired=True)


def _unpaired(then: float, then_stderr: float, now: float, now_stderr: float) -> Difference:
    """By the normal distribution, as if both were measured apart. Where no error is known, neither interval nor p is."""
    value, stderr = now - then, sqrt(then_stderr**2 + now_stderr**2)
    if not (isfinite(value) and isfinite(stderr)):
        return _unknown(value, paired=False)
    if not stderr:  # as of items that are all right
        return _unknown(value, paired=False) if value else _none(paired=False)
    p = erfc(abs(value) / stderr / sqrt(2))
    return Difference(value, stderr, value - 1.96 * stderr, value + 1.96 * stderr, p, paired=False)


def _unknown(value: float, *, paired: bool) -> Difference:
    """A change whose error nobody knows."""
    return Difference(value, nan, nan, nan, nan, paired)


def _none(*, paired: bool) -> Difference:
    """No change at all."""
    return Difference(0.0, 0.0, 0.0, 0.0, 1.0, paired)
