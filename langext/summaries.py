"""What each stage reports into its manifest: one typed model a stage. Readers take a summary by its type, never by a key.

A stage that comes with a summary of its own defines it in its own file; those that the report or the model card read are here.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from langext.spec import Spec, Summary

Role = Literal["train", "protect", "measure"]
"""What a source is there for: text of a language of the run; text that the model is to be kept as it is on, which is never
trained on; or text that is only measured."""
ROLES: dict[Role, str] = {"train": "of the run", "protect": "protected", "measure": "only measured, not protected"}
"""The same in words."""
Line = Annotated[str, Field(pattern=r"^[^\n\r<>|`]*$")]
"""Text that stays what it is in a line or a table of Markdown."""


class Cut(Spec):
    """How sure the language-identification model must be of the text of one source, and how that was found."""

    rule: Literal["auto", "threshold"]
    """auto: found in a sample of the source. threshold: the number that was given."""
    labels: list[str]
    """The model's labels that stand for the language."""
    score: float
    """Least probability of the language."""
    margins: dict[str, float] = {}
    """Neighbouring label -> how many times as probable as this runner-up the language must be."""
    usual: float | None = None
    """Median probability in the sample, of the text that the model takes for the language; None when it takes none."""
    sampled: int = 0
    """Documents, paragraphs or lines in the sample."""
    right_frac: float = 0.0
    """Share of the sample, in characters, that the model takes for the language."""
    kept_frac: float = 0.0
    """Share of that which the cuts keep."""
    others: dict[str, float] = {}
    """The labels that most of the rest is taken for -> their shares of the sample, in characters."""

    @property
    def told(self) -> str:
        """The cuts in words."""
        margins = ", ".join(f"{label} x {margin:g}" for label, margin in self.margins.items())
        near = f"; runner-up {margins}" if margins else ""
        return f"{'/'.join(self.labels)} >= {self.score:.2f}{near}" + (" (given)" if self.rule == "threshold" else "")


class FunnelRow(Spec):
    """What became of the text of one source."""

    language: str
    domain: str
    origin: str
    """A path, or a hub data set with its configuration and revision."""
    documents_read: int
    judged: int
    """Documents, or paragraphs, that the language filter has seen."""
    bytes_read: int
    dropped: dict[str, int]
    """Reason -> how many of those that were judged."""
    train_documents: int
    train_bytes: int
    valid_documents: int
    valid_bytes: int
    mended: int = 0
    """Documents with broken Unicode, in which U+FFFD now stands for every half of a character."""
    composed: int = 0
    """Documents that were in another Unicode form and are now in NFC."""
    undivided: int = 0
    """.txt files of several lines that are one document each, because they have no blank line."""
    unread: list[str] = []
    """What is in the source's folder and was not read."""
    commit: str | None = None
    """The commit of a hub data set that was read."""
    role: Role = "train"
    """What the source is there for."""
    right_bytes: int = 0
    """Bytes of text that the language-identification model takes for the language first of all."""
    right_kept_bytes: int = 0
    """Of these, the bytes that are kept for the language; other steps may drop more."""
    cut: Cut | None = None
    """How sure the model had to be. None of text in many languages and in none, and in runs of earlier versions."""

    @property
    def source(self) -> str:
        """`<language>/<domain>`."""
        return f"{self.language}/{self.domain}"

    @property
    def what(self) -> str:
        """`role` in words."""
        return ROLES[self.role]

    @property
    def used(self) -> str:
        """How much of the text is used for what, in words."""
        purpose = {"train": f"{self.train_bytes / 1e6:.2f} MB to train on",
                   "protect": f"{self.what}: {self.train_bytes / 1e6:.2f} MB to calibrate gates on",
                   "measure": self.what}[self.role]  # fmt: skip
        return f"{purpose}, {self.valid_bytes / 1e6:.2f} MB held out"

    @property
    def kept(self) -> int:
        """Documents that are trained on or held out."""
        return self.train_documents + self.valid_documents


class SourceFile(Spec):
    """A local file that text was read from, as it was then."""

    source: str
    """`<language>/<domain>`."""
    name: str
    """Path below the source's folder."""
    path: str
    bytes: int
    modified_ns: int
    """Nanoseconds since 1970; 0 of a file in an object store."""
    sha256: str
    """Empty of a file in an object store, which is not read twice."""
    etag: str = ""
    """What an object store has as the version of a file, or the time that it was written at."""


class SourceRecord(Spec):
    """What one source was when it was begun to be read, written down before."""

    files: list[SourceFile]
    unread: list[str]
    commit: str | None
    tasks: int
    """Parts that the source is read in."""


class FilterSummary(Summary):
    """Of stage filter."""

    of: Literal["filter"] = "filter"
    funnel: list[FunnelRow]
    source_files: list[SourceFile]
    lid_sha256: str
    """Of the model that identified the languages."""
    lid_model: SourceFile | None = None
    """That model as a file. Runs of earlier versions have only its sha256."""


class VocabularyGain(Spec):
    """Held-out text in tokens, before and after."""

    bytes_per_token_before: float
    bytes_per_token_after: float
    identical_documents_frac: float
    """Share of documents that are encoded as before."""


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


class TokenizerSummary(Summary):
    """Of stage extend_tokenizer."""

    of: Literal["extend_tokenizer"] = "extend_tokenizer"
    new_tokens: int
    heldout: dict[str, VocabularyGain]
    """By language."""
    protected: ProtectedText | None = None
    """Absent without protection."""


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


class RescaleSummary(Summary):
    """Of stage rescale."""

    of: Literal["rescale"] = "rescale"
    alpha: float | None
    """None when layers were reverted instead."""
    curve: list[dict[str, Any]]
    """For each alpha that was tried: bits per byte, learning, retention and score."""
    reverted: list[int] = []
    """Numbers, from 0, of the layers that have their weights from before the training."""


class RegateSummary(Summary):
    """Of stage regate."""

    of: Literal["regate"] = "regate"
    bits_per_byte: dict[str, dict[str, float]]
    """trained (with the old gate), fitted, distilled -> bits per byte by `<language>/<domain>`."""
    kept: str
    """fitted or distilled."""
    kl_per_token: list[float]
    """Of each step of the distillation, in nats."""


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
    """Mean of `kl_to_base` over the domains of the original languages."""
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


class MergeSummary(Summary):
    """Of stage merge."""

    of: Literal["merge"] = "merge"
    models: list[str]
    """Folders of the models."""
    rule: str
    lines: bool
    scale: float
    alpha: float | None
    """Factor of the first layer, where the layers are scaled."""
    curve: list[dict[str, Any]]


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
