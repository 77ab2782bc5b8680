"""Which weights become the model: what is not a number never does, and a budget that nothing keeps to is not kept to."""

import json
from contextlib import nullcontext
from math import inf, nan
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from langext.context import Context
from langext.errors import ConfigError, RunFailed
from langext.stages.train import Train
from langext.training import selection
from langext.training.loop import Loop
from langext.training.metrics import Log
from langext.training.selection import BestWeights, Evaluation, ForgettingBudget, SetEvaluation, mean_ratio


def evaluation(french, english, kl=None):
    sets = {"fra_Latn/book": french, "eng_Latn/book": english}
    return Evaluation(
        sets={name: SetEvaluation(bits_per_byte=value) for name, value in sets.items()}, weights={}, kl_to_base=kl
    )


@pytest.mark.parametrize("first", [nan, inf, -inf, 0.9])
@pytest.mark.parametrize("then", [nan, inf, -inf])
def test_a_score_that_is_no_number_never_becomes_best(tmp_path, first, then):
    best, weights = BestWeights(tmp_path), {"w": torch.ones(2)}
    best.offer(0, first, evaluation(1.0, 1.0), lambda: weights, 0)
    best.offer(1, then, evaluation(1.0, 1.0), lambda: {"w": torch.zeros(2)}, 0)
    assert (best.kept is not None) == (first == 0.9)
    best.offer(2, 0.8, evaluation(1.0, 1.0), lambda: {"w": torch.full((2,), 2.0)}, 0)
    best.offer(3, 0.85, evaluation(1.0, 1.0), lambda: {"w": torch.zeros(2)}, 0)
    assert best.kept is not None and best.kept.step == 2 and best.weights()["w"].tolist() == [2.0, 2.0]
    again = BestWeights(tmp_path)
    again.offer(2, 0.8001, evaluation(1.0, 1.0), lambda: weights, 0)  # made again after a resume, and not quite the same
    assert again.kept == best.kept and again.weights()["w"].tolist() == [2.0, 2.0]


