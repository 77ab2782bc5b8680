"""Differences of two evaluations: paired where they can be, with honest p-values."""

import json
from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest

from langext.artifacts import write_json
from langext.errors import ConfigError
from langext.evaluation import scores, significance
from langext.evaluation.scores import BpbScore, Metric, ScoresFile


def bits(each, sizes=None):
    sizes = sizes or [1000] * len(each)
    value = sum(each) / sum(sizes)
    return BpbScore(value=value, stderr=0.1, bytes=sum(sizes), passages=len(each), bits_each=list(each), bytes_each=sizes)


def file(french=None, task=None):
    found = {"fra_Latn/book": french} if french else {}
    return ScoresFile(bits_per_byte=found, tasks={"arc": {"acc": task}} if task else {})


def metric(each, keep=True):
    spread = float(np.std(each) / len(each) ** 0.5)
    return Metric(value=float(np.mean(each)), stderr=spread, items=len(each), each=list(map(float, each)) if keep else None)


def test_a_small_change_of_every_passage_is_no_noise():
    dice = np.random.default_rng(1)
    before = dice.normal(1000, 300, 60)  # passages differ far more than the two models do
    after = before - dice.normal(10, 5, 60)
    (change,) = significance.bits(file(bits(before)), file(bits(after)))
    assert change.difference.paired and change.verdict == "better" and change.difference.p < 0.001
    more = after - before
    assert change.difference.value == pytest.approx(more.mean() / 1000)
    assert change.difference.stderr == pytest.approx(more.std() / 60**0.5 / 1000, rel=0.05)
    assert change.difference.low < change.difference.value < change.difference.high < 0


@pytest.mark.parametrize("passages", [2, 3, 8, 19, 20, 40])
def test_one_in_twenty_changes_of_nothing_is_called_significant(passages):
    dice = np.random.default_rng(2)
    called = 0
    for _ in range(400):
        before = dice.normal(1000, 300, passages)
        (change,) = significance.bits(file(bits(before)), file(bits(before + dice.normal(0, 20, passages))))
        called += not change.in_noise
    assert 8 <= called <= 36  # 20 on average; the bootstrap of 20 passages is a little generous


def test_few_passages_of_unlike_size_have_the_error_of_a_ratio():
    dice = np.random.default_rng(4)
    sizes, found = [400, 1600, 1000, 900, 1100], []
    for _ in range(2000):
        found.append(sum(dice.normal(0.1, 0.02, 5) * sizes) / sum(sizes))
    before = np.array(sizes, dtype=float)
    after = before + dice.normal(0.1, 0.02, 5) * sizes
    (change,) = significance.bits(file(bits(before, sizes)), file(bits(after, sizes)))
    assert 0.3 < change.difference.stderr / np.std(found) < 2
    assert change.difference.high - change.difference.low == pytest.approx(2 * 2.776 * change.difference.stderr, rel=1e-3)


def test_what_is_not_known_is_called_neither_better_nor_worse():
    one = BpbScore(value=1.0, stderr=None, bytes=1000, passages=1, bits_each=[1000], bytes_each=[1000])
    (single,) = significance.bits(file(one), file(one.model_copy(update={"value": 1.0001, "bits_each": [1000.1]})))
    assert single.verdict == "unknown" and np.isnan(single.difference.p)
    assert not significance.mean([single]).sure
    few = [bits([1000.0, 1100.0, 900.0]), bits([950.0, 1080.0, 860.0])]
    (change,) = significance.bits(file(few[0]), file(few[1]))
    alone = significance.mean([change])
    assert alone.high - alone.low == pytest.approx((change.difference.high - change.difference.low) / change.before)
    broken = bits([1000.0, 1100.0, 1000.0]).model_copy(update={"value": float("nan"), "bits_each": [float("nan")] * 3})
    (nothing,) = significance.bits(file(bits([1000.0, 1100.0, 1000.0])), file(broken))
    assert nothing.verdict == "unmeasured"
    assert significance.unbeaten([(float("nan"), 0.0), (0.1, 0.1)]) == [1]


def test_items_of_tasks_are_paired_and_others_are_not():
    dice = np.random.default_rng(3)
    before = (dice.random(400) < 0.5).astype(float)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:14]] = 1  # 14 items more, none fewer
    (paired,) = significance.tasks(file(task=metric(before)), file(task=metric(after)))
    assert paired.verdict == "better" and paired.difference.paired
    (apart,) = significance.tasks(file(task=metric(before, keep=False)), file(task=metric(after, keep=False)))
    assert apart.verdict == "noise" and not apart.difference.paired
    assert apart.difference.stderr == pytest.approx(2**0.5 * 0.025, rel=0.02)


