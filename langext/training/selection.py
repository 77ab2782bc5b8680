"""Decides which weights of a training become the model.

Holds the evaluations, the weights of the best evaluation, and the budget of what the original languages may lose.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from langext.artifacts import to_disk
from langext.errors import reading
from langext.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

BEST = "best.safetensors"
"""File among the checkpoints."""
KEPT = "evaluation"
"""Key of its metadata."""


class SetEvaluation(Spec):
    """Measurements on the held-out passages of one language and domain. A model that has diverged may have nan or inf here."""

    model_config = ConfigDict(allow_inf_nan=True)

    bits_per_byte: float
    gate: list[float] | None = None
    """Mean gate value in each layer; only for methods with gates."""
    open: list[float] | None = None
    """Share of tokens whose gate is open, in each layer; only for gates that can close."""
    closed: float | None = None
    """Share of tokens whose own gates are all closed; only for gates that can close."""
    as_base: float | None = None
    """Share of tokens for which the model computes exactly what the base computes."""


class Evaluation(Spec):
    """What training measures every `eval_every` steps. A model that has diverged may have nan or inf here."""

    model_config = ConfigDict(allow_inf_nan=True)

    sets: dict[str, SetEvaluation]
    """Measurements by `<language>/<domain>`."""
    weights: dict[str, float]
    """Numbers about the weights themselves, by name."""
    kl_to_base: float | None = None
    """KL(base || model) on held-out text of the original languages, in nats per token; None without such text."""
    dead_layers: list[int] | None = None
    """Layers whose gate is closed for every held-out token of the new language; None without gates that can close."""

    @property
    def bits_per_byte(self) -> dict[str, float]:
        """Bits per byte by `<language>/<domain>`."""
        return {name: measured.bits_per_byte for name, measured in self.sets.items()}

    @property
    def broken(self) -> str:
        """The first measurement that is not a finite number, in words; empty when all are finite."""
        for name, value in self.bits_per_byte.items():
            if not isfinite(value):
                return f"bits per byte of {name} is {value}"
        return "" if self.kl_to_base is None or isfinite(self.kl_to_base) else f"KL to the base is {self.kl_to_base}"


class ForgettingBudget(Spec):
    """What the original languages may lose. The model gets the weights of the best evaluation within this budget."""

    bpb: float | None = Field(None, gt=0)
    """Largest increase of their bits per byte over the base of the run, as a mean over the held-out sets: 0.5% or 0.005. Raise
    it to allow more forgetting."""
    kl: float | None = Field(None, gt=0)
    """Largest KL(base || model) on their held-out text, in nats per token. Raise it to allow more forgetting."""
    then: Literal["stop", "go_on"] = "stop"
    """What to do at the first evaluation beyond the budget: stop ends the training; go_on continues, in case a later evaluation
    is within it again."""

    @field_validator("bpb", mode="before")
    @classmethod
    def _percent(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip().endswith("%"):
            return float(value.strip().removesuffix("%")) / 100
        return value

    @model_validator(mode="after")
    def _some(self) -> "ForgettingBudget":
        if self.bpb is None and self.kl is None:
            raise ValueError("a forgetting_budget needs bpb, kl or both; without them it would allow everything")
        return self

    def kept(self, increase: float, kl: float | None) -> bool:
        """True when an evaluation is within the budget. `increase` is relative (0.005 is 0.5%), `kl` in nats.

        False for nan, and for a `kl` that is needed and was not measured.
        """
        if isnan(increase) or (kl is not None and isnan(kl)):
            return False
        within_bpb = self.bpb is None or increase <= self.bpb
        return within_bpb and (self.kl is None or (kl is not None and kl <= self.kl))


def mean_ratio(now: Mapping[str, float], start: Mapping[str, float], languages: tuple[str, ...]) -> float:
    """Mean of bits per byte `now` / at the `start` over the held-out sets of `languages`; NaN when there are no sets."""
    # Zero at the start (every token is certain) leaves nothing to compare with.
    ratios = [now[name] / (start[name] or float("nan")) for name in now if name.split("/")[0] in languages]
    return sum(ratios) / len(ratios) if ratios else float("nan")


def least_forgotten(rows: Sequence[Mapping[str, Any]], start: Mapping[str, float], languages: tuple[str, ...]) -> str:
    """The smallest increase of bits per byte of `languages` over the `start`, and the smallest KL to the base, in words.

    `rows` are the evaluation lines of metrics.jsonl. Each minimum is taken alone: they may be of different evaluations.
    """
    bits = [{name: of["bits_per_byte"] for name, of in row["sets"].items()} for row in rows]
    increases = [mean_ratio(now, start, languages) - 1 for now in bits]
    found = [f"original bits per byte {min(filter(isfinite, increases), default=float('nan')):+.2%}"]
    if kls := [kl for row in rows if (kl := row.get("kl_to_base")) is not None and isfinite(kl)]:
        found.append(f"KL {min(kls):.4f} nats per token")
    return ", ".join(found)


class Kept(Spec):
    """The best evaluation so far."""

    step: int
    score: float
    """Bits per byte of the new language, relative to the start: smaller is better."""
    evaluation: Evaluation


class BestWeights:
    """The weights of the best evaluation so far, in one file, with that evaluation as its metadata: they belong together."""

    def __init__(self, folder: Path):
        """Raises ConfigError when the file in `folder` is damaged."""
        from safetensors import safe_open

        self.path = folder / BEST
        self.kept: Kept | None = None
        if self.path.is_file():
            with reading(self.path, "safetensors"), safe_open(self.path, "pt") as file:
                self.kept = Kept.model_validate_json(file.metadata()[KEPT])

    def offer(
        self, step: int, score: float, evaluation: Evaluation, weights: Callable[[], dict[str, "Tensor"]], rank: int
    ) -> None:
        """Keep `weights()` when `score` is finite and smaller than the score of the weights that are kept so far.

        Every process must call this, with the same values, because all of them take part in gathering the weights.
        """
        # What was kept before a resume at an earlier checkpoint stays: steps that are made again may differ in a digit.
        if not isfinite(score) or (self.kept and self.kept.score <= score):
            return
        self.kept = Kept(step=step, score=score, evaluation=evaluation)
        gathered = weights()
        if rank == 0:
            from safetensors.torch import save_file

            # Renamed when it is complete and on the disk: a kill or a power cut leaves the former best or this one.
            beside = self.path.with_name(f".{BEST}")
            beside.parent.mkdir(parents=True, exist_ok=True)
            tensors = {name: tensor.contiguous() for name, tensor in gathered.items()}
            save_file(tensors, beside, metadata={KEPT: self.kept.model_dump_json()})
            to_disk(beside)
            os.replace(beside, self.path)

    def weights(self) -> dict[str, "Tensor"]:
        """The kept weights, by name, on the CPU."""
        from safetensors.torch import load_file

        return load_file(self.path)
