"""Compare a measured value before and after, and tell whether the difference is more than noise.

Rule: measurements on the same passages or items are compared in pairs. Errors that are unknown are nan, never guessed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import erfc, inf, isfinite, isnan, nan, sqrt

import numpy as np
from scipy.stats import binom, binomtest
from scipy.stats import t as student

from langext.evaluation import ratio
from langext.evaluation.scores import KL, BpbScore, Metric, ScoresFile

RESAMPLES = 5000
FEW = 20
"""With fewer passages or items, bootstrap intervals are too narrow; Student's t is used instead."""
SIGNIFICANT = 0.05
"""A change with a p below this is significant."""


@dataclass(frozen=True)
class Difference:
    """The value after minus the value before, with its uncertainty."""

    value: float
    stderr: float
    low: float
    high: float
    """End of the 95 % confidence interval, which begins at `low`."""
    p: float
    """Two-sided p value: how probable a difference at least this large is if there is no true change."""
    paired: bool
    """True when both were measured on the same passages or items, so that the choice of these adds no noise."""


@dataclass(frozen=True)
class Change:
    """One measured value in two evaluations."""

    name: str
    before: float
    before_stderr: float
    after: float
    after_stderr: float
    difference: Difference
    higher_is_better: bool

    @property
    def relative(self) -> float:
        """The change as a share of the value before; nan when that is zero."""
        return self.difference.value / self.before if self.before else float("nan")

    @property
    def in_noise(self) -> bool:
        """True when the change may well be chance. False when its error is not known."""
        return self.difference.p >= SIGNIFICANT

    @property
    def better(self) -> bool:
        """True when the value after is better than the value before, significant or not."""
        return (self.difference.value > 0) == self.higher_is_better

    @property
    def verdict(self) -> str:
        """better, worse or noise; unknown when the error is not known, unmeasured when a value is not a finite number."""
        if not isfinite(self.difference.value):
            return "unmeasured"
        if not isfinite(self.difference.p):
            return "unknown"
        return "noise" if self.in_noise else "better" if self.better else "worse"


def bits(before: ScoresFile | None, after: ScoresFile | None) -> Iterator[Change]:
    """Yield the change in bits per byte of every set of the run's languages that both files contain."""
    if before and after:
        yield from _changes(before, after, after.bits_per_byte)


def others(before: ScoresFile | None, after: ScoresFile | None) -> Iterator[Change]:
    """Yield the same of every set that is not of the run's languages."""
    if before and after:
        yield from _changes(before, after, after.others)


def _changes(before: ScoresFile, after: ScoresFile, names: Iterable[str]) -> Iterator[Change]:
    for name in names:
        now = after.sets[name]
        if then := before.sets.get(name):
            difference = _of_bits(then, now)
            yield Change(name, then.value, _error(then), now.value, _error(now), difference, higher_is_better=False)


def tasks(before: ScoresFile | None, after: ScoresFile | None) -> Iterator[Change]:
    """Yield the change of every task metric that both files contain."""
    if not (before and after):
        return
    for task, metrics in after.tasks.items():
        for metric, now in metrics.items():
            if then := before.tasks.get(task, {}).get(metric):
                difference = _of_metrics(then, now)
                name = f"{task}, {metric}"
                yield Change(name, then.value, _error(then), now.value, _error(now), difference, now.higher_is_better)


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
        """True when zero is outside the interval. False when the interval is not known."""
        return self.low > 0 or self.high < 0


def mean(rows: Sequence[Change]) -> Mean | None:
    """The mean relative change, with equal weight for each row; None without rows.

    The rows come from different texts, so their errors are taken as independent.
    """
    pairs = [(row.difference, row.before) for row in rows if row.before]
    return _mean([Mean(*(x / before for x in (d.value, d.low, d.high))) for d, before in pairs])


