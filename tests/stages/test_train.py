import json
from pathlib import Path

import pytest

from langext.engine import read_deepspeed
from langext.spec import ConfigError
from langext.stage import Context
from langext.stages.train import Train

ROOT = Path(__file__).parent.parent.parent


def train(**more):
    return Train(**{"uses": "train", "steps": 100, "lr": 1.0, "warmup_steps": 10, **more})


def test_learning_rate():
    stage = train()
    rates = [stage.lr_at(i) for i in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) and rates[-1] == pytest.approx(0.1)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert train(warmup_steps=0, steps=1).lr_at(0) == 1.0


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"batch_sequences": 6, "runtime": {"micro_batch": 4}}, "no multiple of 1 processes x micro_batch 4"),
        ({"runtime": {"deepspeed": "none.json"}}, "none.json: no such file"),
    ],
)
def test_what_cannot_run_is_refused_at_plan_time(tmp_path, monkeypatch, more, expected):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=expected):
        train(**more).check(Context(tmp_path, 1, "fra_Latn", ("eng_Latn",)))


@pytest.mark.parametrize(
    "text", ['{"zero_optimization": {"stage": 3}}', '{"train_batch_size": 3}', '{"bf16": {"enabled": true}}', "{,}"]
)
def test_deepspeed_files_must_leave_the_stage_its_own(tmp_path, text):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(ConfigError, match=r"ds\.json"):
        read_deepspeed(tmp_path / "ds.json")


def test_every_shipped_deepspeed_file_is_accepted():
    files = sorted((ROOT / "configs" / "deepspeed").glob("*.json"))
    assert files and all(isinstance(read_deepspeed(path), dict) for path in files)
    assert all(json.loads(path.read_text())["zero_optimization"]["stage"] in (0, 1, 2) for path in files)
