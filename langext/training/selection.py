"""The weights of the best evaluation so far, and how much of the original language a training may lose."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from langext.artifacts import read_json, write_json
from langext.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

Figures = Mapping[str, Any]
"""`<language>/<domain>` -> {"bits_per_byte": ...}, as Watch measures it."""


class DriftBudget(Spec):
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
        """Is an evaluation within the budget?"""
        within_bpb = self.bpb is None or increase <= self.bpb
        return within_bpb and (self.kl is None or kl is None or kl <= self.kl)


def mean_ratio(now: Figures, start: Figures, languages: tuple[str, ...]) -> float:
    """Mean over the held-out sets of some languages of bits per byte now / at the start; 1 when there are none."""
    names = [name for name in now if name.split("/")[0] in languages]
    ratios = [now[name]["bits_per_byte"] / start[name]["bits_per_byte"] for name in names]
    return sum(ratios) / len(ratios) if ratios else 1.0


class Best:
    """The best weights on disk: `best/delta.safetensors` with `best.json`, step and score."""

    def __init__(self, folder: Path):
        self.folder = folder / "best"
        path = self.folder / "best.json"
        self.kept: dict[str, Any] | None = read_json(path) if path.is_file() else None
        """`step`, `score` and `evaluation` of what is kept."""

    def offer(
        self, step: int, score: float, evaluation: dict[str, Any], weights: Callable[[], dict[str, "Tensor"]], rank: int
    ) -> None:
        """Keep `weights()` when `score` is smaller than that of what is kept. Every process must call this, with the same."""
        if self.kept and self.kept["step"] < step and self.kept["score"] <= score:
            return
        self.kept = {"step": step, "score": score, "evaluation": evaluation}
        delta = weights()
        if rank == 0:
            from safetensors.torch import save_file

            beside = self.folder.with_name("best.tmp")
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            save_file({name: tensor.contiguous() for name, tensor in delta.items()}, beside / "delta.safetensors")
            write_json(beside / "best.json", self.kept)
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(beside, self.folder)

    def weights(self) -> dict[str, "Tensor"]:
        """What is kept."""
        from safetensors.torch import load_file

        return load_file(self.folder / "delta.safetensors")
