"""Write and load Model artifacts. Rule: only safetensors are read and written, and a delta holds what `extended` says.

A live model is built from the base folder, new vocabulary rows, earlier extensions, the method's modules and the delta.
"""

import math
import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from langext.architectures import vocabulary
from langext.artifacts import BASE, MANIFEST, Model, Tokenizer, first_problem, read_as, read_object, write_json
from langext.console import told
from langext.errors import ConfigError, read_text, reading, user_path
from langext.methods import AnyMethod
from langext.methods.base import Method
from langext.methods.extended import DELTA, Earlier, LiveModel, build, load_delta, replace_parameters
from langext.models import base_files
from langext.spec import Spec
from langext.summaries import TokenizerSummary
from tokenizer_tools import folder as tokenizer_files

LOOPS = {"Loading weights": "loading weights", "Writing model shards": "writing weights"}
"""What transformers calls its long loops -> what langext calls them."""


def _quiet(bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """In place of a progress bar of transformers: lines, and only where it takes long. Models are loaded many times."""
    label = LOOPS.get(options.get("desc", ""))
    return told(label, args[0]) if label and args else bar(*args, **options)


hf_logging.set_tqdm_hook(_quiet)
if not sys.stderr.isatty():  # a download shows the bars of the hub's library, which are for a terminal
    hf_logging.disable_progress_bar()

DTYPES = dict(zip(base_files.PRECISIONS, (torch.bfloat16, torch.float16, torch.float32, torch.float64), strict=True))
MODEL_FILE = "model.json"
NEW_TOKENS = "new_tokens.json"
NEW_ROWS = "new_rows.safetensors"
"""The rows that new tokens start from: `input` and, unless the base's matrices are tied, `output`. Beside NEW_TOKENS."""


@dataclass(frozen=True)
class Record:
    """The content of `model.json`: the parts of a Model artifact."""

    base: Path
    """Folder of the base model, in Hugging Face format."""
    method: Method | None = None
    """The method of the newest extension; None for a base, even when it has earlier extensions."""
    tokenizer: Path | None = None
    """Folder of the extended tokenizer; None when the base's own tokenizer is used."""
    earlier: tuple[Earlier, ...] = ()
    """Extensions for earlier languages, oldest first. They are frozen."""
    padded: bool = False
    """With new tokens: the base's rows of padding behind them are rows of the model, too. They were not in langext 0.1.0, and a
    model computes for ever as it was trained."""


class EarlierFile(Spec):
    """An earlier extension in `model.json`."""

    method: AnyMethod
    delta: str
    language: str


class ModelFile(Spec):
    """`model.json` as it is written; paths inside the run folder are relative to the folder of the file."""

    base: str
    method: AnyMethod | None
    tokenizer: str | None
    earlier: list[EarlierFile]
    padded: bool = False


def write_record(out: Path, record: Record) -> Model:
    """Write `model.json` into `out`. Paths inside the run folder are stored relative, so that a run folder can be moved."""

    def shown(path: Path) -> str:
        inside = path.resolve().is_relative_to(out.resolve().parent)
        return os.path.relpath(path.resolve(), out.resolve()) if inside else str(path.resolve())

    # Methods are written as they are, not validated once more: that would forget which of their keys were given.
    earlier = [EarlierFile.model_construct(method=e.method, delta=shown(e.delta), language=e.language) for e in record.earlier]
    tokenizer = shown(record.tokenizer) if record.tokenizer else None
    file = ModelFile.model_construct(
        base=shown(record.base), method=record.method, tokenizer=tokenizer, earlier=earlier, padded=record.padded
    )
    write_json(out / MODEL_FILE, file.model_dump(mode="json", exclude=set() if record.padded else {"padded"}))
    return Model(out)


def read_record(model: Model) -> Record:
    """Read `model.json`; all paths in the result are absolute. Raises ConfigError when the file is damaged."""
    file = read_as(model.path / MODEL_FILE, ModelFile)

    def absolute(path: str) -> Path:
        return user_path(model.path / path, f"{model.path / MODEL_FILE}").resolve()  # an absolute path stays what it is

    return Record(
        absolute(file.base),
        file.method,
        absolute(file.tokenizer) if file.tokenizer else None,
        tuple(Earlier(e.method, absolute(e.delta), e.language) for e in file.earlier),
        file.padded,
    )


def tokenizer_folder(model: Model) -> Path:
    """The folder of the tokenizer that a model uses: the extended tokenizer, or else that of the base."""
    record = read_record(model)
    return record.tokenizer or record.base


def load_tokenizer(folder: Path) -> Any:
    """Read a tokenizer from a local folder. Raises ConfigError when there is none, or when it cannot be read."""
    path = base_files.tokenizer_file(folder)
    for name in (path.name, *base_files.BESIDE):
        if name.endswith(".json") and (folder / name).is_file():
            read_object(folder / name)
    for template in (file for pattern in base_files.TEMPLATES for file in folder.glob(pattern)):
        read_text(template, "a chat template")
    what = "a model of SentencePiece" if path.suffix == ".model" else f"a tokenizer by tokenizers {version('tokenizers')}"
    with reading(path, what):
        return tokenizer_files.load(path)


def load_config(folder: Path) -> Any:
    """Read a model's config from a local folder. Raises ConfigError when it is not a causal language model."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"{folder}: {base_files.no_config(folder)}")
    names = read_object(path).get("architectures") or []  # says where JSON is wrong, which transformers does not
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ConfigError(f"{path}: architectures must be a list of names (got {names!r:.60})")
    with reading(path, "the config of a model"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if names and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        seen = " It reads pictures or sound too; langext takes models of text alone" if hasattr(config, "text_config") else ""
        raise ConfigError(f"{folder}: {', '.join(names)} is not a causal language model.{seen}".rstrip("."))
    return config


def load_base(folder: Path, dtype: torch.dtype) -> Any:
    """Load a base model from a local folder, in evaluation mode.

    Raises ConfigError for missing or damaged safetensors, and when transformers has used anything else than their tensors.
    """
    config = load_config(folder)
    base_files.weight_files(folder)
    with reading(folder, "weights in safetensors"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    net, info = loaded
    harmless = {base_files.HEAD} if config.tie_word_embeddings else set()
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        odd = {str(key) for key in info[kind]} - harmless
        if found := sorted(key for key in odd if not base_files.BUFFERS.search(key)):
            raise ConfigError(
                f"{folder}: weights with {kind.replace('_', ' ')}: {found[0]:.200}; fetch or copy the model again"
            )
    return net.eval()


def load(model: Model, dtype: torch.dtype, device: str = "cpu", *, trained: bool = True, attention: str = "auto") -> LiveModel:
    """Build the live model of an artifact from base, new rows, extensions and delta, in evaluation mode on `device`.

    With `trained` False the delta is left out. The result is the model before training, except that random new matrices have
    other values. New vocabulary rows then hold the values that training started from.
    """
    record = read_record(model)
    net = load_base(record.base, dtype)
    if attention != "auto":
        net.set_attn_implementation(attention)
    live = _built(net, model, record)
    if record.method is not None and trained:
        load_delta(live, model.path / DELTA)
    elif record.tokenizer and not record.earlier:  # the deltas of earlier extensions contain the new rows
        fill(net, Tokenizer(record.tokenizer.parent))
    live.net.to(device).eval()
    return live


def on_disk(model: Model, *, trained: bool = True) -> LiveModel:
    """The live model of an artifact with every weight memory-mapped from its file, in the precision of the file.

    It takes almost no memory until its weights are read. With `trained` False the parameters that a delta holds have shapes but
    no values (they are on the meta device).
    """
    record = read_record(model)
    net = load_base(record.base, stored(record.base))
    # Hide the mapped weights while the model is extended: new modules are made on the device of their neighbours, and on the
    # meta device they take no memory. The mapped weights come back at the end.
    shells = {p: nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in net.parameters()}
    replace_parameters(net, shells)
    live = _built(net, model, record)
    if trained:
        load_delta(live, model.path / DELTA)
    replace_parameters(net, {empty: parameter for parameter, empty in shells.items()})
    net.eval()
    return live


def _built(net: Any, model: Model, record: Record) -> LiveModel:
    tokenizer = load_tokenizer(record.tokenizer or record.base)
    return build(net, tokenizer, record.method, new_tokens(model).keys(), record.earlier, padded=record.padded)


def stored(folder: Path) -> torch.dtype:
    """The widest precision that at least a tenth of the weights have in their files; config.json can say another.

    Some models keep a few tensors in float32, which are no reason to load all of them so.
    """
    numbers: Counter[str] = Counter()
    try:
        for path in base_files.weight_files(folder):
            with safe_open(path, "pt") as file:
                for part in map(file.get_slice, file.keys()):
                    numbers[part.get_dtype()] += math.prod(part.get_shape())
        many = [name for name, count in numbers.items() if 10 * count >= numbers.total()]
        return DTYPES[max(many, key=base_files.PRECISIONS.index)]
    except (ConfigError, SafetensorError, OSError):  # missing or damaged: load_base reports it with a better message
        return torch.bfloat16


def learnt(model: Model) -> set[str]:
    """Names of all parameters in the deltas of this extension and of the earlier ones."""
    names: set[str] = set()
    for path in (*(extension.delta for extension in read_record(model).earlier), model.path / DELTA):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


def constants(model: Model) -> dict[str, Tensor]:
    """Name -> value of those parameters in the delta of an artifact that do not learn, see `Method.constant`."""
    path, method = model.path / DELTA, read_record(model).method
    with reading(path, "safetensors"), safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if method is not None and method.constant(name)}  # noqa: SIM118


def save_delta(out: Path, delta: dict[str, Tensor]) -> None:
    """Write `delta.safetensors` into `out`. An interruption never leaves a half-written file under this name."""
    beside = out / (DELTA + ".tmp")
    save_file({name: tensor.contiguous().cpu() for name, tensor in delta.items()}, beside)
    os.replace(beside, out / DELTA)


def new_tokens(model: Model) -> dict[int, list[int]]:
    """New token id -> the base token ids of the same text; {} when the vocabulary is the base's own."""
    folder = read_record(model).tokenizer
    return read_new_tokens(Tokenizer(folder.parent)) if folder else {}


def read_new_tokens(tokenizer: Tokenizer) -> dict[int, list[int]]:
    """The new tokens of an extended tokenizer, in the form of `new_tokens`. Raises ConfigError when the file is damaged."""
    path = tokenizer.path / NEW_TOKENS
    try:
        return TypeAdapter(dict[NonNegativeInt, list[NonNegativeInt]]).validate_python(read_object(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}") from None


def fill(net: Any, tokenizer: Tokenizer) -> None:
    """Give the rows of new tokens, which `net` has already, the values that they start from.

    They are those that stage extend_tokenizer has chosen; of a tokenizer from before it chose any, the means of the pieces.
    Raises ConfigError when the file is damaged, or does not belong to this base.
    """
    path = tokenizer.path / NEW_ROWS
    if not path.is_file():
        finished = (tokenizer.path / MANIFEST).is_file()
        made = tokenizer.manifest.summary_as(TokenizerSummary) if finished else None
        if made and made.rows:
            raise ConfigError(f"{path}: is missing; make it again with --redo extend_tokenizer")
        vocabulary.fill(net, read_new_tokens(tokenizer))
        return
    with reading(path, "safetensors"):
        rows = load_file(path)
    wanted = {name: weight.shape for name, weight in vocabulary.new_rows(net).items()}
    if {name: tensor.shape for name, tensor in rows.items()} != wanted:
        raise ConfigError(f"{path}: holds rows of other shapes than the model has; make it again with --redo extend_tokenizer")
    vocabulary.put(net, rows)


def save_rows(out: Path, rows: dict[str, Tensor]) -> None:
    """Write the rows that new tokens start from into `out`, in float32."""
    beside = out / (NEW_ROWS + ".tmp")
    save_file({name: tensor.float().contiguous() for name, tensor in rows.items()}, beside)
    os.replace(beside, out / NEW_ROWS)


@dataclass(frozen=True)
class Reference:
    """The model that a run started from. Its net may be the extended model's net, with the extension switched off on demand."""

    net: Any
    tokenizer: Any
    as_itself: Callable[[], AbstractContextManager[None]] = nullcontext
    """Inside this context `net` computes as the reference model. Outside of it, it may be the extended model."""


def reference(model: Model, live: LiveModel) -> Reference:
    """The model from which the run of the extended `model` started. `live` is the extended model in memory.

    If the extension can be switched off and has added no tokens, the result uses the net of `live`, which saves memory.
    Otherwise the model is loaded separately, in the same precision and on the same device.
    """
    base, method = Model(model.path.parent / BASE), live.method
    no_tokens = len(new_tokens(base)) == len(new_tokens(model))
    if method is not None and method.reversible and no_tokens:
        return Reference(live.net, live.tokenizer, lambda: method.off(live.net))
    separate = load(base, live.net.dtype, str(live.net.device))
    return Reference(separate.net, separate.tokenizer)
