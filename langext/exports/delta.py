"""Deltas: the learnt weights of an extension without the base. `apply` puts a delta on its base and makes a run folder.

The folder holds:

- delta.json: the base with a hash of its weights, the languages, the methods, and how the model came about,
- delta.safetensors: what the newest extension learnt,
- earlier-<k>.safetensors: what extension k before it learnt, counted from 0,
- vocabulary/: the extended tokenizer, if there is one.

The one rule: a delta comes from a stranger. Only these files are read, each is checked like any other input, and weights are
judged by the headers of their files before anything of their size is built.
"""

import hashlib
import re
import shutil
import time
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from safetensors import safe_open
from safetensors.torch import save_file

from langext import languages
from langext.architectures import precision
from langext.artifacts import (
    BASE,
    JOB,
    MANIFEST,
    TOKENS,
    Job,
    Manifest,
    Model,
    Tokenizer,
    fingerprint,
    link_or_copy,
    list_files,
    read_as,
    read_base,
    sha256_file,
    write_json,
)  # fmt: skip
from langext.console import say
from langext.data import assets
from langext.errors import ConfigError, reading
from langext.exports import modelcard
from langext.exports.formats import Order
from langext.methods import AnyMethod, extended
from langext.methods.base import Method
from langext.models import base_files, bases, loading
from langext.spec import Spec
from langext.summaries import History, HistorySummary
from tokenizer_tools.vocabulary import next_id, slots

DELTA_FILE = "delta.json"
USES = "apply"
"""The name of the stage in the manifest of a model that was made from a delta."""
VOCABULARY = Path("vocabulary") / "tokenizer"
NEW_TOKENS = Path("vocabulary") / "new_tokens.json"
TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja")
"""File name endings in vocabulary/tokenizer that are copied; nothing else there is, code least of all."""
NAME = r"(asset:)?[\w.-]+(/[\w.-]+)?"
"""What the name of a base looks like: a hub repository, an asset or the name of a folder, but no path."""
HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
"""What the name of a hub repository looks like."""
COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_JSON_BYTES = {DELTA_FILE: 10_000_000, NEW_TOKENS.name: 200_000_000}
"""Largest JSON files that are read."""
SIZES = ("rank", "width")
"""Settings of methods that decide how large a model becomes."""


def _code(value: str) -> str:
    if languages.find(value).code != value:
        raise ValueError(f"expected the code of a language, such as fra_Latn (got {value!r:.40})")
    return value


Code = Annotated[str, AfterValidator(_code)]
"""The FLORES-200 code of a language."""


class Base(Spec):
    """The base that a delta belongs to."""

    name: str = Field(pattern=f"^{NAME}$")
    """If `public`, a repository on the hub or an asset of langext; otherwise the name of a folder."""
    public: bool
    commit: str | None = Field(pattern=r"^\w+$")
    """Of the hub repository; None for an asset or a folder."""
    weights: str
    """`digest` of the base's folder."""

    @model_validator(mode="after")
    def _place(self) -> "Base":
        """A public base is fetched by its name alone, so the name must not be a path or stand for changing weights."""
        fixed = HUB.fullmatch(self.name) and COMMIT.fullmatch(self.commit or "")
        if self.public and not fixed and not self.name.startswith(assets.PREFIX):
            raise ValueError("a public base is owner/name with its commit, or asset:<name>")
        return self


class Earlier(Spec):
    """An earlier extension of the same base. Its weights are in earlier-<k>.safetensors, k being its place in the list."""

    method: AnyMethod
    language: Code


class DeltaFile(Spec):
    """The content of delta.json."""

    format: Literal["langext delta 1"] = "langext delta 1"
    base: Base
    language: Code
    original_languages: list[Code]
    method: AnyMethod
    earlier: list[Earlier] = Field(max_length=100)
    history: History
    padded: bool = False
    """As of a model's record."""
    files: dict[Annotated[str, Field(pattern=r"^[\w./-]{1,200}$")], str]
    """Path of every other file in the delta's folder -> its sha256."""


def digest(folder: Path) -> str:
    """sha256 (in hexadecimal) over the names, dtypes, shapes and bytes of all tensors of a model folder.

    It stays the same when the same tensors are split into files in another way.
    """
    file_of = {}
    for path in base_files.weight_files(folder):
        with safe_open(path, "pt") as file:
            file_of |= dict.fromkeys(file.keys(), path)
    weights_hash = hashlib.sha256()
    for name in sorted(file_of):
        with safe_open(file_of[name], "pt") as file:
            tensor = file.get_tensor(name)
        weights_hash.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        weights_hash.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)  # numpy has no bfloat16
    return weights_hash.hexdigest()


