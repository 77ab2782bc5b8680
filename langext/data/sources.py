"""The sources of text that a pipeline names: where they are, what can be read there, and what it was when it was read."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from langext import languages
from langext.console import Progress, warn
from langext.data import assets, source_files
from langext.data.source_files import EVERY, PARQUET, SUFFIXES, TXT, Division, Found
from langext.errors import ConfigError, one_line, user_path
from langext.spec import LATER, Spec
from langext.summaries import Role, SourceFile, SourceRecord

if TYPE_CHECKING:
    from langext.data.readers import Reader

MAX_TASKS = 64
"""Most tasks that the files of one source are shared among."""
PROTECTED_HELDOUT = 0.05
"""Least share of protected documents that is held out: such sets are small, and nothing is trained on them."""
LONGEST_NAME = 100
"""Letters of a domain, which becomes the name of files."""


class Source(Spec):
    """A source of text in one language."""

    language: str
    """Language of the text: the new language or an original one; with `protect` or `measure_only` any other, mul (text in many
    languages) or zxx (code, formulas)."""
    path: str | None = Field(None, min_length=1)
    """A file or folder (.txt, .jsonl, .parquet, also .gz), or asset:<name>. In a folder, links are followed, and what is
    hidden is not read."""
    hub: str | None = Field(None, min_length=1)
    """A dataset on the Hugging Face hub, in place of `path`; it is streamed. A local folder in the form of one works too."""
    config: str | None = None
    """Configuration of the hub dataset, e.g. fra_Latn."""
    split: str = "train"
    """Split of the hub dataset."""
    revision: str | None = None
    """Commit, tag or branch of the hub dataset. The commit that was read is recorded."""
    text_column: str = "text"
    """The field that holds the text."""
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
    quality: Annotated[Literal["web", "off"], LATER] = "off"
    """web: keep only running text, by the rules of Gopher, C4 and FineWeb. For pages as they came from the web; of manuals,
    laws and lists these rules drop much."""
    txt_documents: Annotated[Division, LATER] = "blocks"
    """What one document of a .txt file is: blocks (the text between blank lines), lines (every line), or files (the whole
    file). In other files every object or row is a document."""

    @field_validator("language")
    @classmethod
    def _language(cls, value: str) -> str:
        return languages.find(value).code

    @model_validator(mode="after")
    def _one_place(self) -> "Source":
        if (self.path is None) == (self.hub is None):
            raise ValueError("a source needs either path or hub")
        if self.path is not None and (self.config or self.revision or self.split != "train"):
            raise ValueError("config, split and revision belong to hub sources, this one has a path")
        if self.quality != "off" and not languages.find(self.language).single:
            raise ValueError("quality is for text in one language")
        if self.hub is not None and self.txt_documents != "blocks":
            raise ValueError("txt_documents belongs to sources with a path, this one is of the hub")
        return self

    @model_validator(mode="after")
    def _one_purpose(self) -> "Source":
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
        ending = Path(self.path or "").name.lstrip(".").split(".")[0].removeprefix(assets.PREFIX)
        raw = self.name or self.hub or ending or "text"
        return "".join(c if c.isalnum() or c in "_-" else "-" for c in raw)[:LONGEST_NAME]

    @property
    def key(self) -> str:
        """`<language>/<domain>`."""
        return f"{self.language}/{self.domain}"

    @property
    def origin(self) -> str:
        """Path or dataset, with its configuration, for reports."""
        return self.path or "/".join(filter(None, [self.hub, self.config]))

    def folder(self) -> Path | None:
        """The local file or folder; None of a dataset on the hub. Raises ConfigError when it can be seen that it is missing."""
        if self.path is not None:
            return assets.resolve(self.path) if self.path.startswith(assets.PREFIX) else user_path(self.path, "path")
        path = user_path(self.hub or "", "hub")
        if path.is_file():
            raise ConfigError(f"hub: {one_line(path)} is a file; name it with path")
        if not path.exists() and (self.hub or "").startswith((".", "/", "~")):
            raise ConfigError(f"hub dataset {one_line(path)}: no such folder")
        return path if path.exists() else None

    def found(self) -> Found | None:
        """The local files; None of a dataset on the hub. Of a local dataset all files, for its README.md counts too."""
        folder = self.folder()
        return source_files.find(folder, SUFFIXES if self.path else EVERY) if folder else None

    def check(self) -> None:
        """Raise ConfigError for what shows without reading it all: files that are no text, tables without the column.

        Names what is not read in a warning.
        """
        found = self.found()
        if found is None:
            _check_name(self.hub or "")
            return
        if found.unread:
            warn(f"source {self.domain}: {one_line(self.origin)}: {found.told()}")
        if self.hub:
            from langext.data import hub

            if self.revision:
                raise ConfigError(
                    f"hub dataset {one_line(self.hub)}: revision is for datasets on the hub; this is a local folder"
                )
            for path in found.files.values():
                source_files.check_pointer(path)
            hub.check(self._dataset, self._options(None))
            return
        where, kinds = one_line(self.origin), {source_files.kind(path) for path in found.files.values()}
        if PARQUET in kinds and len(kinds) > 1:
            raise ConfigError(f"{where}: holds both Parquet and text files; name them in two sources")
        if self.txt_documents != "blocks" and TXT not in kinds:
            raise ConfigError(f"{where}: txt_documents is for .txt files, and there is none")
        if self.text_column != "text" and kinds == {TXT}:
            raise ConfigError(f"{where}: text_column is for .jsonl and .parquet files, and there is none")
        if not any([source_files.check(path, self.text_column) for path in found.files.values()]):
            raise ConfigError(f"{where}: the source is empty, its tables have no rows")

    def commit(self) -> str:
        """The commit that the dataset on the hub stands at now. Raises ConfigError or RunFailed when it is not said."""
        from langext.data import hub

        return hub.commit(self.hub or "", self.revision)

    def record(self) -> SourceRecord:
        """What the source is now. Reads every local file once, for its sha256; asks the hub for the commit of its datasets."""
        found = self.found()
        commit = self.commit() if found is None else None
        files = found.files if found else {}
        tasks = len(files)
        if self.hub and not self.max_documents:
            from langext.data import hub

            tasks = hub.shards(self._dataset, self._options(commit))
        return SourceRecord(
            files=self._records(files),
            unread=found.first(source_files.RECORDED) if found else [],
            commit=commit,
            tasks=1 if self.max_documents else min(tasks, MAX_TASKS),
        )

    def _records(self, files: dict[str, Path]) -> list[SourceFile]:
        sizes = [source_files.size(path) for path in files.values()]
        progress = Progress(f"{self.domain}: hashing", max(1, sum(sizes)))
        records, done = [], 0
        for (name, path), size in zip(files.items(), sizes, strict=True):
            progress.at(done, one_line(name))
            records.append(source_files.record(self.key, name, path))
            done += size
        return records

    def difference(self, then: Sequence[SourceFile], *, count_new: bool = True) -> str:
        """The first local file that has changed, is gone, or is new (if `count_new`) since `then`, in words; else empty.

        Raises ConfigError when the source is gone as a whole, and RunFailed when a file cannot be read.
        """
        found, folder = self.found(), self.folder()
        if found is None or folder is None:
            return ""
        for file in then:
            # Not only what would be read today: an earlier version read hidden files, and a file can have become empty.
            path = _place(folder, file.name)
            if not path.exists():
                return f"source file {one_line(file.path)} was filtered and is gone"
            if source_files.changed(path, file):
                return f"source file {one_line(path)} has changed since it was filtered"
        before = {file.name for file in then}
        new = next((name for name in found.files if name not in before), None)
        return f"source file {one_line(found.files[new])} is new since its folder was filtered" if new and count_new else ""

    def reader(self, record: SourceRecord) -> "Reader":
        """The step that reads what `record` describes. What is no longer there is found out when it is read."""
        if self.hub:
            from langext.data import hub

            return hub.HubReader(self._dataset, self._options(record.commit), self.text_column, self.max_documents)
        from langext.data import readers

        folder = self.folder()
        files = {file.name: _place(folder, file.name) for file in record.files} if folder else {}
        if all(source_files.kind(path) == PARQUET for path in files.values()):
            return readers.TableReader(files, self.text_column, self.max_documents)
        sizes = {file.name: file.bytes for file in record.files}
        return readers.TextReader(files, self.text_column, self.max_documents, self.txt_documents, self.domain, sizes)

    @property
    def _dataset(self) -> str:
        return str(self.folder() or self.hub)

    def _options(self, commit: str | None) -> dict[str, str | None]:
        return {"name": self.config, "split": self.split, "revision": commit}


def _place(at: Path, name: str) -> Path:
    """Path of the file `name` of the source at `at`, which is a folder, or that file itself."""
    return at if at.name == name and not at.is_dir() else at / name


def _check_name(dataset: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(dataset)
    except HFValidationError as error:
        raise ConfigError(f"hub: {one_line(error)}") from None
