"""Settings for a first run, from what `langext init` has found. Pure functions: nothing is read here.

The rule: every figure is one of docs/recipe.md, of pipelines/add_language.yaml or of the quickstart, or is computed from the
shapes of the base; what lies beyond what was measured says so. docs/add-your-language.md shows the tables as they are here.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

from langext.architectures import families
from langext.cli import first_look
from langext.cli.first_look import Base, Machine, Text
from langext.data.mixture import MOST_READINGS, TOO_MANY
from langext.languages import Language
from langext.pipeline import estimate
from langext.stages.train import Train
from tokenizer_tools import audit

CPU_TOKENS = 225_280
"""Tokens of the quickstart, which is what a CPU is good for."""
GPU_FLOPS = 6 * 1.1e9 * 1.25e9
"""FLOPs for each GPU: those of pipelines/add_language.yaml, 10 G tokens of a base of 1.1 G parameters on 8 GPUs."""
UNKNOWN_PARAMETERS = 1.7e9
"""The size of a base that is not known yet."""
FEW_TOKENS = 1_100_000
"""Tokens of a short training: docs/recipe.md has measured up to about so many."""
SMALL_STEP, LARGE_STEP, STEPS = 2_048, 524_288, 2_000
"""Tokens of a step in docs/recipe.md and in pipelines/add_language.yaml; between them a training is divided into STEPS."""
LEAST_STEPS = 20
FEW_DOCUMENTS = 5_000
"""Documents of each source on the hub that the shortest training reads."""
HELDOUT_BYTES, LEAST_HELDOUT, MOST_HELDOUT = 300_000, 0.001, 0.06
FREE = 0.8
"""Share of a GPU's memory that the estimate may fill, which is rough."""
FULL_CALIBRATION = 100_000_000
"""Tokens of training from which on the gates are calibrated on as much text as in pipelines/add_language.yaml."""


@dataclass(frozen=True)
class Rate:
    """A learning rate, and the trainings that it is for."""

    trainings: str
    least_tokens: int
    least_parameters: int
    """Of the base."""
    lr: str
    """As a pipeline has it."""
    known: str
    """How far that was measured."""


RATES = (
    Rate("billions of tokens, base of 1 B parameters and more", 1_000_000_000, 1_000_000_000, "1e-3", "not measured"),
    Rate("more than about 1 million tokens", FEW_TOKENS + 1, 0, "4e-3", "measured up to 1 million"),
    Rate("up to about 1 million tokens", 0, 0, "8e-3", "measured on a base of 135 M parameters"),
)
"""The first one that fits is taken. 1e-3 is that of pipelines/add_language.yaml; docs/recipe.md has measured the others."""


@dataclass(frozen=True)
class Amount:
    """An amount of text of the new language, and what a run with so little of it does."""

    text: str
    most_bytes: float
    settings: tuple[str, ...]
    """As a pipeline has them."""
    new_tokens: bool
    """Whether there is text enough for the rows of new tokens to be learnt from. A rule of thumb, not measured."""


AMOUNTS = (
    Amount("up to 10 MB", 10e6, ("level: paragraph", "result: best"), False),
    Amount("10 to 50 MB", 50e6, (), False),
    Amount("more than 50 MB", float("inf"), (), True),
)
"""The first one that fits is taken."""


@dataclass(frozen=True)
class Budget:
    """How long a training is."""

    steps: int
    sequence_length: int
    batch_sequences: int
    rate: Rate
    why: str
    """What decided the number of tokens."""
    short: bool
    """Whether it is no longer than what docs/recipe.md has measured."""

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return self.steps * self.sequence_length * self.batch_sequences


@dataclass(frozen=True)
class Vocabulary:
    """Whether the vocabulary is extended."""

    extend: bool
    why: str


@dataclass(frozen=True)
class Placement:
    """How a training is laid out on the machine."""

    runtime: dict[str, Any]
    """Keys of `runtime`."""
    why: str


