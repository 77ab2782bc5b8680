"""What a pipeline says of a source of text: where it is, what it holds, what it is there for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from langext import languages
from langext.data import assets, formats, piped, remote, source_files
from langext.data.source_files import Division
from langext.errors import ConfigError
from langext.spec import LATER, Spec
from langext.text_summaries import Role

PROTECTED_HELDOUT = 0.05
"""Least share of protected documents that is held out: such sets are small, and nothing is trained on them."""
LONGEST_NAME = 100
"""Bytes of a domain in UTF-8. It becomes the beginning of names of files, which may have 255 bytes, on some disks 143."""


class SourceSpec(Spec):
    """A source of text in one language."""

    language: str
    """Language of the text: the new language or an original one; with `protect` or `measure_only` any other, mul (text in many
    languages) or zxx (code, formulas)."""
    path: str | None = Field(None, min_length=1)
    """A file (.txt, .jsonl, .csv, .tsv, also .gz, .zst and .xz, or .parquet), a folder, a pattern (text/*.jsonl.gz), one of
    these in an object store (s3://, gs://, hf://), - for standard input, or asset:<name>. In a folder, links are followed, and
    what is hidden is not read."""
    hub: str | None = Field(None, min_length=1)
    """A dataset on the Hugging Face hub, in place of `path`; it is streamed. A local folder in the form of one works too."""
    config: str | None = None
    """Configuration of the hub dataset, e.g. fra_Latn."""
    split: str = "train"
    """Split of the hub dataset."""
    revision: str | None = None
    """Commit, tag or branch of the hub dataset. The commit that was read is recorded."""
    text_column: str | list[str] = "text"
    """The field that holds the text; in objects, with a dot (meta.body). Several are joined by a blank line: [title, text]."""
    name: str = Field("", pattern=r"^[A-Za-z0-9_-]*$", max_length=LONGEST_NAME)
    """Name of this domain in scores and reports; made from the path or dataset if empty."""
    max_documents: int | None = Field(None, ge=1)
    """Most documents to read; all when not given."""
    heldout_only: bool = False
    """Use this source only for measuring; nothing of it is trained on."""
    protect: Annotated[bool, LATER] = False
    """Keep the model as it is on this text: gates are calibrated on it as on an original language. It is never trained on. For
    languages, code or chat that are not original languages of the run."""
    measure_only: Annotated[bool, LATER] = False
    """Only measure what happens to this text; nothing is trained or calibrated on it. For languages that are not of the run:
    they are not protected."""
    identify: Annotated[bool, LATER] = True
    """Whether language identification judges the text. false keeps all of it: for a language that no model has a label for, or
    text that is surely in it."""
    quality: Annotated[Literal["web", "off"], LATER] = "off"
    """web: keep only running text, by the rules of Gopher, C4 and FineWeb. For pages as they came from the web; of manuals,
    laws and lists these rules drop much."""
    txt_documents: Annotated[Division, LATER] = "blocks"
    """What one document of a .txt file is: blocks (the text between blank lines), lines (every line), or files (the whole
    file). In other files every object or row is a document."""

    encoding: Annotated[str | None, LATER] = None
    """Encoding of text files that are not UTF-8, e.g. cp1252. UTF-16 and UTF-32 with a byte order mark are recognised."""
    format: Annotated[Literal["txt", "jsonl", "csv", "tsv", "parquet"] | None, LATER] = None
    """What comes from standard input; told from its first bytes if it is txt, jsonl or parquet."""
    max_bad_frac: Annotated[float | None, Field(ge=0, le=1), LATER] = None
    """Largest share of entries that cannot be read, as broken lines, before the run stops; that of the stage when not given.
    0 stops at the first one, 1 bears damaged files too."""

    @field_validator("encoding")
    @classmethod
    def _encoding(cls, value: str | None) -> str | None:
        return None if value is None else formats.encoding(value)

    @field_validator("text_column")
    @classmethod
    def _columns(cls, value: str | list[str]) -> str | list[str]:
        if not value or not all([value] if isinstance(value, str) else value):
            raise ValueError("a name is missing")
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError("a name is there twice")
        return value

    @field_validator("language")
    @classmethod
    def _language(cls, value: str) -> str:
        return languages.find(value).code

    @model_validator(mode="after")
    def _one_place(self) -> "SourceSpec":
        if (self.path is None) == (self.hub is None):
            raise ValueError("a source needs either path or hub")
        if self.path is not None and (self.config or self.revision or self.split != "train"):
            raise ValueError("config, split and revision belong to hub sources, this one has a path")
        if self.quality != "off" and not languages.find(self.language).single:
            raise ValueError("quality is for text in one language")
        if self.hub is not None and self.txt_documents != "blocks":
            raise ValueError("txt_documents belongs to sources with a path, this one is of the hub")
        if self.format and not self.piped:
            raise ValueError("format is for standard input (path: -); of files, the end of the name says it")
        remote.check_address(self.path or "")
        return self

    @model_validator(mode="after")
    def _one_purpose(self) -> "SourceSpec":
        given = [key for key in ("heldout_only", "protect", "measure_only") if getattr(self, key)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: a source has one of them at most")
        return self

    @property
    def role(self) -> Role:
        """What the source is there for."""
        return "protect" if self.protect else "measure" if self.measure_only else "train"

    def heldout(self, frac: float) -> float:
        """The share of documents to hold out, where it is `frac` for text to train on. Of protected text it is at least 5 %."""
        if self.heldout_only or self.measure_only:
            return 1.0
        return max(frac, PROTECTED_HELDOUT) if self.protect else frac

    @property
    def trained(self) -> bool:
        """Whether text of it is trained on."""
        return self.role == "train" and not self.heldout_only

    def check_role(self, language: str, originals: Sequence[str]) -> None:
        """Raise ConfigError when the text is not of the run and it is not said what it is for, or when it is and that is."""
        of_run = self.language in (language, *originals)
        if self.role == "train" and not of_run:
            raise ConfigError(
                f"source {self.domain}: {self.language} is not of this run ({', '.join((language, *originals))}); set protect, "
                "to keep the model as it is on this text, or measure_only, to see what happens to it"
            )
        if self.measure_only and of_run:
            raise ConfigError(
                f"source {self.domain}: measure_only is for other languages, and {self.language} is of this run; set "
                "heldout_only"
            )
        if self.protect and self.language == language:
            raise ConfigError(f"source {self.domain}: protect is not for {self.language}, which is to be learnt")
        if self.protect and of_run:
            raise ConfigError(
                f"source {self.domain}: protect is for other languages, and {self.language} is an original one, which is kept "
                f"anyway; what must not be trained on gets no share (shares: {{{self.key}: 0}} in stage train)"
            )

    @property
    def domain(self) -> str:
        """`name`, or a name made from the path or dataset, with only letters, digits, `_` and `-`."""
        path = self.path or ""
        last = remote.Remote(path.rstrip("/")).name if remote.is_remote(path) else Path(path).name
        ending = piped.NAME if self.piped else last.lstrip(".").split(".")[0].removeprefix(assets.PREFIX)
        if formats.pattern(ending) >= 0:  # what is the same in all names, or else the folder
            ending = ending[: formats.pattern(ending)].strip("-_") or source_files.parts(path)[0].rstrip("/").split("/")[-1]
            ending = ending.lstrip(".").removesuffix(":")
        raw = self.name or self.hub or ending or "text"
        plain = "".join(c if c.isalnum() or c in "_-" else "-" for c in raw)
        return plain.encode()[:LONGEST_NAME].decode(errors="ignore")

    @property
    def key(self) -> str:
        """`<language>/<domain>`."""
        return f"{self.language}/{self.domain}"

    @property
    def origin(self) -> str:
        """Path or dataset, with its configuration, for reports."""
        return ("standard input" if self.piped else self.path) or "/".join(filter(None, [self.hub, self.config]))

    @property
    def columns(self) -> list[str]:
        """The fields that hold the text."""
        return [self.text_column] if isinstance(self.text_column, str) else self.text_column

    @property
    def away(self) -> bool:
        """Whether the text is in an object store."""
        return remote.is_remote(self.path or "")

    @property
    def piped(self) -> bool:
        """Whether the text comes from standard input."""
        return self.path == piped.STDIN
