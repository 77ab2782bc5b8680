"""Which weights of a training become the model: the evaluations, the best of them, and what the original languages may lose."""

import os
import shutil
from collections.abc import Callable, Mapping
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from langext.artifacts import read_as, write_json
from langext.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "weights.safetensors"


class SetEvaluation(Spec):
    """The held-out passages of one language and domain."""

    bits_per_byte: float
    gate: list[float] | None = None
    """Mean gate value in each layer; only of methods with gates."""
    open: list[float] | None = None
    """Share of tokens whose gate is open in each layer; only of gates that close."""
    all_closed: float | None = None
    """Share of tokens that are computed exactly as the base does."""


class Evaluation(Spec):
    """What training measures every `eval_every` steps."""

    sets: dict[str, SetEvaluation]
    """By `<language>/<domain>`."""
    weights: dict[str, float]
    """Figures about the weights themselves, by name."""
    kl_to_base: float | None = None
    """KL(base || model) on held-out original text, nats per token; None without such text."""
    dead_layers: list[int] | None = None
    """Layers whose gate is closed for every token of the new language; None without gates that close."""

    @property
    def bits_per_byte(self) -> dict[str, float]:
        """By `<language>/<domain>`."""
        return {name: found.bits_per_byte for name, found in self.sets.items()}


class ForgettingBudget(Spec):
    """What the original languages may lose. The model becomes the best evaluation that kept to it."""

    bpb: float | None = Field(None, gt=0)
    """Largest increase of their bits per byte over the base, the mean over held-out sets: 0.5% or 0.005."""
    kl: float | None = Field(None, gt=0)
    """Largest KL(base || model) on their held-out text, in nats per token."""
    then: Literal["stop", "go_on"] = "stop"
    """At the first evaluation beyond the budget: end the training, or go on for a later one that is within it again."""

    @field_validator("bpb", mode="before")
    @classmethod
    def _percent(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip().endswith("%"):
            return float(value.strip().removesuffix("%")) / 100
        return value

    def kept(self, increase: float, kl: float | None) -> bool:
        """Is an evaluation within the budget? One that is not a number is not."""
        if isnan(increase) or (kl is not None and isnan(kl)):
            return False
        within_bpb = self.bpb is None or increase <= self.bpb
        return within_bpb and (self.kl is None or kl is None or kl <= self.kl)


def mean_ratio(now: Mapping[str, float], start: Mapping[str, float], languages: tuple[str, ...]) -> float:
    """Mean over the held-out sets of some languages of bits per byte now / at the start; nan when there are none."""
    ratios = [now[name] / start[name] for name in now if name.split("/")[0] in languages]
    return sum(ratios) / len(ratios) if ratios else float("nan")


class Kept(Spec):
    """What is on disk of the best evaluation."""

    step: int
    score: float
    """Bits per byte of the new language, relative to the start: smaller is better."""
    evaluation: Evaluation


class BestWeights:
    """The weights of the best evaluation so far, on disk: `best/weights.safetensors` with `best/best.json`."""

    def __init__(self, folder: Path):
        self.folder = folder / "best"
        path = self.folder / "best.json"
        self.kept: Kept | None = read_as(path, Kept) if path.is_file() else None

    def offer(
        self, step: int, score: float, evaluation: Evaluation, weights: Callable[[], dict[str, "Tensor"]], rank: int
    ) -> None:
        """Keep `weights()` when `score` is smaller than that of what is kept, and a number at all.

        Every process must call this, with the same values: all take part in gathering the weights.
        """
        if not isfinite(score) or (self.kept and self.kept.step < step and self.kept.score <= score):
            return
        self.kept = Kept(step=step, score=score, evaluation=evaluation)
        gathered = weights()
        if rank == 0:
            from safetensors.torch import save_file

            beside = self.folder.with_name("best.tmp")
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            save_file({name: tensor.contiguous() for name, tensor in gathered.items()}, beside / WEIGHTS)
            write_json(beside / "best.json", self.kept)
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(beside, self.folder)

    def weights(self) -> dict[str, "Tensor"]:
        """What is kept."""
        from safetensors.torch import load_file

        return load_file(self.folder / WEIGHTS)
