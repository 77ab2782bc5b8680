"""What stages hand to each other: a folder, `job.json` written before the work and `manifest.json` written last.

A folder without `manifest.json` is an unfinished stage. Nothing else marks completion.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from langext.console import told
from langext.errors import ConfigError, one_line, reading
from langext.spec import Benchmarks, Spec

MANIFEST = "manifest.json"
JOB = "job.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
"""What training logs, one line of JSON at a time. Whatever shows a training reads this file."""
BASE = "base"
"""Folder, and name in `inputs:`, of the untouched base model."""
STOP = "stop"
"""A file in a stage's folder that asks its processes to save and leave; holds the number of a signal."""
LOCK = ".lock"
"""File in the run folder that `langext run` locks as long as it works there."""
TOKENS = "tokens"
"""Folder, in a run, of text as token ids. It can be deleted at any time: what a training still needs is made again."""

S = TypeVar("S", bound=Spec)


class FileRecord(Spec):
    """One file of a finished stage."""

    name: str
    """Path below the stage's folder."""
    bytes: int
    sha256: str
    modified_ns: int | None = None
    """When it was last changed; recorded for files that lie elsewhere: those of a base, and of assets."""


class InputRecord(Spec):
    """What a stage read."""

    stage: str
    """Name of the stage that made it."""
    path: str
    fingerprint: str


class Job(Spec):
    """job.json: all that the process of a stage is told."""

    stage: dict[str, Any]
    """The stage as the pipeline file has it, all defaults filled in."""
    inputs: dict[str, InputRecord]
    language: str
    original_languages: list[str]
    seed: int
    fingerprint: str
    identity: dict[str, Any]
    """What the fingerprint is of."""
    tokens: str
    """Folder of text as token ids."""
    failure: Literal["config", "run"] | None = None
    """How the stage ended without being finished. After a ConfigError ("config") the next run starts it from nothing. After a
    RunFailed ("run") the same recipe goes on with what is there, and a changed one starts from nothing. Checkpoints are never
    discarded, and stage evaluate keeps the tasks that it has measured.
    """
    benchmarks: list[Benchmarks] = []
    """What stages evaluate of the pipeline measure."""
    prepare_seconds: float = 0.0
    """How long the work took that was done before the stage's processes were started."""


class Manifest(Spec):
    """manifest.json of a finished stage."""

    kind: str
    """Name of the artifact's class."""
    trained: bool = True
    """False of a model that no training has touched since it was extended."""
    stage: dict[str, Any]
    choices: dict[str, Any] = {}
    """The settings that decide what a model learns; runs are compared by them."""
    inputs: dict[str, InputRecord]
    fingerprint: str
    identity: dict[str, Any]
    seed: int
    summary: dict[str, Any]
    files: list[FileRecord]
    started: float
    """Seconds since 1970."""
    seconds: float
    peak_memory_bytes: int
    device: str
    versions: dict[str, str]

    @property
    def name(self) -> str:
        """How the stage is called in its pipeline."""
        return self.stage.get("name") or self.stage.get("uses", "?")

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 of every file by name."""
        return {file.name: file.sha256 for file in self.files}

    def summary_as(self, cls: type[S]) -> S | None:
        """The summary, if it is one of this type."""
        if self.summary.get("of") != cls.model_fields["of"].default:
            return None
        try:
            return cls.model_validate(self.summary)
        except ValidationError as error:
            what = first_problem(error)
            raise ConfigError(f"{self.name}: its summary was written by another version of langext ({what})") from None


class BaseManifest(Spec):
    """manifest.json of the prepared base model."""

    kind: str = "Model"
    identity: dict[str, Any]
    commit: str | None
    """Of a hub model."""
    root: str
    """What the first run of a chain called the base."""
    folder: str
    """Where the weights lie."""
    local: str | None
    """The path that the pipeline named; None of a hub model."""
    files: list[FileRecord]

    @property
    def content(self) -> str:
        """What the base is by its bytes, wherever it lies and whatever it is called."""
        return fingerprint({"model": self.identity.get("model"), "files": {file.name: file.sha256 for file in self.files}})


@dataclass(frozen=True)
class Artifact:
    """A stage's folder. Subclasses name the kind, so that wiring can be checked by type."""

    path: Path

    @property
    def manifest(self) -> Manifest:
        """The record of the finished stage. Raises FileNotFoundError while it is not finished."""
        return read_as(self.path / MANIFEST, Manifest)