def export(order: Order) -> dict[str, Any]:
    """Write the delta, put it on its base in this process and compare. Returns the comparison, by field of ExportSummary."""
    from langext.exports import verify

    write(order.model, order.out)
    again = loading.on_disk(rebuilt(order.out, loading.read_record(order.model).base, order.scratch / "rebuilt"))
    precision.in_float32(precision.parts(again.net), order.whole)
    return verify.compare_live(again, order.expected)


def write(model: Model, out: Path) -> None:
    """Write the delta of a trained model into the empty folder `out`. Its weights are rounded to `precision.WEIGHTS`."""
    record, job, base = loading.read_record(model), read_as(model.path / JOB, Job), read_base(model.path.parent)
    assert record.method is not None and base is not None, "checked before"
    # The path of a private base's folder says something about the machine, so only its last part is written.
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
    content = DeltaFile(
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
        padded=record.padded,
        files={file.name: file.sha256 for file in list_files(out)},
    )
    write_json(out / DELTA_FILE, content.model_dump(mode="json", exclude=set() if content.padded else {"padded"}))


def _earlier(k: int) -> str:
    return f"earlier-{k}.safetensors"


def _round(source: Path, target: Path) -> None:
    """Copy a file of weights, rounded to the precision that all exports have."""
    with safe_open(source, "pt") as file:
        save_file({name: file.get_tensor(name).to(precision.WEIGHTS) for name in file.keys()}, target)  # noqa: SIM118


def read(folder: Path) -> DeltaFile:
    """Read and check delta.json, and check the sha256 of every file that it lists.

    Raises ConfigError when the folder holds no valid delta, or when a file is missing or differs from what was written.
    """
    if not (folder / DELTA_FILE).is_file():
        raise ConfigError(f"{folder}: no {DELTA_FILE} here, so this is no delta that `langext export --format delta` wrote")
    _small(folder / DELTA_FILE)
    content = read_as(folder / DELTA_FILE, DeltaFile)
    missing = [name for name in (extended.DELTA, *map(_earlier, range(len(content.earlier)))) if name not in content.files]
    if missing:
        raise ConfigError(f"{folder / DELTA_FILE}: says nothing of {missing[0]}")
    for name, expected in content.files.items():
        path = folder / name
        # Names in delta.json are a stranger's: "../" or a link could name any file of this machine.
        inside = path.resolve().is_relative_to(folder.resolve()) and ".." not in Path(name).parts
        if not inside or path.is_symlink() or not path.is_file():
            raise ConfigError(f"{folder}: {name!r:.200} is missing, or no plain file in this folder")
        if sha256_file(path) != expected:
            raise ConfigError(f"{path}: damaged or changed since it was written (its sha256 is another); copy the delta again")
    return content


def _small(path: Path) -> None:
    """Raise ConfigError for a JSON file that is larger than such a file can be."""
    if path.stat().st_size > MAX_JSON_BYTES[path.name]:
        raise ConfigError(f"{path}: too large for what it should hold ({path.stat().st_size:,} bytes)")


def check(folder: Path, content: DeltaFile, base: Path) -> None:
    """Check that the weights and the tokenizer of a delta can belong to the base in the folder `base`.

    Reads the headers of the weights alone, and builds nothing: a record that asks for a billion rows must not be believed.
    Raises ConfigError.
    """
    hidden = loading.load_config(base).hidden_size
    for k, extension in enumerate(content.earlier):
        _check_weights(folder / _earlier(k), extension.method, hidden)
    _check_weights(folder / extended.DELTA, content.method, hidden)
    if str(NEW_TOKENS) in content.files:
        _check_tokens(folder, base)


def _check_weights(path: Path, method: Method, hidden: int) -> None:
    """Raise ConfigError unless the file holds as many numbers as the settings of the method ask for, in `precision.WEIGHTS`.

    Every method learns at least `hidden` (width of the base) numbers for each unit of its size, in some matrix.
    """
    numbers = 0
    with reading(path, "safetensors"), safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            part = file.get_slice(name)
            if part.get_dtype() != "BF16":
                raise ConfigError(f"{path}: {name!r:.200} is {part.get_dtype()}, and a delta is BF16")
            numbers += prod(part.get_shape())
    for setting in SIZES:
        size = getattr(method, setting, None)
        if size is not None and (size - 1) * hidden > numbers:
            raise ConfigError(
                f"{path}: holds {numbers:,} numbers, too few for {setting} {size:,} of {method.name} on a base of width "
                f"{hidden:,}"
            )


