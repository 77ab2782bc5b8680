"""What each stage reports into its manifest: one typed model a stage. Readers take a summary by its type, never by a key.

A stage that comes with a summary of its own defines it in its own file; those that the report or the model card read are here.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from langext.spec import Spec, Summary

Role = Literal["train", "protect", "measure"]
"""What a source is there for: text of a language of the run; text that the model is to be kept as it is on, which is never
trained on; or text that is only measured."""
ROLES: dict[Role, str] = {"train": "of the run", "protect": "protected", "measure": "only measured, not protected"}
"""The same in words."""
Line = Annotated[str, Field(pattern=r"^[^\n\r<>|`]*$")]
"""Text that stays what it is in a line or a table of Markdown."""


class FunnelStep(Spec):
    """What was left of a source after one step."""

    name: str
    """read, language, quality, duplicates or contamination."""
    documents: int
    bytes: int


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
    steps: list[FunnelStep] = []
    """What was left after each step, in their order. Runs of earlier versions have none."""
    repaired: int = 0
    """Documents with wrongly decoded letters (mojibake), which were mended."""
    lines_dropped: dict[str, int] = {}
    """Reason -> lines that the quality rules took out of documents that they kept or dropped."""
    divided: bool = False
    """Whether it has so few documents that they were held out by passages. Duplicates and contamination are passages then."""

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
    sha256: str


class SourceRecord(Spec):
    """What one source was when it was begun to be read, written down before."""

    files: list[SourceFile]
    unread: list[str]
    commit: str | None
    tasks: int
    """Parts that the source is read in."""


class LanguageRecord(Spec):
    """What the quality rules took a language to be like."""

    words: str
    """How its words are found: words (spaces and punctuation), graphemes (no words), or a tokenizer of datatrove."""
    sources: list[str]
    """The sources that this was found in, `<language>/<domain>`."""
    documents: int
    """How many of their documents were looked at."""
    stop_words: list[str]
    """The most frequent words; a document needs two of them."""
    mean_word_length: list[float]
    """Least and most characters that the words of a document may have on average; empty when it does not count."""
    left_out: dict[Line, Line]
    """Rule that is not applied to this language -> why."""


class BenchmarkRecord(Spec):
    """A benchmark that text was compared with."""

    task: str
    """Name of an lm-eval task, or path of a file."""
    items: int
    short: int = 0
    """Items that are too short to be found."""
    unread: str = ""
    """Why its items could not be read, so that text was not compared with them; empty when they were."""


class FilterSummary(Summary):
    """Of stage filter."""

    of: Literal["filter"] = "filter"
    funnel: list[FunnelRow]
    source_files: list[SourceFile]
    lid_sha256: str
    """Of the model that identified the languages."""
    lid_model: SourceFile | None = None
    """That model as a file. Runs of earlier versions have only its sha256."""
    duplicates: Literal["near", "exact", "off"] | None = None
    """Which duplicates were dropped. None in runs of earlier versions, which kept all."""
    qualities: dict[str, LanguageRecord] = {}
    """By language, where a source of it was judged by quality."""
    benchmarks: list[BenchmarkRecord] = []
    """What text was compared with."""


class VocabularyGain(Spec):
    """Held-out text in tokens, before and after."""

    bytes_per_token_before: float
    bytes_per_token_after: float
    identical_documents_frac: float
    """Share of documents that are encoded as before."""


class TokenizerSummary(Summary):
    """Of stage extend_tokenizer."""

    of: Literal["extend_tokenizer"] = "extend_tokenizer"
    new_tokens: int
    heldout: dict[str, VocabularyGain]
    """By language."""


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
