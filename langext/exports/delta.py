"""An extension by itself: what was learnt, without the base. A folder that becomes a run folder wherever the base is.

delta.json names the base with a hash of its weights, the languages, the methods and how the model came about;
delta.safetensors holds what the newest extension learnt, earlier-<k>.safetensors what those before it did, vocabulary/ an
extended tokenizer. Deltas come from strangers: nothing but these files is read, and delta.json is checked like any other input.
"""

import hashlib
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from langext.architectures import precision
from langext.artifacts import (
    BASE,
    JOB,
    MANIFEST,
    TOKENS,
    Job,
    Manifest,
    Model,
    fingerprint,
    link_or_copy,
    list_files,
    read_as,
    read_base,
    read_json,
    sha256_file,
    write_json,
)  # fmt: skip
from langext.data import assets
from langext.exports import modelcard
from langext.methods import AnyMethod, extended
from langext.models import bases, loading
from langext.spec import ConfigError, Spec
from langext.summaries import History, HistorySummary

RECORD = "delta.json"
USES = "apply"
"""What the manifest of a model says that came out of a delta."""
VOCABULARY = Path("vocabulary") / "tokenizer"
NEW_TOKENS = Path("vocabulary") / "new_tokens.json"
TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja")
NAME = r"(asset:)?[\w.-]+(/[\w.-]+)?"


class Base(Spec):
    """The base that a delta belongs to."""

    name: str = Field(pattern=f"^{NAME}$")
    """Of the hub, or an asset of langext, if `public`; else the name of a folder."""
    public: bool
    commit: str | None = Field(pattern=r"^\w+$")
    weights: str
    """`digest` of its folder."""


class Earlier(Spec):
    """The extension of an earlier language; its weights are earlier-<k>.safetensors."""

    method: AnyMethod
    language: str = Field(pattern=r"^\w+$")


class DeltaFile(Spec):
    """delta.json."""

    format: Literal["langext delta 1"] = "langext delta 1"
    base: Base
    language: str = Field(pattern=r"^\w+$")
    original_languages: list[str]
    method: AnyMethod
    earlier: list[Earlier]
    history: History
    files: dict[str, str]
    """sha256 of every other file, by its path."""


def digest(folder: Path) -> str:
    """sha256 over names, types, shapes and bytes of all tensors of a model folder, however they are shared out to files."""
    where = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            where |= dict.fromkeys(file.keys(), path)
    found = hashlib.sha256()
    for name in sorted(where):
        with safe_open(where[name], "pt") as file:
            tensor = file.get_tensor(name)
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def write(model: Model, out: Path) -> None:
    """Write the delta of a trained model into the empty folder `out`, its weights rounded as those of every export are."""
    record, job, base = loading.read_record(model), read_as(model.path / JOB, Job), read_base(model.path.parent)
    assert record.method is not None and base is not None, "checked before"
    public = base.commit is not None or base.root.startswith(assets.PREFIX)
    _round(model.path / extended.DELTA, out / extended.DELTA)
    for k, extension in enumerate(record.earlier):
        _round(extension.delta, out / _earlier(k))
    if record.tokenizer:
        (out / VOCABULARY).mkdir(parents=True)
        for path in record.tokenizer.iterdir():
            if path.suffix in TOKENIZER_FILES:
                shutil.copyfile(path, out / VOCABULARY / path.name)
        shutil.copyfile(record.tokenizer.parent / NEW_TOKENS.name, out / NEW_TOKENS)
    told = DeltaFile(
        base=Base(
            name=base.root if public else bases.plain_name(base.root),
            public=public,
            commit=base.commit,
            weights=digest(record.base),
        ),
        language=job.language,
        original_languages=job.original_languages,
        method=record.method,  # type: ignore[arg-type]
        earlier=[Earlier(method=e.method, language=e.language) for e in record.earlier],  # type: ignore[arg-type]
        history=modelcard.history(model),
        files={file.name: file.sha256 for file in list_files(out)},
    )
    write_json(out / RECORD, told.model_dump(mode="json"))


def _earlier(k: int) -> str:
    return f"earlier-{k}.safetensors"


