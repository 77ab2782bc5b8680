"""What the training stage can be asked for besides plain steps."""

import json
from pathlib import Path

import pytest
import torch
from bench import Bench, extend, train
from legs import launch
from safetensors.torch import load_file

RESIDUES = {"name": "neutral_residues", "gate": "hard_sigmoid", "init": "lecun", "width": 32, "alpha": 0.1}
PLAIN = {"schedule": "constant", "warmup_steps": 0, "precision": "fp32", "eval_every": 1, "log_every": 1, "weight_decay": 0.1}
LEGS = {
    "one": PLAIN | {"steps": 1},
    "two": PLAIN | {"steps": 2},
    "three": PLAIN | {"steps": 3},
    "averaged": PLAIN | {"steps": 3, "ema": 0.6},
    "best": PLAIN | {"steps": 8, "lr": 0.3, "result": "best"},
    "stopped": PLAIN | {"steps": 30, "lr": 0.3, "forgetting_budget": {"bpb": "2%"}},
    "kept on": PLAIN | {"steps": 12, "original_frac": 0.02, "forgetting_budget": {"kl": 0.02, "then": "go_on"}},
    "exhausted": PLAIN | {"steps": 200, "eval_every": 200, "exhaustion": "stop"},
    "first": PLAIN | {"steps": 20, "eval_every": 20, "original_frac": 0.0, "original_first_frac": 0.5, "alpha": 0.1},
    "shares": PLAIN | {"steps": 4, "eval_every": 4, "shares": {"eng_Latn/magazine": 0.5}},
    "infinite": PLAIN | {"steps": 9, "eval_every": 9, "lr": 1e30, "save_every": 1},
}


@pytest.fixture(scope="module")
def legs(tmp_path_factory: pytest.TempPathFactory, pico: Path) -> Path:
    bench = Bench(tmp_path_factory.mktemp("training"), pico)
    run = bench.run("first", "fra_Latn", ["eng_Latn"], [extend(**RESIDUES), train(steps=2, eval_every=2)])
    job = next(run.glob("*-train"))
    plan = [{"out": str(run / name), "job": str(job), "stage": stage} for name, stage in LEGS.items() if name != "first"]
    plan.append({"out": str(run / "first"), "job": str(job), "stage": {k: v for k, v in LEGS["first"].items() if k != "alpha"}})
    (run / "printed.txt").write_text(launch(run, plan))
    return run


def rows(legs, name, kind):
    lines = (legs / name / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def summary(legs, name):
    return json.loads((legs / name / "summary.json").read_text())


def test_the_running_average_is_that_of_the_weights_after_every_step(legs):
    start = load_file(next(legs.glob("*-extend")) / "delta.safetensors")
    weights = [load_file(legs / name / "delta.safetensors") for name in ("one", "two", "three")]
    averaged = load_file(legs / "averaged" / "delta.safetensors")
    for name, value in averaged.items():
        expected = start[name].float()
        for step in weights:
            expected = 0.6 * expected + 0.4 * step[name]
        assert torch.allclose(value, expected, atol=1e-6)
        assert not torch.allclose(value, weights[-1][name], atol=1e-4) or value.shape[0] == 1
    evals = [rows(legs, name, "eval")[-1]["sets"]["fra_Latn/book"]["bits_per_byte"] for name in ("three", "averaged")]
    assert evals[0] != evals[1]  # the average is what is measured


def bits(row, code):
    return row["sets"][f"{code}/book"]["bits_per_byte"]


def test_the_best_evaluation_can_become_the_model(legs):
    evals = rows(legs, "best", "eval")
    measured = [bits(row, "fra_Latn") for row in evals]
    best = min(range(len(evals)), key=measured.__getitem__)
    assert 0 < best < len(evals) - 1, "the learning rate is chosen so that it gets worse again"
    assert summary(legs, "best")["result_step"] == evals[best]["step"]
    assert summary(legs, "best")["bits_per_byte"]["fra_Latn/book"] == measured[best]


def test_a_forgetting_budget_ends_the_training_and_the_model_keeps_to_it(legs):
    evals, found = rows(legs, "stopped", "eval"), summary(legs, "stopped")
    increases = [bits(row, "eng_Latn") / bits(evals[0], "eng_Latn") - 1 for row in evals]
    assert increases[-1] > 0.02 and max(increases[:-1]) <= 0.02 and len(evals) < 31
    assert found["steps"] == evals[-1]["step"] and found["result_step"] < found["steps"]
    assert sum(found["shares"].values()) == pytest.approx(1)
    whole = summary(legs, "kept on")  # epochs are of what was read, not of what was planned
    read = [row["steps"] * row["shares"]["fra_Latn/book"] for row in (found, whole)]
    assert found["epochs"]["fra_Latn/book"] / whole["epochs"]["fra_Latn/book"] == pytest.approx(read[0] / read[1])
    evals, found = rows(legs, "kept on", "eval"), summary(legs, "kept on")
    within = [row["step"] for row in evals if row["kl_to_base"] <= 0.02]
    assert len(evals) == 13 and 0 < len(within) < 13 and found["result_step"] in within and found["steps"] == 12


def test_training_can_end_before_a_source_is_read_twice(legs):
    found = summary(legs, "exhausted")
    assert 0 < found["steps"] < 200 and max(found["epochs"].values()) <= 1
    assert max(found["epochs"].values()) > 0.9
    assert f"is read once after {found['steps']} of 200 steps" in (legs / "printed.txt").read_text()


def test_original_text_can_come_in_the_first_tenth_alone(legs):
    seen = [("loss/eng_Latn" in row["losses"]) for row in rows(legs, "first", "train")]
    assert "acts on original text" not in (legs / "printed.txt").read_text()
    assert seen == [True, True] + [False] * 18
    assert summary(legs, "first")["shares"]["eng_Latn/book"] == pytest.approx(0.05)


def test_shares_of_sources_that_are_not_there_are_refused(legs):
    assert "nothing to train on is called 'eng_Latn/magazine'" in (legs / "shares" / "error.txt").read_text()


def test_a_loss_that_is_not_finite_names_step_checkpoint_and_documents(legs):
    error = (legs / "infinite" / "error.txt").read_text()
    step = int(error.split("is not finite at step ")[1].split(";")[0])
    assert f"the last good checkpoint is of step {step - 1}" in error
    assert error.startswith("RunFailed: the loss is not finite") and "\nfra_Latn/book: " in error


def test_the_log_has_what_a_run_costs(legs):
    row = rows(legs, "three", "train")[-1]
    assert row["tokens"] == 3 * 8 * 64 and row["peak_memory_bytes"] > 1e8 and row["tokens_per_second"] > 0
    assert rows(legs, "three", "eval")[-1]["tokens"] == row["tokens"]
