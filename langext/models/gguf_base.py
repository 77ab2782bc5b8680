"""Bases that are GGUF files: checks them, and converts them into folders of the Hugging Face kind."""

import copy
import functools
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

from langext.artifacts import sha256_file, write_json
from langext.console import told
from langext.errors import ConfigError, placeholder, reading


def convert(path: Path, out: Path) -> Path:
    """Convert a GGUF file into a bfloat16 safetensors folder `out`, which is there completely or not at all."""
    import torch

    if not torch.cuda.is_available():
        # transformers imports DeepSpeed, which would search for a GPU and warn.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

    library: Any = modeling_gguf_pytorch_utils
    library.tqdm = lambda tensors, **_: told("base: dequantising", tensors)  # in place of a bar, as in `loading`
    check(path)
    source: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    with reading(path, "GGUF"):
        tensors = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).state_dict()
        tokenizer = AutoTokenizer.from_pretrained(**source)
    config = load_config(path)
    config.__dict__.pop("quantization_config", None)  # no longer true, and saving refuses a model that has it
    config.dtype = torch.bfloat16
    with torch.device("meta"):  # no memory for weights that the next lines replace
        net = AutoModelForCausalLM.from_config(config)
    net.load_state_dict({k: v.to(torch.bfloat16) for k, v in tensors.items()}, assign=True)
    net.tie_weights()
    beside = out.with_name(out.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    net.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    _split_digits(beside / "tokenizer.json", path)
    origin = {"file": path.name, "sha256": sha256_file(path), "note": "dequantised from GGUF"}
    write_json(beside / "langext_origin.json", origin)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(beside, out)
    return out


def check(path: Path) -> None:
    """Raise ConfigError when the file is no GGUF file, is cut off, or holds no model that transformers knows."""
    with reading(path, "GGUF"):
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ConfigError(f"base_model: {path}: {placeholder(path) or 'not a GGUF file'}")
            _version, num_tensors = struct.unpack("<IQ", file.read(12))
        if not num_tensors:
            raise ConfigError(f"base_model: {path}: a GGUF file without weights")
        scaled = _scaled_rope(path, path.stat().st_mtime_ns, path.stat().st_size)
    rope = getattr(load_config(path), "rope_parameters", None) or {}
    if scaled and rope.get("rope_type", "default") == "default":
        raise ConfigError(
            f"base_model: {path}: its rope is scaled ({scaled}), which transformers does not read from GGUF, so it would "
            "be another model; give the Hugging Face folder or hub id of this model"
        )


def load_config(path: Path) -> Any:
    """The transformers config of the model in a GGUF file. Raises ConfigError when the file cannot be read.

    transformers reads the whole header for it, which takes seconds, and maps every tensor. So it is done once for a file.
    """
    with reading(path, "GGUF"):
        return copy.deepcopy(_config(path, path.stat().st_mtime_ns, path.stat().st_size))


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a GGUF file, as a converted base has it but for what `_split_digits` restores."""
    from transformers import AutoTokenizer

    with reading(path, "GGUF"):
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@functools.cache
def _config(path: Path, _modified_ns: int, _size: int) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)


@functools.cache
def _scaled_rope(path: Path, _modified_ns: int, _size: int) -> str:
    """What says that a model's rotary positions are scaled: a kind of scaling, or a tensor of factors; empty when nothing does.

    Llama 3 has factors: https://github.com/ggml-org/llama.cpp/blob/master/conversion/llama.py
    """
    from gguf import GGUFReader

    reader = GGUFReader(str(path))
    for name, field in reader.fields.items():
        plain = {"type": ("none",), "factor": (0.0, 1.0), "scale_linear": (0.0, 1.0)}.get(name.rpartition(".")[2])
        if ".rope.scal" in name and plain and field.contents() not in plain:
            return f"{name}: {field.contents()}"
    return next((tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_f")), "")


def _split_digits(tokenizer_json: Path, gguf: Path) -> None:
    """Restore the pre-tokenizer of SmolLM, which splits numbers into digits.

    A GGUF file only contains its name, and transformers 5.23 writes a plain byte-level pre-tokenizer instead
    (https://huggingface.co/HuggingFaceTB/SmolLM2-135M/blob/main/tokenizer.json).
    """
    from gguf import GGUFReader

    field = GGUFReader(str(gguf)).get_field("tokenizer.ggml.pre")
    if field is None or field.contents() != "smollm":
        return
    state = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    if state["pre_tokenizer"]["type"] == "ByteLevel":
        digits = {"type": "Digits", "individual_digits": True}
        state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, state["pre_tokenizer"]]}
        write_json(tokenizer_json, state)
