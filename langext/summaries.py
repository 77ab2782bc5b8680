"""What each stage reports into its manifest: one typed model a stage. Readers take a summary by its type, never by a key.

A stage that comes with a summary of its own defines it in its own file; those that the report or the model card read are here.
"""

from typing import Literal

from pydantic import ConfigDict

from langext.spec import Line, Spec, Summary


class VocabularyGain(Spec):
    """Held-out text in tokens, before and after."""

    bytes_per_token_before: float
    bytes_per_token_after: float
    identical_documents_frac: float
    """Share of documents that are encoded as before."""
    documents: int | None = None
    """How many there are. None in older manifests."""


class ProtectedText(Spec):
    """Text whose encoding the new tokens leave alone, and what that cost."""

    documents: int
    identical: int
    """Documents that are encoded as by the base: all of them."""
    tokens: int
    replaced: int
    """Tokens of the base in whose place new tokens stand: none."""
    kept_apart: int
    """Pairs of base tokens that are neighbours in this text, and were not joined for that."""
    bytes_per_token_without: float
    """Held-out text of the new language with as many tokens that were learnt without protection."""
    sets: dict[str, int] = {}
    """Documents of each set, by `<language>/<domain>`. Empty in older manifests."""


class StartRecord(Spec):
    """What a start of the rows of new tokens came to. Losses and KL are in nats per token."""

    model_config = ConfigDict(allow_inf_nan=True)

    kl: float | None = None
    """KL(base || extended) on held-out original text; None without such text."""
    kl_unshifted: float | None = None
    """The same before the output rows were shifted."""
    shift: float = 0.0
    """How far, in nats of a logit on original text."""
    loss: float | None = None
    """On training text of the new language that no start was made of; of a probe alone."""
    loss_after: float | None = None
    """After the steps of the probe."""
    failure: str = ""
    """Why it could not be computed, and was left out of the probe."""


class RowsRecord(Spec):
    """The rows that new tokens start from."""

    start: str
    """The start that was taken."""
    kl_budget: float | None
    tried: dict[str, StartRecord]
    """By the name of the start."""


class SizeCompared(Spec):
    """A vocabulary of some size, on training text of the new language that nothing was learnt from."""

    new_tokens: int
    bytes_per_token: float
    """Of the new language."""
    identical_documents_frac: float | None
    """Share of held-out documents of the original languages that are encoded as by the base; None without any."""


class VocabularyAdvice(Spec):
    """What `new_tokens: auto` has come to."""

    new_tokens: int
    """0: the vocabulary stays as it is."""
    reason: Line
    compared: list[SizeCompared] = []
    """The base first; empty when it was plain without learning tokens."""


class TokenizerSummary(Summary):
    """Of stage extend_tokenizer."""

    of: Literal["extend_tokenizer"] = "extend_tokenizer"
    new_tokens: int
    reused: int = 0
    """New tokens that have the ids of reserved ones of the base."""
    heldout: dict[str, VocabularyGain]
    """By language."""
    heldout_sets: dict[str, VocabularyGain] = {}
    """By `<language>/<domain>`, also of text that is protected or only measured. Empty in older manifests."""
    protected: ProtectedText | None = None
    """Absent without protection."""
    rows: RowsRecord | None = None
    """Absent in what was made before starts could be chosen, which is `mean`."""
    advice: VocabularyAdvice | None = None
    """Present with `new_tokens: auto`."""


class GateShares(Spec):
    """What gates do on some text."""

    tokens: int
    all_closed: float
    """Share of the tokens for which the gates of all layers are closed."""
    open: list[float]
    """For each layer with a block, the share of the tokens whose gate is open."""


class CalibrationRecord(Spec):
    """Gates with thresholds, as they were calibrated on the activations of the base."""

    closed: float
    """The share of original tokens that was to have every gate closed."""
    layers: list[int]
    """Layers with a block, counted from 0."""
    left_out: dict[int, float]
    """Layers without a block because they separate badly -> share of the new language that would have opened the gate."""
    heldout: dict[str, GateShares]
    """Of text that did not calibrate the gates, by `<language>/<domain>`."""


class ExtendSummary(Summary):
    """Of stage extend."""

    of: Literal["extend"] = "extend"
    method: str
    base_parameters: int
    trainable_parameters: int
    new_tokens: int
    gates: CalibrationRecord | None = None
    """Of a method whose gates are calibrated."""


class Training(Spec):
    """What a model was trained on."""

    tokens: int
    steps: int
    shares: dict[Line, float]
    """Of the tokens, by source."""
    epochs: dict[Line, float]
    """How often each source's text was read."""


class TrainSummary(Training, Summary):
    """Of stage train."""

    of: Literal["train"] = "train"
    lr: float
    precision: Literal["bf16", "fp32"]
    """What the training computed in."""
    penalties: list[str]
    result_step: int
    """The step whose weights became the model."""
    within_budget: bool | None = None
    """Whether these weights keep to the forgetting budget; None without one."""
    seconds: float
    tokens_per_second: float | None
    bits_per_byte: dict[str, float]
    """Of the held-out passages that training watches, by `<language>/<domain>`."""
    kl_to_base: float | None
    """KL(base || model) on held-out original text, nats per token."""
    dead_layers: list[int] | None
    """Layers whose gate is closed for all of the new language."""
    weights: dict[str, float]
    """Figures about the weights themselves."""


class DialPoint(Spec):
    """A model with the thresholds of one setting of the dial, measured on held-out text."""

    model_config = ConfigDict(allow_inf_nan=True)

    closed: float
    """The share of original tokens that was to have every gate closed."""
    bits_per_byte: dict[str, float]
    """By `<language>/<domain>`."""
    kl_to_base: dict[str, float]
    """KL(base || model) in nats per token, by `<language>/<domain>`, of all text that is not of the new language."""
    all_closed: dict[str, float]
    """Share of the tokens for which the gates of all layers are closed, by `<language>/<domain>`."""
    gain: float
    """Mean over the domains of the new language of 1 - bits per byte / those of the base."""
    drift: float
    """The largest `kl_to_base` of the domains of the original languages."""
    score: float
    """What the best point is chosen by."""


class RecalibrateSummary(Summary):
    """Of stage recalibrate."""

    of: Literal["recalibrate"] = "recalibrate"
    base: dict[str, float]
    """Bits per byte of the base, by `<language>/<domain>`."""
    curve: list[DialPoint]
    """From cautious to eager."""
    max_kl: float | None
    """The most `drift` that was allowed."""
    gates: CalibrationRecord
    """Of the point that was chosen."""


class TaskFile(Spec):
    """A file that a task of one's own is made of."""

    path: str
    sha256: str


class EvaluateSummary(Summary):
    """Of stage evaluate; the scores themselves are in scores.json."""

    of: Literal["evaluate"] = "evaluate"
    bits_per_byte: dict[str, float]
    scores: str
    """Format of scores.json."""
    task_files: list[TaskFile]
    measured_with: dict[str, str]
    """The settings that decide what the figures of tasks mean."""


class History(Spec):
    """How a model came about."""

    training: Training | None
    """None when it was merged."""
    afterwards: list[Line]
    """What was done then, in words."""


class HistorySummary(Summary):
    """Of a model whose stages are not in its run folder: it came out of a delta, or of a training that has not ended."""

    of: Literal["history"] = "history"
    history: History


class TransplantSummary(Summary):
    """Of stage transplant."""

    of: Literal["transplant"] = "transplant"
    method: str
    history: History
    """How the model came about in the run that gave it."""
    contents: list[str] = []
    """What the donor was, by its bytes."""
