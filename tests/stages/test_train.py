from pathlib import Path

import pytest

from langext.context import Context
from langext.spec import ConfigError
from langext.stages.train import Train
from langext.training.engine import read_deepspeed

ROOT = Path(__file__).parent.parent.parent


def train(**more):
    return Train(**{"uses": "train", "steps": 100, "lr": 1.0, "warmup_steps": 10, **more})


def test_schedules():
    def rates(**more):
        stage = train(**more)
        return [stage.rates(stage.steps).factor(i) for i in range(stage.steps)]

    cosine = rates()
    assert cosine[0] == pytest.approx(0.1) and cosine[9] == pytest.approx(1.0) and cosine[-1] == pytest.approx(0.1)
    assert cosine == sorted(cosine[:10]) + sorted(cosine[10:], reverse=True)
    assert cosine[54] == pytest.approx(0.1 + 0.9 / 2, abs=0.02)  # half way down half way through
    wsd = rates(schedule="wsd", decay_frac=0.2, min_lr_frac=0.0)
    assert set(wsd[9:81]) == {1.0} and wsd[-1] == 0
    assert wsd[80 + 5] == pytest.approx(1 - (5 / 19) ** 0.5) and wsd[80:] == sorted(wsd[80:], reverse=True)
    assert set(rates(schedule="constant")[9:]) == {1.0}
    assert rates(warmup_steps=0, steps=1) == [1.0]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"batch_sequences": 6, "runtime": {"micro_batch": 4}}, "no multiple of 1 processes x micro_batch 4"),
        ({"runtime": {"deepspeed": "none.json"}}, "none.json: no such file"),
        ({"ema": 0.9, "runtime": {"deepspeed": "zero3"}}, "ema needs ZeRO stage 0, 1 or 2"),
        (
            {"penalties": [{"name": "l2sp"}], "runtime": {"deepspeed": "zero3"}},
            "l2sp needs ZeRO stage 0, 1 or 2",
        ),
    ],
)
def test_what_cannot_run_is_refused_at_plan_time(tmp_path, monkeypatch, more, expected):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=expected):
        train(**more).check(Context(tmp_path, 1, "fra_Latn", ("eng_Latn",)))


@pytest.mark.parametrize(
    "text", ['{"zero_optimization": {"stage": 4}}', '{"train_batch_size": 3}', '{"bf16": {"enabled": true}}', "{,}"]
)
def test_deepspeed_files_must_leave_the_stage_its_own(tmp_path, text):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(ConfigError, match=r"ds\.json"):
        read_deepspeed(tmp_path / "ds.json")


def test_every_shipped_deepspeed_file_is_accepted():
    files = sorted((ROOT / "configs" / "deepspeed").glob("*.json"))
    assert files and all(isinstance(read_deepspeed(path), dict) for path in files)