def _check_tokens(folder: Path, base: Path) -> None:
    """Raise ConfigError unless new_tokens.json spells the tokens behind those of the base's tokenizer, in its tokens."""
    path = folder / NEW_TOKENS
    _small(path)
    spelt = loading.read_new_tokens(Tokenizer(path.parent))
    tokenizer = loading.load_tokenizer(base)
    first, size = next_id(tokenizer), next_id(loading.load_tokenizer(folder / VOCABULARY))
    # New tokens can have ids of reserved ones, and tokens of the base without a row get one.
    free = {*slots(tokenizer), *range(loading.load_config(base).vocab_size, first)}
    if not spelt.keys() - free == set(range(first, size)):
        raise ConfigError(f"{path}: must spell tokens {first} to {size - 1}, those that the tokenizer of the base has not")
    if not all(pieces and max(pieces) < first for pieces in spelt.values()):
        raise ConfigError(f"{path}: spells a token with others than the {first} of the base")


def rebuilt(folder: Path, base: Path, out: Path) -> Model:
    """Put a delta on its base, and write the model into the new folder `out`.

    `base` is the folder of the base's weights. The caller knows that they are the right ones: this function does not check.
    """
    content = read(folder)
    out.mkdir(parents=True)
    earlier = []
    for k, extension in enumerate(content.earlier):
        link_or_copy(folder / _earlier(k), out / _earlier(k))
        earlier.append(extended.Earlier(extension.method, out / _earlier(k), extension.language))
    link_or_copy(folder / extended.DELTA, out / extended.DELTA)
    tokenizer = None
    if str(NEW_TOKENS) in content.files:
        tokenizer = out / VOCABULARY
        tokenizer.mkdir(parents=True)
        link_or_copy(folder / NEW_TOKENS, out / NEW_TOKENS)
        for name in content.files:
            if Path(name).parent == VOCABULARY and Path(name).suffix in TOKENIZER_FILES:
                link_or_copy(folder / name, out / name)
    return loading.write_record(out, loading.Record(base, content.method, tokenizer, tuple(earlier), content.padded))


def apply(folder: Path, base: str | None, out: Path) -> Model:
    """Make the run folder `out` from a delta and its base: `base`, or if that is None the public base that the delta names.

    Raises ConfigError when `out` exists, when the folder holds no valid delta, or when the base has other weights than the one
    that the delta was trained on.
    """
    content = read(folder)
    if base is None and not content.base.public:
        raise ConfigError(f"{folder}: its base, {content.base.name}, is no public one; give its folder with --base")
    try:
        out.mkdir(parents=True)  # so that a second `apply` to the same folder is refused, whenever it begins
    except FileExistsError:
        raise ConfigError(f"{out} exists already; name another folder") from None
    try:
        return _unpacked(folder, content, base, out)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _unpacked(folder: Path, content: DeltaFile, base: str | None, out: Path) -> Model:
    if base is None:
        say(f"base: {content.base.name}, which the delta names")
    prepared = bases.prepare(base or content.base.name, None if base else content.base.commit, out / BASE)
    base_folder = loading.read_record(prepared).base
    if digest(base_folder) != content.base.weights:
        raise ConfigError(f"{base or content.base.name}: its weights are not those of {content.base.name}, the delta's base")
    check(folder, content, base_folder)
    model = rebuilt(folder, base_folder, out / f"01-{USES}")
    loading.on_disk(model)  # opened once here, so that damaged weights do not first fail in a later stage
    # Job and manifest are those of a stage, so that later stages can build on this model like on any other.
    stage, printed = {"uses": USES}, fingerprint(content.files)
    common: dict[str, Any] = {"stage": stage, "inputs": {}, "seed": 0, "fingerprint": printed, "identity": content.files}
    job = Job(**common, language=content.language, original_languages=content.original_languages, tokens=str(out / TOKENS))
    write_json(model.path / JOB, job)
    manifest = Manifest(
        **common, kind=Model.__name__, summary=HistorySummary(history=content.history).model_dump(),
        files=list_files(model.path),
        started=time.time(), seconds=0.0, peak_memory_bytes=0, device="-", versions={},
    )  # fmt: skip
    write_json(model.path / MANIFEST, manifest)
    return model
