"""What stage filter reports of text: every source as it was read, what became of it, and why."""

from typing import Annotated, Literal

from pydantic import Field

from langext.spec import Line, Spec, Summary

Role = Literal["train", "protect", "measure"]
"""What a source is there for: text of a language of the run; text that the model is to be kept as it is on, which is never
trained on; or text that is only measured."""
ROLES: dict[Role, str] = {"train": "of the run", "protect": "protected", "measure": "only measured, not protected"}
"""The same in words."""


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
    marks: int = 0
    """Byte order marks that were removed, at the beginning of lines and within texts, where they are spaces without width."""
    lost_files: int = 0
    """Damaged archives, among others, of which nothing could be read."""
    lost_bytes: int = 0
    """Their bytes."""
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
    steps: list[FunnelStep] = []
    """What was left after each step, in their order. Runs of earlier versions have none."""
    repaired: int = 0
    """Documents with wrongly decoded letters (mojibake), which were mended."""
    lines_dropped: dict[str, int] = {}
    """Reason -> lines that the quality rules took out of documents that they kept or dropped."""
    heldout_parts: int = 0
    """Paragraphs and lines that were taken out of its text to train on, because they are held out here or in another source."""
    benchmark_parts: int = 0
    """Parts that were cut out of its documents because they hold a piece of a benchmark's item."""
    divided: bool = False
    """Whether it has so few documents that they were held out by passages. `valid_documents`, and what was dropped after the
    language and quality, are passages then."""
    tokens_per_byte: float | None = None
    """Tokens of the base's tokenizer for a byte, in a sample of what is kept; from it the tokens after all steps are estimated.
    None where the base was not at hand, and in runs of earlier versions."""
    tokens_of: str = ""
    """`content` of the manifest of that base: text that is taken from another run may have been estimated with another one."""

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
        """Documents of which something is trained on or held out."""
        if self.divided and self.steps:  # what is held out are passages
            return self.steps[-1].documents
        return self.train_documents + self.valid_documents

    @property
    def kept_frac(self) -> float:
        """Share of the text that was read, in bytes, which is trained on or held out."""
        read = self.steps[0].bytes if self.steps else self.bytes_read
        return (self.train_bytes + self.valid_bytes) / max(1, read)

    def tokens(self, num_bytes: int, base: str) -> int | None:
        """About how many tokens of the base with this `content` so much of its text is; None when that is not known."""
        if self.tokens_per_byte is None or self.tokens_of != base:
            return None
        return round(num_bytes * self.tokens_per_byte)


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


_Frac = Annotated[float, Field(ge=0)]
_Runs = list[tuple[Annotated[int, Field(ge=1)], _Frac]]


class QualityValues(Spec):
    """What FineWeb-2 publishes for one language (langext/data/published.py). Shares are of a document."""

    dup_line_frac: _Frac
    """Most share of lines that were there before."""
    dup_n_grams: _Runs
    """Number of words, and most share of the letters in runs of so many words that were there before."""
    top_n_grams: _Runs
    """Number of words, and most share of the letters in the most frequent run of so many."""
    language_score: _Frac | None = None
    """Least score of GlotLID; not applied here, since stage filter finds its own cut."""
    line_punct_thr: _Frac
    """Least share of lines that end like a sentence."""
    new_line_ratio: _Frac
    """Most line ends for each word."""
    max_avg_word_length: _Frac
    min_avg_word_length: _Frac
    """Most and least letters that words have on average."""
    max_non_alpha_words_ratio: _Frac
    """Least share of words with a letter, which datatrove calls so."""
    stopwords: list[str]
    """Words of which a document needs two."""


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
    published: QualityValues | None = None
    """FineWeb-2's values, which are applied in place of what was found; None where it was not asked for them or has none."""


class BenchmarkRecord(Spec):
    """A benchmark that text was compared with."""

    task: str
    """Name of an lm-eval task, or path of a file."""
    items: int
    short: int = 0
    """Items that cannot be found: they are too short, or many items have all that they have."""
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
    tasks: list[str] = []
    """lm-eval tasks that text was compared with, as stages evaluate name them."""
    compared_files: dict[str, str] = {}
    """Path -> sha256 of the files of the user's own among them."""
