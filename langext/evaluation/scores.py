"""What scores.json holds; docs/scores.schema.json is printed from it by `python -m langext.evaluation.scores`."""

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from langext.artifacts import Scores, read_json
from langext.spec import ConfigError, Spec

FILE = "scores.json"
FORMAT = "langext scores 4"


class BpbScore(Spec):
    """Bits per byte of held-out text of one language and domain."""

    value: float
    """Over all passages together."""
    stderr: float | None = None
    """By bootstrap over passages; absent for a single one."""
    bytes: int
    """UTF-8 bytes that were measured."""
    passages: int
    """Pieces of about 1,000 bytes that they come in."""
    bits_each: list[float]
    """Bits of each passage."""
    bytes_each: list[int]
    """Bytes of each passage."""
    gate: list[float] | None = None
    """Mean gate value in each layer; only of methods with gates."""
    open: list[float] | None = None
    """Share of tokens whose gate is open in each layer; only of gates that close."""
    all_closed: float | None = None
    """Share of tokens that are computed exactly as the base does: no gate is open for them, nor, below the last layer, for a
    token before them. Only of gates that close, and of models that keep the base's vocabulary."""


class Metric(Spec):
    """One figure of a task."""

    value: float
    stderr: float | None = None
    """absent where lm-eval knows none."""
    items: int
    higher_is_better: bool = True
    each: list[float] | None = None
    """The figure of each item in the task's own order, where it is their mean: changes are paired by it."""
    weight_each: list[float] | None = None
    """Where the figure is sum(each) / sum(weight_each) instead: bytes, of bits per byte."""
    items_hash: str | None = None
    """sha256 of the items as they were shown to the model, examples before them included."""
    shots: int | None = None
    """Examples before each item."""


class KL(Spec):
    """How far the model is from its base on held-out text of an original language."""

    value: float
    """KL(base || model), nats per token."""
    stderr: float | None = None
    """Over passages; absent for a single one."""
    tokens: int


class Sample(Spec):
    """A text that the model wrote."""

    language: str
    prompt: str
    text: str


class GenerationSpeed(Spec):
    """How fast the model writes: greedy text, one sequence, in the precision it was measured in."""

    tokens_per_second: float
    """The median over the prompts."""
    tokens: int
    """Written in all."""
    weights_bytes: int
    """Memory of all weights."""
    peak_bytes: int | None = None
    """The most of a GPU's memory that was held while writing; absent on a CPU."""
    device: str
    of_base: list[float] = []
    """Speed as a multiple of the base's, prompt by prompt: each was continued by both, one right after the other."""


class ScoresFile(Spec):
    """The whole file."""

    format: Literal["langext scores 4"] = FORMAT
    bits_per_byte: dict[str, BpbScore]
    """By `<language>/<domain>`."""
    tasks: dict[str, dict[str, Metric]]
    """By task, then by metric."""
    task_languages: dict[str, str] = {}
    """The language that a task measures, where that is known."""
    kl_to_base: dict[str, KL] = {}
    """By original language; none of the base itself."""
    samples: list[Sample] = []
    generation: GenerationSpeed | None = None


def read(scores: Scores) -> ScoresFile:
    """The scores of a finished evaluation. Raises ConfigError for a file of another version of langext."""
    return read_file(scores.path / FILE)


def read_file(path: Path) -> ScoresFile:
    """A scores.json. Raises ConfigError for one of another version of langext."""
    value = read_json(path)
    if value.get("format") != FORMAT:
        raise ConfigError(f"{path}: written by another version of langext; measure again with --redo")
    try:
        return ScoresFile.model_validate(value)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ConfigError(f"{path}: damaged: {where}: {error.errors()[0]['msg']}") from None


if __name__ == "__main__":
    print(json.dumps(ScoresFile.model_json_schema(), indent=2))