def test_a_kill_while_the_best_weights_are_written_leaves_the_former_ones(tmp_path, monkeypatch):
    best = BestWeights(tmp_path)
    best.offer(1, 0.9, evaluation(1.0, 1.0), lambda: {"w": torch.ones(2)}, 0)
    monkeypatch.setattr(selection.os, "replace", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"):
        best.offer(2, 0.8, evaluation(1.0, 1.0), lambda: {"w": torch.zeros(2)}, 0)
    again = BestWeights(tmp_path)
    assert again.kept is not None and again.kept.step == 1 and again.weights()["w"].tolist() == [1.0, 1.0]


def test_a_budget_that_allows_everything_is_refused():
    with pytest.raises(ValidationError, match="needs bpb, kl or both"):
        ForgettingBudget(then="go_on")
    for odd in ("nan%", "inf%", nan, inf, 0, -0.1, "much%"):
        with pytest.raises(ValidationError):
            ForgettingBudget(bpb=odd)


def test_what_was_not_measured_is_not_within_the_budget():
    budget = ForgettingBudget(bpb="0.5%", kl=0.1)
    assert budget.kept(0.005, 0.1) and not budget.kept(0.006, 0.1) and not budget.kept(0.005, 0.11)
    assert not any(budget.kept(*values) for values in ((nan, 0.0), (0.0, nan), (0.0, None), (inf, 0.0), (0.0, inf)))
    assert ForgettingBudget(bpb=0.01).kept(0.01, None) and not ForgettingBudget(kl=0.1).kept(0.0, None)
    zero = {"eng_Latn/book": 0.0}
    assert not budget.kept(mean_ratio(zero, zero, ("eng_Latn",)) - 1, 0.0)


class Watched:
    """Stands for the measurements: gives those of a list, one after the other."""

    def __init__(self, found):
        self.measure = iter(found).__next__


class Alone:
    """Stands for the engine of a single process that has no weights to gather."""

    def averaged(self):
        return nullcontext()

    gathered = averaged

    def masters(self):
        return {"w": torch.ones(1)}

    def report(self, tokens, values):
        pass

    def from_first(self, value):
        return value


def run(tmp_path, found, base=None, **settings):
    """A training that makes no steps, with one evaluation for each of `found`; all its evaluations have been made.

    `base` has bits per byte of original text by the base, where these are not those of the first evaluation.
    """
    stage = Train(**{"uses": "train", "steps": 9, "lr": 1.0, **settings})
    tmp_path.mkdir(exist_ok=True)
    ctx, loop = Context(tmp_path, 1, "fra_Latn", ("eng_Latn",)), Loop.__new__(Loop)
    checkpoints = SimpleNamespace(steps=lambda: [4])
    loop.settings, loop.ctx, loop.engine, loop.start, loop.evaluating = stage, ctx, Alone(), None, 0.0
    loop.log, loop.last, best = Log(ctx, 0), stage.steps, BestWeights(tmp_path)
    loop.session = SimpleNamespace(
        watch=Watched(found), step_tokens=10, best=best, checkpoints=checkpoints, base_bits=base or {}
    )
    for step in range(len(found)):
        loop._evaluate(step)
        if step == loop.last:
            break
    return loop


def test_the_best_evaluation_within_the_budget_becomes_the_model(tmp_path, capsys):
    found = [evaluation(2.0, 1.0), evaluation(1.8, 1.004), evaluation(1.5, 1.02)]
    loop = run(tmp_path, found, forgetting_budget={"bpb": "0.5%"})
    assert loop._chosen().step == 1 and loop.last == 2
    assert "that of step 1, the best evaluation within the forgetting budget" in capsys.readouterr().out


def test_what_new_tokens_cost_before_any_training_counts_against_the_budget(tmp_path):
    found = [evaluation(2.0, 1.02), evaluation(1.8, 1.01), evaluation(1.5, 1.03)]
    loop = run(tmp_path, found, {"eng_Latn/book": 1.0}, forgetting_budget={"bpb": "1.5%", "then": "go_on"})
    assert loop._chosen().step == 1


def test_the_untrained_model_is_called_that(tmp_path, capsys):
    found = [evaluation(2.0, 1.0), evaluation(1.8, 1.03), evaluation(1.5, 1.02)]
    loop = run(tmp_path, found, forgetting_budget={"bpb": "0.5%", "then": "go_on"})
    assert loop._chosen().step == 0
    said = capsys.readouterr().out
    assert "warning: no training step made it better within the forgetting budget" in said
    assert "smallest increase seen: original bits per byte +2.00%; the model is the untrained one of step 0" in said


@pytest.mark.parametrize("then", ["stop", "go_on"])
def test_without_an_evaluation_within_the_budget_there_is_no_model(tmp_path, then):
    found = [evaluation(2.0, 1.0, 0.5), evaluation(1.8, 1.01, 0.4)]
    loop = run(tmp_path, found, forgetting_budget={"kl": 0.1, "then": then})
    with pytest.raises(RunFailed) as caught:
        loop._chosen()
    kl = {"stop": "0.5000", "go_on": "0.4000"}[then]
    assert f"smallest increase seen: original bits per byte +0.00%, KL {kl} nats per token" in str(caught.value)
    assert "the last good checkpoint is of step 4" in str(caught.value) and "--redo" in str(caught.value)


@pytest.mark.parametrize("more", [{}, {"result": "best"}, {"forgetting_budget": {"bpb": 0.1}}])
@pytest.mark.parametrize("bad", [nan, inf])
def test_a_model_that_is_no_number_at_the_start_is_refused(tmp_path, more, bad):
    with pytest.raises(RunFailed, match=f"bits per byte of eng_Latn/book is {bad} before any training"):
        run(tmp_path, [evaluation(2.0, bad)], **more)


def test_a_model_that_is_no_number_later_is_never_the_result(tmp_path, capsys):
    found = [evaluation(2.0, 1.0), evaluation(1.9, 1.0), evaluation(1.0, nan), evaluation(nan, 1.0, nan)]
    best = run(tmp_path / "best", found, result="best")
    assert best._chosen().step == 1 and "warning: bits per byte of eng_Latn/book is nan" in capsys.readouterr().out
    last = run(tmp_path / "last", found)
    with pytest.raises(RunFailed, match=r"bits per byte of fra_Latn/book is nan at the last step; the last good checkpoint"):
        last._chosen()
    rows = [json.loads(line) for line in (tmp_path / "last" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("more", "measured", "said"),
    [
        ({"forgetting_budget": {"kl": 0.1}}, ["fra_Latn/a"], "forgetting_budget: there is no held-out text of eng_Latn"),
        ({"forgetting_budget": {"kl": 0.1}}, ["eng_Latn/a"], "forgetting_budget: there is no held-out text of fra_Latn"),
        ({"result": "best"}, ["eng_Latn/a"], "result: there is no held-out text of fra_Latn"),
    ],
)
def test_a_choice_needs_the_text_that_it_is_made_with(tmp_path, more, measured, said):
    stage = Train(uses="train", steps=9, lr=1.0, **more)
    with pytest.raises(ConfigError, match=said):
        stage.check_heldout(Context(tmp_path, 1, "fra_Latn", ("eng_Latn",)), measured)
