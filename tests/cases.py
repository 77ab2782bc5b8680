"""Every method with settings that fit a pico model. A method that is listed without any is tested with its defaults."""

from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import TypeAdapter
from run_folders import stage

from langext.artifacts import Model
from langext.methods import AnyMethod, extended
from langext.methods.base import Method
from langext.models import bases, loading
from langext.summaries import TrainSummary

PICO: dict[str, list[dict[str, Any]]] = {
    "neutral_residues": [
        {"gate": "hard_sigmoid", "width": 24, "init": "lecun", "alpha": 1.0},
        {"gate": "relu", "width": 24, "init": "he", "alpha": 1.0, "layers": [1, 3]},
        {"gate": "elu", "width": 24, "init": "lecun", "alpha": 1.0},
        {"gate": "sigmoid", "width": 24, "init": "lecun", "alpha": 1.0, "local_loss": "domain_ce"},
        {"gate": "threshold", "width": 24, "init": "lecun", "alpha": 1.0, "local_loss": "l1"},
        {"gate": "none", "width": 24, "init": "low_variance", "alpha": 1.0},
    ],
    "adapter": [{"width": 24, "init": "lecun"}],
    "lora": [{"rank": 4}],
    "selective_lora": [{"rank": 4}],
    "gated_lora": [{"rank": 4}],
    "grow": [{}, {"train": "all_mlp", "layers": {"top": 2}}, {"k": 3, "layers": [1, 2]}],
    "expansion_blocks": [{"every": 2}],
    "full": [{}, {"freeze": "middle"}],
}


def label(settings: dict[str, Any]) -> str:
    told = [str(settings[key]) for key in ("gate", "train", "k", "freeze") if key in settings]
    return " ".join([settings["name"], *told])


NAMES = [cls.model_fields["name"].annotation.__args__[0] for cls in get_args(get_args(AnyMethod)[0])]
CASES = [{"name": name, **settings} for name in NAMES for settings in PICO.get(name, [{}])]


def method(settings: dict[str, Any]) -> Method:
    return TypeAdapter(AnyMethod).validate_python(settings)


def exports(settings: dict[str, Any]) -> bool:
    """Whether there is an export with the base in it, not a delta alone."""
    made = method(settings)
    return made.block_gate is not None or not made.obstacle(None)


def calibrate(live):
    """Rows and thresholds of both signs, in numbers that bf16 has: each gate is open for some inputs and closed for others."""
    torch.manual_seed(4)
    for name, parameter in live.held().items():
        if live.constant(name):
            drawn = torch.randn(parameter.shape)
            value = 0.25 * drawn.sign() if name.endswith("bias") else drawn * parameter.shape[-1] ** -0.5
            parameter.data = value.bfloat16().to(parameter.dtype)
    return live


def stir(live, size=0.1):
    """As after training: every parameter that learns is somewhere else (but the indicators, which would switch blocks off).

    In numbers that bf16 has, so that an export rounds nothing but what it merges.
    """
    torch.manual_seed(5)
    for name, parameter in live.learning().items():
        if not name.endswith(".s"):
            moved = parameter.data + size * torch.randn(parameter.shape)
            parameter.data = moved.bfloat16().to(parameter.dtype)


def trained(root: Path, base: Path, settings: dict[str, Any]) -> Model:
    """The model of a run folder made by hand, in which a method has been trained on a base."""
    record = loading.read_record(bases.prepare(str(base), None, root / "base"))
    summary = TrainSummary(
        precision="bf16",
        lr=0.1, penalties=[], tokens=100, steps=2, result_step=2, seconds=3.0, tokens_per_second=None, bits_per_byte={},
        kl_to_base=None, dead_layers=None, weights={}, shares={"fra_Latn/book": 1.0}, epochs={"fra_Latn/book": 1.0},
    )  # fmt: skip
    folder = stage(root, 2, "train", "Model", {"model": "extend"}, summary)
    live = calibrate(extended.build(loading.load_base(record.base, torch.bfloat16), None, method(settings)))
    stir(live)
    loading.save_delta(folder, live.delta())
    return loading.write_record(folder, loading.Record(record.base, method(settings)))