def worst(rows: Sequence[Change]) -> Change | None:
    """The row with the largest relative increase, significant or not; None without rows. A mean would hide it.

    A row whose change is not a number counts as the largest increase.
    """
    return max(rows, key=lambda row: unknown_last(row.relative), default=None)


def unknown_last(value: float) -> float:
    """A key to order values by: nan comes after all others, because nobody knows how large it is."""
    return inf if isnan(value) else value


def largest(values: Sequence[float]) -> float:
    """The largest value; nan if one of them is nan."""
    return max(values, key=unknown_last)


def interval(value: float, stderr: float | None, passages: int | None) -> Mean:
    """A value measured over passages with its 95 % interval; unknown (nan) without a standard error."""
    half = nan if stderr is None else ratio.half(stderr, passages)
    return Mean(value, value - half, value + half)


def farthest(languages: Sequence[str], found: Mapping[str, KL]) -> Mean | None:
    """The largest KL of any of these languages with its interval: nan when one was not measured, None when none was."""
    if not found:
        return None
    if not set(languages) <= set(found):
        return Mean(nan, nan, nan)
    worst = max(found.values(), key=lambda kl: unknown_last(kl.value))
    return interval(worst.value, worst.stderr, worst.passages)


def surely_worse(rows: Sequence[Change]) -> list[Change]:
    """The rows that are significantly worse after the Bonferroni correction for the number of rows."""
    return [row for row in rows if row.verdict == "worse" and row.difference.p < SIGNIFICANT / len(rows)]


def gain(rows: Sequence[Change]) -> Mean | None:
    """The mean absolute improvement, with equal weight for each row; None without rows. A positive value is better."""
    plain = [(Mean(row.difference.value, row.difference.low, row.difference.high), row.higher_is_better) for row in rows]
    return _mean([change if good else -change for change, good in plain])


def _mean(changes: Sequence[Mean]) -> Mean | None:
    if len(changes) < 2:  # keep the interval of a single change as it is: it need not be symmetric
        return changes[0] if changes else None
    value = sum(change.value for change in changes) / len(changes)
    # Errors of independent values add up as squares, and half an interval is proportional to the error.
    half = sqrt(sum(((change.high - change.low) / 2) ** 2 for change in changes)) / len(changes)
    return Mean(value, value - half, value + half)