def _round(source: Path, target: Path) -> None:
    """Copy a file of weights in the precision of exports."""
    with safe_open(source, "pt") as file:
        save_file({name: file.get_tensor(name).to(precision.WEIGHTS) for name in file.keys()}, target)  # noqa: SIM118


def read(folder: Path) -> DeltaFile:
    """delta.json, checked. Raises ConfigError when it is none, or when another file is not as it was written."""
    if not (folder / RECORD).is_file():
        raise ConfigError(f"{folder}: no {RECORD} here, so this is no delta that `langext export --format delta` wrote")
    try:
        told = DeltaFile.model_validate(read_json(folder / RECORD))
    except (ValidationError, ValueError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"{folder / RECORD}: {where + ': ' if where else ''}{problem['msg']}") from None
    missing = [name for name in (extended.DELTA, *map(_earlier, range(len(told.earlier)))) if name not in told.files]
    if missing:
        raise ConfigError(f"{folder / RECORD}: says nothing of {missing[0]}")
    for name, expected in told.files.items():
        path = folder / name
        inside = path.resolve().is_relative_to(folder.resolve()) and ".." not in Path(name).parts
        if not inside or path.is_symlink() or not path.is_file():
            raise ConfigError(f"{folder}: {name} is missing, or no plain file in this folder")
        if sha256_file(path) != expected:
            raise ConfigError(f"{path}: damaged or changed since it was written (its sha256 is another); copy the delta again")
    return told


def rebuilt(folder: Path, base: Path, out: Path) -> Model:
    """The model that a delta gives on a base that is known to be its own, in the new folder `out`."""
    told = read(folder)
    out.mkdir(parents=True)
    earlier = []
    for k, extension in enumerate(told.earlier):
        link_or_copy(folder / _earlier(k), out / _earlier(k))
        earlier.append(extended.Earlier(extension.method, out / _earlier(k), extension.language))
    link_or_copy(folder / extended.DELTA, out / extended.DELTA)
    tokenizer = None
    if str(NEW_TOKENS) in told.files:
        tokenizer = out / VOCABULARY
        tokenizer.mkdir(parents=True)
        link_or_copy(folder / NEW_TOKENS, out / NEW_TOKENS)
        for name in told.files:
            if Path(name).parent == VOCABULARY and Path(name).suffix in TOKENIZER_FILES:
                link_or_copy(folder / name, out / name)
    return loading.write_record(out, loading.Record(base, told.method, tokenizer, tuple(earlier)))


def apply(folder: Path, base: str | None, out: Path) -> Model:
    """Make a run folder `out` of a delta and its base, which is `base` or the public one that the delta names.

    Raises ConfigError when the folder holds no delta or the base is another one.
    """
    told = read(folder)
    if out.exists():
        raise ConfigError(f"{out} exists already; name another folder")
    if base is None and not told.base.public:
        raise ConfigError(f"{folder}: its base, {told.base.name}, is no public one; give its folder with --base")
    try:
        return _unpacked(folder, told, base, out)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _unpacked(folder: Path, told: DeltaFile, base: str | None, out: Path) -> Model:
    prepared = bases.prepare(base or told.base.name, None if base else told.base.commit, out / BASE)
    below = loading.read_record(prepared).base
    if digest(below) != told.base.weights:
        raise ConfigError(f"{base or told.base.name}: its weights are not those of {told.base.name}, the delta's base")
    made = rebuilt(folder, below, out / f"01-{USES}")
    try:
        loading.on_disk(made)
    except SafetensorError as error:
        raise ConfigError(f"{folder}: damaged weights ({error})") from None
    stage, printed = {"uses": USES}, fingerprint(told.files)
    common: dict[str, Any] = {"stage": stage, "inputs": {}, "seed": 0, "fingerprint": printed, "identity": told.files}
    job = Job(**common, language=told.language, original_languages=told.original_languages, tokens=str(out / TOKENS))
    write_json(made.path / JOB, job)
    manifest = Manifest(
        **common, kind=Model.__name__, summary=HistorySummary(history=told.history).model_dump(), files=list_files(made.path),
        started=time.time(), seconds=0.0, peak_memory_bytes=0, device="-", versions={},
    )  # fmt: skip
    write_json(made.path / MANIFEST, manifest)
    return made
