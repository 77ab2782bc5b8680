"""What stage export reports: what was written, and how other programs compute it. export.json holds the same."""

from typing import Literal

from pydantic import ConfigDict

from langext.spec import Spec, Summary


class LogitDifference(Spec):
    """Two models on the same text, in float32; nan where a logit is nan."""

    model_config = ConfigDict(allow_inf_nan=True)

    max_abs_difference: float
    kl_per_token_nats: float
    logit_std: float


class PublicBase(Spec):
    """Where on the hub the base of an export is."""

    hub: str
    commit: str


class GGUFFile(Spec):
    """A GGUF file of an export, and how llama.cpp computes with it; without figures where it was not run."""

    file: str
    bytes: int
    precision: str
    verified: bool
    max_abs_logprob_difference: float | None = None
    kl_per_token_nats: float | None = None
    top1_agreement: float | None = None
    next_token_nats: float | None = None
    next_token_nats_of_checkpoint: float | None = None
    clear_positions: int | None = None
    clear_agreement: int | None = None
    positions: int | None = None
    tokenized_equal: int | None = None
    greedy_equal: int | None = None
    texts: int | None = None


class RunnerResult(Spec):
    """How another program computes an export, compared with langext in float32; nan where the program computes no number."""

    model_config = ConfigDict(allow_inf_nan=True)

    runner: str
    version: str
    """Name and version of its package."""
    max_abs_logprob_difference: float
    """In nats; of the most likely tokens alone where the program does not give the others."""
    top1_agreement: float
    positions: int
    logit_std: float
    texts: int
    tokenized_equal: int | None = None
    """Texts that the program splits into the same tokens; None where it was given the tokens."""
    greedy_equal: int | None = None
    """Texts that it continues in the same way; None where that was not asked."""


class ExportSummary(LogitDifference, Summary):
    """Of stage export; export.json holds the same. The figures compare what is stored, loaded again, with what was trained."""

    of: Literal["export"] = "export"
    format: str
    architecture: str
    """In words."""
    loads_as: str
    """The class that transformers makes of it."""
    weights: str
    """Precision of the stored weights."""
    compared_in: str
    rounding: LogitDifference
    """What rounding to that precision cost, before the comparison."""
    max_abs_allowed: float
    max_abs_difference_cached: float
    """The same with a key-value cache."""
    max_abs_logprob_difference: float | None = None
    top1_agreement: float
    greedy_equal: int
    tokenized_equal: int
    texts: int
    tokens: int
    base: PublicBase | None = None
    files: list[GGUFFile] = []
    runners: list[RunnerResult] = []
    """Of the programs that the user asked for."""