def unbeaten(pairs: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the pairs (learned, forgotten) on the Pareto front.

    A pair is beaten by a different pair that learned at least as much and forgot at most as much.
    """

    def beaten(pair: tuple[float, float]) -> bool:
        return any(more >= pair[0] and less <= pair[1] and (more, less) != pair for more, less in pairs)

    return [k for k, pair in enumerate(pairs) if all(map(isfinite, pair)) and not beaten(pair)]


def _error(figure: BpbScore | Metric) -> float:
    return nan if figure.stderr is None else figure.stderr


def _of_bits(then: BpbScore, now: BpbScore) -> Difference:
    # Other byte counts mean other passages, which cannot be paired.
    if then.bytes_each != now.bytes_each or len(now.bytes_each) < 2:
        return _unpaired(then.value, _error(then), now.value, _error(now))
    return _paired(np.subtract(now.bits_each, then.bits_each), np.array(now.bytes_each, dtype=float))


def _of_metrics(then: Metric, now: Metric) -> Difference:
    same = then.items_hash == now.items_hash and then.weight_each == now.weight_each
    if not (same and then.each and now.each and len(then.each) == len(now.each) >= 2):
        return _unpaired(then.value, _error(then), now.value, _error(now))
    # Right or wrong is all that some metrics know; for these an exact test exists.
    if now.weight_each is None and set(then.each) | set(now.each) <= {0.0, 1.0}:
        return _paired_answers(np.subtract(now.each, then.each))
    return _paired(np.subtract(now.each, then.each), np.array(now.weight_each or np.ones(len(now.each))))


def _paired_answers(more: np.ndarray) -> Difference:
    """The difference for right or wrong answers. `more` is 1 for an item that became right, -1 for one that became wrong.

    p is the mid-p value of McNemar's test, https://doi.org/10.1186/1471-2288-13-91 (a sign test of the changed answers). The
    standard error and the interval follow Agresti and Min, https://doi.org/10.1002/sim.1781: they are Wald's, with half an item
    added to each cell of the 2 x 2 table.
    """
    count, right, wrong = len(more), int((more > 0).sum()), int((more < 0).sum())
    middle = (right - wrong) / (count + 2)
    stderr = sqrt((right + wrong + 1 - (right - wrong) ** 2 / (count + 2)) / (count + 2) ** 2)
    low, high = max(-1.0, middle - 1.96 * stderr), min(1.0, middle + 1.96 * stderr)
    p_observed = float(binom.pmf(right, right + wrong, 0.5))
    if not right + wrong:  # no answer has changed, which of few items says little
        return Difference(0.0, stderr, low, high, 1.0, paired=True)
    # With as many right as wrong the observed result is both tails at once, so only half of its probability is subtracted.
    p = 1 - p_observed / 2 if right == wrong else float(binomtest(right, right + wrong).pvalue) - p_observed
    return Difference((right - wrong) / count, stderr, low, high, p, paired=True)


def _paired(more: np.ndarray, weight: np.ndarray, seed: int = 0) -> Difference:
    """sum(more) / sum(weight), its error by bootstrap over passages or items, https://doi.org/10.1201/9780429246593."""
    value = float(more.sum() / weight.sum())
    if not isfinite(value):
        return _unknown(value, paired=True)
    if len(more) < FEW:
        return _few(value, more, weight)
    dice, means = np.random.default_rng(seed), []
    for _ in range(RESAMPLES // 100):  # 100 at a time: all picks of a large task would not fit in memory
        picks = dice.integers(len(more), size=(100, len(more)))
        means.append(more[picks].sum(1) / weight[picks].sum(1))
    resampled = np.concatenate(means)
    low, high = np.quantile(resampled, (0.025, 0.975))
    # One is added on both sides, so that p is never zero: a finite number of resamples cannot show that.
    tail = (min((resampled <= 0).sum(), (resampled >= 0).sum()) + 1) / (len(resampled) + 1)
    return Difference(value, float(resampled.std(ddof=1)), float(low), float(high), min(1.0, 2 * float(tail)), paired=True)


def _few(value: float, more: np.ndarray, weight: np.ndarray) -> Difference:
    """Student's t. When all changes are equal, their variance says nothing about other items: the error is then unknown."""
    stderr = ratio.error(more, weight)
    if stderr < 1e-9:
        return _unknown(value, paired=True) if value else _none(paired=True)
    half = ratio.half(stderr, len(more))
    p = 2 * float(student.sf(abs(value) / stderr, len(more) - 1))
    return Difference(value, stderr, value - half, value + half, p, paired=True)


def _unpaired(then: float, then_stderr: float, now: float, now_stderr: float) -> Difference:
    """The difference of two independent measurements, by the normal distribution. Without both errors, p is nan."""
    value, stderr = now - then, sqrt(then_stderr**2 + now_stderr**2)
    if not (isfinite(value) and isfinite(stderr)):
        return _unknown(value, paired=False)
    if not stderr:  # for example when all items are right
        return _unknown(value, paired=False) if value else _none(paired=False)
    p = erfc(abs(value) / stderr / sqrt(2))
    return Difference(value, stderr, value - 1.96 * stderr, value + 1.96 * stderr, p, paired=False)


def _unknown(value: float, *, paired: bool) -> Difference:
    """A change with an unknown error."""
    return Difference(value, nan, nan, nan, nan, paired)


def _none(*, paired: bool) -> Difference:
    """No change: zero, with certainty."""
    return Difference(0.0, 0.0, 0.0, 0.0, 1.0, paired)
