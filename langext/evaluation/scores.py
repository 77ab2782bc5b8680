"""The content of scores.json. Rule: `python -m langext.evaluation.scores` prints docs/scores.schema.json from these classes."""

import json
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from langext.artifacts import Scores, read_as, read_object
from langext.errors import ConfigError
from langext.spec import Spec
from langext.text_summaries import Role

FILE = "scores.json"
FORMAT = "langext scores 6"


class BpbScore(Spec):
    """Bits per byte of held-out text of one language and domain."""

    value: float
    """Bits per byte over all passages together; lower is better."""
    stderr: float | None = None
    """Standard error over passages; absent for a single passage."""
    bytes: int
    """UTF-8 bytes of all passages."""
    passages: int
    """Number of passages, pieces of text of at most 1,000 bytes."""
    bits_each: list[float]
    """Bits of each passage."""
    bytes_each: list[int]
    """Bytes of each passage."""
    gate: list[float] | None = None
    """Mean gate value in each layer; only for methods with gates."""
    open: list[float] | None = None
    """Share of tokens whose gate is open in each layer; only for gates that can close."""
    closed: float | None = None
    """Share of tokens whose own gates are all closed, whatever attention brings from others; only for gates that can close."""
    as_base: float | None = None
    """Share of tokens that are computed exactly as in the base: no gate is open for the token itself, and below the last layer
    none for an earlier token. Only for gates that can close, and for models with the base's vocabulary."""


class Metric(Spec):
    """The result of one metric of a task."""

    model_config = ConfigDict(allow_inf_nan=True)  # lm-eval has tasks whose mean over no item is nan

    value: float
    stderr: float | None = None
    """Standard error; absent when lm-eval gives none."""
    items: int
    higher_is_better: bool = True
    each: list[float] | None = None
    """Result of each item in the task's own order, when `value` is their mean. Changes are compared item by item with it."""
    weight_each: list[float] | None = None
    """Weight of each item, when `value` is sum(each) / sum(weight_each) instead. For bits per byte these are bytes."""
    items_hash: str | None = None
    """sha256 of the items as the model sees them, with the examples before them."""
    shots: int | None = None
    """Number of examples before each item."""


class KL(Spec):
    """Distance of the model from its base on held-out text."""

    value: float
    """KL(base || model), nats per token."""
    stderr: float | None = None
    """Standard error over passages; absent for a single passage."""
    passages: int | None = None
    """Number of passages; absent in files of former versions."""
    tokens: int


class OtherScore(Spec):
    """What was measured on a set of held-out text that is not of a language of the run."""

    role: Role
    """protect: the model was to be kept as it is on such text; measure: it was not, this is only measured."""
    bits_per_byte: BpbScore
    kl_to_base: KL | None = None
    """Absent for the base itself."""


class Sample(Spec):
    """A text that the model wrote."""

    language: str
    prompt: str
    text: str


class GenerationSpeed(Spec):
    """Speed of writing greedy text, one sequence at a time, in the precision of the evaluation."""

    tokens_per_second: float
    """Median over the prompts."""
    tokens: int
    """Number of tokens written for all prompts together."""
    weights_bytes: int
    """Memory of all weights, in bytes."""
    peak_bytes: int | None = None
    """Highest GPU memory in use while writing, in bytes; absent on a CPU."""
    device: str
    of_base: list[float] = []
    """Speed as a multiple of the base's speed, one value per prompt. Model and base write one right after the other."""


class ScoresFile(Spec):
    """The content of scores.json."""

    format: Literal["langext scores 6"] = FORMAT
    bits_per_byte: dict[str, BpbScore]
    """`<language>/<domain>` -> bits per byte."""
    tasks: dict[str, dict[str, Metric]]
    """Task -> metric -> result."""
    task_languages: dict[str, str] = {}
    """Task -> code of the language that it measures; only tasks whose language is known."""
    kl_to_base: dict[str, KL] = {}
    """Original language -> distance from the base; empty for the base itself."""
    kl_by_set: dict[str, KL] = {}
    """The same for each `<language>/<domain>` of the original languages."""
    others: dict[str, OtherScore] = {}
    """`<language>/<domain>` -> what was measured, for text that is not of the languages of the run."""
    samples: list[Sample] = []
    generation: GenerationSpeed | None = None

    @property
    def sets(self) -> dict[str, BpbScore]:
        """Bits per byte and gates of all sets of held-out text, those of the run first."""
        return self.bits_per_byte | {name: other.bits_per_byte for name, other in self.others.items()}


def read(scores: Scores) -> ScoresFile:
    """Read the scores of a finished evaluation. Raises ConfigError for a file that is damaged or from another version."""
    return read_file(scores.path / FILE)


def read_file(path: Path) -> ScoresFile:
    """Read a scores.json. Raises ConfigError for a damaged file, or one from another version of langext."""
    if read_object(path).get("format") != FORMAT:
        raise ConfigError(f"{path}: written by another version of langext; measure again with --redo")
    return read_as(path, ScoresFile)


if __name__ == "__main__":
    print(json.dumps(ScoresFile.model_json_schema(), indent=2))