def budget(base: Base, text: Text | None, machine: Machine) -> Budget:
    """The tokens that the text and the machine allow, divided into steps."""
    size = base.size.base if base.size else UNKNOWN_PARAMETERS
    most = machine.all_gpus * GPU_FLOPS / (6 * size) if machine.gpus else CPU_TOKENS
    why = f"a first look, as long as the quickstart: there is no GPU here, and {size / 1e9:.2g} G parameters"
    if machine.gpus:
        each = f"each of {machine.all_gpus} GPU(s)"
        why = f"the compute of pipelines/add_language.yaml for {each}, for {size / 1e9:.2g} G parameters"
    if text is not None and text.tokens is not None and (all_of_it := MOST_READINGS * text.tokens * (1 - heldout(text))) < most:
        most, why = all_of_it, f"all of the text {MOST_READINGS} times; {TOO_MANY}"
    few = most <= FEW_TOKENS
    length = min(512 if few else 2048, families.positions(base.config) or 2048)
    step = min(LARGE_STEP, max(SMALL_STEP, 1 << max(1, int(most / STEPS)).bit_length() - 1))
    processes = max(1, machine.all_gpus)
    sequences = -(-max(1, step // length) // processes) * processes
    steps = max(LEAST_STEPS, int(most / (sequences * length)))
    if steps * sequences * length > most:
        why = f"the least that teaches anything, though it reads the little text more than {MOST_READINGS} times"
    return Budget(steps, length, sequences, rate(int(most), size), why, short=few)


def rate(tokens: int, parameters: float) -> Rate:
    """The learning rate of a training on so many tokens, of a base with so many parameters."""
    return next(row for row in RATES if tokens >= row.least_tokens and parameters >= row.least_parameters)


def amount(text: Text | None) -> Amount:
    """How much text there is. Of text on the hub, and of "at least" so much, the most."""
    if text is None or text.bound == first_look.AT_LEAST:
        return AMOUNTS[-1]
    return next(row for row in AMOUNTS if text.size_bytes <= row.most_bytes)


def heldout(text: Text | None, documents: int = 0) -> float:
    """Share of the documents that is held out: enough to measure with, and of a small text no more than the quickstart takes.

    `documents` is how many there are where the text is not known.
    """
    if text is None:
        return LEAST_HELDOUT if documents > FEW_DOCUMENTS else MOST_HELDOUT
    return float(f"{min(MOST_HELDOUT, max(LEAST_HELDOUT, HELDOUT_BYTES / max(1, text.size_bytes))):.1g}")


def documents(planned: Budget) -> int:
    """Most documents to read of each source on the hub: more than the training needs, of a hundred tokens each."""
    return max(FEW_DOCUMENTS, planned.tokens // 100)


def vocabulary(language: Language, text: Text | None, original: audit.Use | None, planned: Budget) -> Vocabulary:
    """Whether to let stage extend_tokenizer look for new tokens. docs/tokenizer.md has the reasons."""
    new = text.use if text else None
    if planned.short:
        return Vocabulary(False, "new rows must be learnt first, and this training is short")
    if not amount(text).new_tokens:
        return Vocabulary(False, f"new rows must be learnt first, and there is little text ({amount(text).text})")
    if new is not None and original is not None:
        if found := audit.close(new, [original]):
            return Vocabulary(False, found.reason)
        ratio = f"{new.fertility:.2f} tokens per word, {new.fertility / original.fertility:.1f} x the original language's"
        return Vocabulary(True, ratio)
    if language.code.endswith("_Latn"):
        return Vocabulary(False, "seldom pays in Latin script; init --text measures it")
    return Vocabulary(True, "not in Latin script; init --text measures it")


def placement(base: Base, planned: Budget, machine: Machine) -> Placement:
    """The largest micro-batch and the simplest ZeRO that fit, by the estimate of `langext plan`."""
    if not machine.gpus:
        return Placement({}, "no GPU here")
    most = _micro(planned, machine.all_gpus)
    choices = ["zero2", "zero3", "zero3_offload"] if machine.all_gpus > 1 else ["one_gpu", "zero3_offload"]
    where: dict[str, Any] = {"gpus": machine.gpus}
    if machine.nodes > 1:
        choices[0], where = "multinode", {"gpus": machine.gpus, "nodes": machine.nodes, "launcher": "srun"}
    smallest = where | {"deepspeed": choices[0], "micro_batch": 1, "activation_checkpointing": True}
    if base.size is None:
        return Placement(smallest, "the least memory, until the base is here and langext plan can say what it takes")
    micros = [most >> halved for halved in range(most.bit_length())]
    for deepspeed, checkpointing, micro in product(choices, (False, True), micros):
        runtime = where | {"deepspeed": deepspeed, "micro_batch": micro}
        runtime |= {"activation_checkpointing": True} if checkpointing else {}
        need = estimate.training(base.config, base.size, training(planned, runtime))["memory"]
        if need < FREE * machine.gpu_bytes:
            return Placement(runtime, f"{need / 2**30:.1f} of {machine.gpu_bytes / 2**30:.0f} GiB on each GPU, by the estimate")
    return Placement(
        smallest | {"deepspeed": choices[-1]},
        "more than these GPUs hold, by the estimate: weights wait in the memory of the CPU, and more GPUs are faster",
    )


def _micro(planned: Budget, processes: int) -> int:
    """The largest power of two up to 8 that divides the sequences of a process."""
    each = planned.batch_sequences // processes
    return min(8, each & -each)


def training(planned: Budget, runtime: dict[str, Any]) -> Train:
    """The stage as a pipeline would have it, with the keys that decide its cost."""
    return Train.model_validate({
        "uses": "train", "steps": planned.steps, "sequence_length": planned.sequence_length, "lr": float(planned.rate.lr),
        "batch_sequences": planned.batch_sequences, "runtime": runtime,
    })  # fmt: skip