def test_few_changed_answers_are_no_evidence():
    before = np.zeros(100)
    for changed, p in ((4, 0.5**4), (6, 0.5**6)):  # a coin that falls on one side every time, one half of it, twice
        after = before.copy()
        after[:changed] = 1
        (change,) = significance.tasks(file(task=metric(before)), file(task=metric(after)))
        assert change.difference.value == changed / 100 and change.difference.p == pytest.approx(p)
        assert change.verdict == ("noise" if p > 0.05 else "better")
    (both,) = significance.tasks(file(task=metric([0, 0])), file(task=metric([1, 1])))
    assert both.verdict == "noise" and both.difference.low < 0 < both.difference.high == 1
    (none,) = significance.tasks(file(task=metric([0, 1, 1, 0])), file(task=metric([0, 1, 1, 0])))
    assert none.difference.p == 1 and none.difference.high == -none.difference.low == pytest.approx(1.96 / 6)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_one_in_twenty_changes_of_answers_at_most_is_called_significant(share):
    dice = np.random.default_rng(5)
    called = covered = 0
    for _ in range(400):
        before, coin = np.zeros(100), dice.random(100)
        before[coin < share / 2] = 1
        after = np.where(coin < share, 1 - before, before)
        (change,) = significance.tasks(file(task=metric(before)), file(task=metric(after)))
        called += change.verdict != "noise"
        covered += change.difference.low <= 0 <= change.difference.high
    assert called <= 28 and covered >= 370 and abs(called - (400 - covered)) <= 6  # p and interval say the same


def test_other_items_are_not_paired():
    one, other = metric([0, 1, 1, 0]), metric([1, 1, 1, 1])
    (same,) = significance.tasks(file(task=one), file(task=other))
    (apart,) = significance.tasks(file(task=one), file(task=other.model_copy(update={"items_hash": "of others"})))
    assert same.difference.paired and not apart.difference.paired


def test_bits_per_byte_of_a_task_are_paired_by_their_bytes():
    dice = np.random.default_rng(6)
    sizes = dice.integers(500, 1500, 40).astype(float)
    before = sizes * dice.normal(1, 0.3, 40)
    after = before - sizes * dice.normal(0.1, 0.02, 40)

    def task(each):
        value = each.sum() / sizes.sum()
        return Metric(
            value=value, stderr=None, items=40, higher_is_better=False, each=each.tolist(), weight_each=sizes.tolist()
        )

    (change,) = significance.tasks(file(task=task(before)), file(task=task(after)))
    assert change.verdict == "better" and change.difference.value == pytest.approx(-0.1, abs=0.01)
    alone = task(before).model_copy(update={"each": None})
    (unpaired,) = significance.tasks(file(task=alone), file(task=task(after)))
    assert unpaired.verdict == "unknown"


def test_what_is_worse_by_chance_among_many_is_not_surely_worse():
    dice = np.random.default_rng(7)

    def change(p):
        return significance.Change("x", 1.0, 0.1, 1.1, 0.1, significance.Difference(0.1, 0.1, 0, 1, p, True), False)

    rows = [change(p) for p in (0.04, *dice.uniform(0.1, 1, 9))]
    assert rows[0].verdict == "worse" and significance.surely_worse(rows) == []
    assert significance.surely_worse([change(0.004), *rows[1:]]) != []


def test_other_passages_are_not_paired_and_nothing_measured_twice_is_no_change():
    one, other = bits([100.0, 120.0, 90.0]), bits([100.0, 120.0, 90.0], [1000, 900, 1100])
    assert not next(significance.bits(file(one), file(other))).difference.paired
    (same,) = significance.bits(file(one), file(one))
    assert same.in_noise and same.difference.value == 0 and same.difference.p == 1
    assert list(significance.bits(None, file(one))) == [] and list(significance.bits(file(one), file())) == []


def test_the_schema_in_the_docs_is_that_of_the_file():
    written = json.loads((Path(__file__).parent.parent.parent / "docs" / "scores.schema.json").read_text())
    assert written == ScoresFile.model_json_schema()


def test_scores_of_another_version_are_refused(tmp_path):
    write_json(tmp_path / "scores.json", {"bits_per_byte": {}, "tasks": {}, "samples": []})
    with pytest.raises(ConfigError, match="another version of langext"):
        scores.read_file(tmp_path / "scores.json")


def test_the_largest_of_what_nobody_knows_is_unknown():
    assert isnan(significance.largest([0.1, nan])) and isnan(significance.largest([nan, 0.1]))
    assert significance.largest([0.1, 0.3, 0.2]) == 0.3
