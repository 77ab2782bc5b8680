from math import inf, nan
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from langext.architectures import families
from langext.context import Context
from langext.errors import ConfigError
from langext.methods import Full
from langext.stages.train import Train
from langext.training import deepspeed_file

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
    "text",
    [
        '{"zero_optimization": {"stage": 4}}',
        '{"train_batch_size": 3}',
        '{"zero_optimisation": {"stage": 2}}',
        '{"torch_autocast": {"enabled": true, "dtype": "bfloat16"}}',
        '{"bf16": {"enabled": true}}',
        "{,}",
        '{"zero_optimization": 2}',
        '{"zero_optimization": {"stag": 1}}',
        '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}}',
    ],
)
def test_deepspeed_files_must_leave_the_stage_its_own(tmp_path, text):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(ConfigError, match=r"ds\.json"):
        train(runtime={"deepspeed": str(tmp_path / "ds.json")}).check(Context(tmp_path, 1, "fra_Latn", ("eng_Latn",)))


@pytest.mark.parametrize("config", [{"max_position_embeddings": 32}, {"n_positions": 32}])
def test_sequences_are_no_longer_than_the_base_has_positions(config):
    given, config = (Full(name="full"),), SimpleNamespace(**config)
    train(sequence_length=32).check_model(given, config)
    train(sequence_length=33).check_model(given, None)  # not known yet; asked again when the training starts
    with pytest.raises(ConfigError, match="sequence_length is 33, and the base has 32 positions") as caught:
        train(sequence_length=33).check_model(given, config)
    assert caught.value.at == ("sequence_length",)


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 128), ({"type": "dynamic", "factor": 2.0}, 64),
        ({"rope_type": "yarn", "factor": 4.0}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}, 32),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8}, 32), ({"rope_type": "default"}, 32),
    ],
)  # fmt: skip
def test_a_scaled_rope_has_more_positions(rope, positions):
    assert families.positions(SimpleNamespace(max_position_embeddings=32, rope_scaling=rope)) == positions


def test_a_warmup_is_no_longer_than_the_training(tmp_path, capsys):
    ctx = Context(tmp_path, 1, "fra_Latn", ("eng_Latn",))
    train(steps=10, warmup_steps=10).check(ctx)
    with pytest.raises(ConfigError, match="warmup_steps is 11 and steps 10: the learning rate never") as caught:
        train(steps=10, warmup_steps=11).check(ctx)
    assert caught.value.at == ("warmup_steps",) and not capsys.readouterr().err
    Train(uses="train", steps=9, lr=1.0).check(ctx)  # the default is nobody's mistake
    assert "warning: train: warmup_steps is 10 and steps 9" in capsys.readouterr().err


@pytest.mark.parametrize("size", [{"steps": 10**12}, {"batch_sequences": 4 * 10**12}])
def test_a_training_whose_order_does_not_fit_into_memory_is_refused(tmp_path, size):
    with pytest.raises(ConfigError, match=r"steps x batch_sequences is [\d,]+ sequences, whose order takes [\d,]+ GB"):
        train(**size).check(Context(tmp_path, 1, "fra_Latn", ("eng_Latn",)))


@pytest.mark.parametrize("key", ["lr", "weight_decay", "clip", "min_lr_frac", "decay_frac", "original_frac", "ema"])
@pytest.mark.parametrize("value", [inf, nan, -1.0, "1e999", 10**400])
def test_numbers_out_of_range_are_refused(key, value):
    with pytest.raises(ValidationError, match=key):
        train(**{key: value})


@pytest.mark.parametrize("key", ["steps", "batch_sequences", "sequence_length"])
@pytest.mark.parametrize("value", [0, -1, 2**63, 10**400, 1.5, inf, nan])
def test_counts_out_of_range_are_refused(key, value):
    with pytest.raises(ValidationError, match=key):
        train(**{key: value})


SOURCES = ["fra_Latn/web", "fra_Latn/wiki", "eng_Latn/news"]


@pytest.mark.parametrize(
    ("more", "trained", "said"),
    [
        ({}, SOURCES[:2], "original_frac is 0.1, but there is no training text of eng_Latn"),
        ({"original_frac": 0, "original_first_frac": 0.3}, SOURCES[:2], "original_frac is 0.3, but there is no training text"),
        ({"shares": {"fra_Latn/wikipedia": 0.1}}, SOURCES, "is called 'fra_Latn/wikipedia'. Did you mean fra_Latn/wiki"),
        ({"shares": {"deu_Latn": 0.1}}, SOURCES, "nothing to train on is called 'deu_Latn'"),
        ({"shares": {"eng_Latn": 0.2}}, SOURCES, "the original languages have 0.2, more than original_frac 0.1"),
        ({"shares": {"eng_Latn/news": 0.05}}, SOURCES, "the sources of eng_Latn have 0.05, the language 0.1"),
        ({"shares": {"fra_Latn/web": 0.6, "fra_Latn/wiki": 0.6}}, SOURCES, "the sources of fra_Latn have 1.2"),
        ({"forgetting_budget": {"bpb": "1%"}, "original_frac": 0}, SOURCES[:2], "there is no held-out text of eng_Latn"),
    ],
)
def test_what_the_sources_cannot_give_is_refused_at_plan_time(tmp_path, more, trained, said):
    ctx = Context(tmp_path, 1, "fra_Latn", ("eng_Latn",))
    train().check_text(ctx, SOURCES, SOURCES)
    with pytest.raises(ConfigError, match=said) as caught:
        train(**more).check_text(ctx, trained, trained)
    assert caught.value.at


def test_every_shipped_deepspeed_file_is_accepted():
    files = sorted((ROOT / "configs" / "deepspeed").glob("*.json"))
    assert files and all(isinstance(deepspeed_file.read(path), dict) for path in files)
