"""Model artifact -> live model and back: base folder + new vocabulary rows + method.extend + delta.

The delta holds the trainable parameters and nothing else. Only safetensors are read and written.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from langext import vocabulary
from langext.artifacts import Model, Tokenizer, read_json, write_json
from langext.methods import AnyMethod
from langext.methods.base import Method
from langext.spec import ConfigError

if not sys.stderr.isatty():
    hf_logging.disable_progress_bar()

DELTA = "delta.safetensors"
RECORD = "model.json"


@dataclass
class LiveModel:
    """A model in memory with what is needed to use and save it."""

    net: Any
    """A transformers causal language model; Any, because its classes are typed too loosely to check against."""
    tokenizer: Any
    """A transformers tokenizer."""
    method: Method | None
    """None for the untouched base."""
    base_names: frozenset[str] = frozenset()
    """Parameters that the base has too."""

    def trainable(self, name: str) -> bool:
        """Does the parameter of this name learn?"""
        return self.method is not None and (name.endswith(vocabulary.NEW_ROWS) or self.method.trainable(name))

    def freeze(self) -> None:
        """Let exactly the trainable parameters require gradients."""
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(self.trainable(name))

    def delta(self) -> dict[str, Tensor]:
        """The trainable parameters by name. A tied pair appears once, under the name that comes first."""
        return {n: p.detach() for n, p in self.net.named_parameters() if self.trainable(n)}


def base_folder(model: Model) -> Path:
    """The Hugging Face folder of the base that a Model artifact builds on."""
    recorded = Path(read_json(model.path / RECORD)["base"])
    return recorded if recorded.is_absolute() else (model.path / recorded).resolve()


def write_record(out: Path, base: Path, method: Method | None, tokenizer: Path | None) -> Model:
    """Write `model.json`. Paths inside the run folder are stored relative, so that a run folder can be moved."""

    def shown(path: Path) -> str:
        inside = path.resolve().is_relative_to(out.resolve().parent)
        return os.path.relpath(path.resolve(), out.resolve()) if inside else str(path.resolve())

    record = {
        "base": shown(base),
        "method": method.model_dump(mode="json") if method else None,
        "tokenizer": shown(tokenizer) if tokenizer else None,
    }
    write_json(out / RECORD, record)
    return Model(out)


def method_of(model: Model) -> Method | None:
    """The method recorded in a Model artifact; None for a base."""
    recorded = read_json(model.path / RECORD)["method"]
    return TypeAdapter(AnyMethod).validate_python(recorded) if recorded else None


def tokenizer_folder(model: Model) -> Path:
    """The folder of the tokenizer that a model reads with: the extended one, or the base's."""
    recorded = read_json(model.path / RECORD)["tokenizer"]
    return (model.path / recorded).resolve() if recorded else base_folder(model)


def load_tokenizer(folder: Path) -> Any:
    """Read a tokenizer from a local folder. Raises ConfigError when there is none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ConfigError(f"{folder}: no tokenizer here (looked for tokenizer.json, tokenizer.model, vocab.json)")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_config(folder: Path) -> Any:
    """Read a model's config from a local folder. Raises ConfigError when it is not a causal language model."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: no config.json here, so this is not a Hugging Face model folder")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{folder}/config.json: {str(error).splitlines()[0]}") from None
    names = config.architectures or []
    if names and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        raise ConfigError(f"{folder}: {', '.join(names)} is not a causal language model")
    return config


def load_base(folder: Path, dtype: torch.dtype) -> Any:
    """Read a base model from a local folder, safetensors only, in evaluation mode."""
    config = load_config(folder)
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"{folder}: no *.safetensors here; other weight formats are not read")
    try:
        net = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except SafetensorError as error:
        raise ConfigError(f"{folder}: damaged weights ({error}); fetch or copy the model again") from None
    return net.eval()


def load(model: Model, dtype: torch.dtype, device: str = "cpu") -> LiveModel:
    """Build the live model of an artifact: base, new rows, method, delta. In evaluation mode."""
    net = load_base(base_folder(model), dtype)
    tokenizer = load_tokenizer(tokenizer_folder(model))
    method = method_of(model)
    if method is None:
        return LiveModel(net.to(device), tokenizer, None)
    live = build(net, tokenizer, method, len(new_tokens(model)))
    load_delta(live, model.path / DELTA)
    live.net.to(device).eval()
    return live


def build(net: Any, tokenizer: Any, method: Method, num_new: int = 0) -> LiveModel:
    """Extend a base in place: room for the tokenizer's `num_new` last tokens, then the method's own modules."""
    base_names = frozenset(name for name, _ in net.named_parameters())
    if num_new:
        vocabulary.extend(net, first_new=len(tokenizer) - num_new, num_new=num_new)
    method.extend(net)
    live = LiveModel(net, tokenizer, method, base_names)
    live.freeze()
    return live


def load_delta(live: LiveModel, path: Path) -> None:
    """Copy a saved delta into the live model; what it leaves out keeps the base's value.

    Raises ConfigError when names or shapes are not the model's own.
    """
    saved, wanted = load_file(path), live.delta()
    odd = sorted((saved.keys() - wanted.keys()) | (wanted.keys() - saved.keys() - live.base_names))
    if odd:
        raise ConfigError(f"{path}: holds other parameters than the method makes, for example {odd[0]}")
    with torch.no_grad():
        for name, tensor in saved.items():
            if tensor.shape != wanted[name].shape:
                raise ConfigError(f"{path}: {name} is {tuple(tensor.shape)}, the model has {tuple(wanted[name].shape)}")
            wanted[name].copy_(tensor)


def save_delta(out: Path, delta: dict[str, Tensor]) -> None:
    """Write `delta.safetensors` beside and rename."""
    beside = out / (DELTA + ".tmp")
    save_file({name: tensor.contiguous().cpu() for name, tensor in delta.items()}, beside)
    os.replace(beside, out / DELTA)


def new_tokens(model: Model) -> dict[int, list[int]]:
    """New token id -> the base ids that spelt the same text before; {} when the vocabulary is the base's."""
    recorded = read_json(model.path / RECORD)["tokenizer"]
    return read_new_tokens(Tokenizer((model.path / recorded).resolve().parent)) if recorded else {}


def read_new_tokens(tokenizer: Tokenizer) -> dict[int, list[int]]:
    """The new tokens of an extended tokenizer; see `new_tokens`."""
    return {int(k): v for k, v in read_json(tokenizer.path / "new_tokens.json").items()}