class Corpus(Artifact):
    """Filtered text: `documents/<train|valid>/<language>/<source>.jsonl.gz` of {"text", "id", ...}."""

    def files(self, split: str, language: str) -> list[Path]:
        """The document files of one language, sorted. `split` is "train" or "valid"."""
        return sorted((self.path / "documents" / split / language).glob("*.jsonl.gz"))

    def languages(self, split: str) -> list[str]:
        """Codes of the languages that have text in a split, sorted. With "train" they are those of the run, which are trained
        on, and those that are protected; with "valid" also those that are only measured.
        """
        return sorted({path.parent.name for path in (self.path / "documents" / split).glob("*/*.jsonl.gz")})


class Tokenizer(Artifact):
    """`tokenizer/` in Hugging Face format plus `new_tokens.json`: id -> the base ids that the token replaces."""


class Model(Artifact):
    """`model.json` (base folder, method, tokenizer) and `delta.safetensors`: everything that differs from the base."""


class Scores(Artifact):
    """`scores.json`: bits per byte and task results with standard errors, and text samples."""


class Checkpoint(Artifact):
    """`checkpoint/`: a model folder (or GGUF files, or a delta), and `export.json` with its verification."""


def fingerprint(value: Any) -> str:
    """Twelve hex digits that change if and only if `value` does. Raises on what has no stable JSON form."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Parse a UTF-8 JSON file. Raises ConfigError, with the place, for a file that cannot be read or is not JSON."""
    with reading(path, "JSON"):
        return json.loads(path.read_text(encoding="utf-8"))


def read_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that holds an object. Raises ConfigError as `read_json`, and for another kind of value."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, and it holds {type(value).__name__}")
    return value


def first_problem(error: ValidationError) -> str:
    """Where and what the first mistake in a record is, on one line."""
    problem = error.errors()[0]
    return f"{one_line('.'.join(map(str, problem['loc'])))}: {one_line(problem['msg'])}"


def read_as(path: Path, cls: type[S]) -> S:
    """A JSON file as a typed object. Raises ConfigError for one that is damaged or of another version of langext."""
    try:
        return cls.model_validate(read_json(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}; it is damaged, or another version of langext wrote it") from None


def manifests(root: Path) -> list[Path]:
    """The manifests of the finished stages of a run folder, in order; [] when it is none."""
    return sorted(root.glob(f"[0-9][0-9]-*/{MANIFEST}"))


def is_run(root: Path) -> bool:
    """Whether a folder is that of a run with at least one finished stage."""
    return bool(manifests(root))


def finished(root: Path) -> list[tuple[Path, Manifest]]:
    """Folder and manifest of every finished stage of a run, in order. Raises ConfigError when `root` is no run folder."""
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder")
    if not is_run(root):
        raise ConfigError(f"{root}: no finished stage here, so there is nothing to report")
    return [(path.parent, read_as(path, Manifest)) for path in manifests(root)]


def read_base(root: Path) -> BaseManifest | None:
    """The manifest of the base in a run folder; None while it is not prepared."""
    path = root / BASE / MANIFEST
    return read_as(path, BaseManifest) if path.exists() else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file; [] when there is none. Raises ConfigError for a line that is no JSON object."""
    if not path.exists():
        return []
    with reading(path, "lines of JSON"):
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a kill may have cut the last one
        rows = [json.loads(line) for line in lines]
    if odd := next((number for number, row in enumerate(rows, 1) if not isinstance(row, dict)), None):
        raise ConfigError(f"{path}: line {odd}: expected a JSON object")
    return rows


def to_disk(path: Path) -> None:
    """Return only when the content of the file is on the disk, not just in the cache of the system."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write beside and rename, so that a killed run never leaves half a file. `value` may be a Spec."""
    plain = value.model_dump(mode="json") if isinstance(value, Spec) else value
    write_text(path, json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write beside and rename, in UTF-8: whoever reads `path`, after a kill too, finds the old text or the new one.

    A link that a stranger has put into the folder is replaced and not followed, under both names.
    """
    beside = path.with_name(path.name + ".tmp")
    beside.unlink(missing_ok=True)
    with beside.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A hard link where that is possible, else a copy: what stages and models hold can be large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def list_files(root: Path) -> list[FileRecord]:
    """Every payload file below `root`, for a manifest."""
    skip = {MANIFEST, JOB, STOP}
    every = sorted(p for p in root.rglob("*") if CHECKPOINTS not in p.relative_to(root).parts)  # those go once a stage is done
    files = [p for p in every if p.is_file() and p.name not in skip]
    return [file_record(p, root) for p in told(f"{root.name}: checksums", files)]


def file_record(path: Path, root: Path) -> FileRecord:
    """The record of one file below `root`."""
    return FileRecord(name=str(path.relative_to(root)), bytes=path.stat().st_size, sha256=sha256_file(path))
