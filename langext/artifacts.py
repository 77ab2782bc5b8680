"""What stages hand to each other: a directory, plus a manifest that is written last.

A directory without `manifest.json` is an unfinished stage. Nothing else marks completion.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langext.spec import ConfigError

MANIFEST = "manifest.json"
JOB = "job.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
"""What training logs, one line of JSON a time: the one interface between it and whatever reads its figures."""
BASE = "base"
"""Folder, and name in `inputs:`, of the untouched base model."""
STOP = "stop"
"""A file in a stage's folder that asks its processes to save and leave; holds the number of a signal."""
LOCK = ".lock"
WORKERS_LOCK = ".workers.lock"


@dataclass(frozen=True)
class Artifact:
    """A stage directory. Subclasses name the kind, so that wiring can be checked by type."""

    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """The record of the finished stage. Raises FileNotFoundError while the stage is not finished."""
        return read_json(self.path / MANIFEST)


class Corpus(Artifact):
    """Filtered text: `documents/<train|valid>/<language>/<source>.jsonl.gz` of {"text", "id", ...}."""

    def files(self, split: str, language: str) -> list[Path]:
        """The document files of one language, sorted. `split` is "train" or "valid"."""
        return sorted((self.path / "documents" / split / language).glob("*.jsonl.gz"))


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
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """Parse a UTF-8 JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def manifests(root: Path) -> list[Path]:
    """The manifests of the finished stages of a run folder, in order; [] when it is none."""
    return sorted(root.glob(f"[0-9][0-9]-*/{MANIFEST}"))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file; [] when there is none."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may have cut the last one


def write_json(path: Path, value: Any) -> None:
    """Write beside and rename, so that a killed run never leaves half a file."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def place(source: str | Path, target: str | Path) -> None:
    """A hard link where that is possible, else a copy: what stages and models hold can be large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def list_files(root: Path) -> list[dict[str, Any]]:
    """Name, size in bytes and sha256 of every payload file below `root`, for a manifest."""
    skip = {MANIFEST, JOB, STOP}
    found = sorted(p for p in root.rglob("*") if CHECKPOINTS not in p.relative_to(root).parts)  # those go once a stage is done
    files = [p for p in found if p.is_file() and p.name not in skip]
    return [{"name": str(p.relative_to(root)), "bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files]


def finished(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Folder and manifest of every finished stage of a run, in order. Raises ConfigError when `root` is no run folder."""
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder")
    if not is_run(root):
        raise ConfigError(f"{root}: no finished stage here, so there is nothing to report")
    return [(path.parent, read_json(path)) for path in manifests(root)]


def is_run(root: Path) -> bool:
    """Whether a folder is that of a run with at least one finished stage."""
    return bool(manifests(root))
