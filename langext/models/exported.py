"""Load a model from a Hugging Face folder that somebody else may have made. The one rule: its code runs only on request."""

from pathlib import Path
from typing import Any

import torch

from langext.artifacts import read_object
from langext.errors import ConfigError, reading
from langext.models import loading

TRUST = "--trust-remote-code"
OWN_CODE = "modeling_neutral_residue.py"
"""The file of code in exports of format `remote`."""
NEVER_LOADED = ("certify.py",)
"""Code in a model's folder that no loading runs: it is for people to start."""


def own_code(folder: Path) -> str:
    """What in a model's folder makes transformers run code: a Python file, or `auto_map` in a JSON file; "" for nothing."""
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*.py")))
    if path := next((path for path in files if str(path) not in NEVER_LOADED), None):
        return str(path)
    for path in sorted(folder.glob("*config.json")):
        if "auto_map" in read_object(path):
            return f"auto_map in {path.name}"
    return ""


def check(folder: Path, *, trust: bool) -> None:
    """Raise ConfigError when the folder brings code and `trust` is False."""
    code = own_code(folder)
    if code and not trust:
        more = " (or give the run folder, which needs no such code)" if (folder / OWN_CODE).is_file() else ""
        raise ConfigError(f"{folder}: brings Python code of its own ({code}); read it, and say {TRUST} to run it{more}")


def load(folder: Path, dtype: torch.dtype, device: str, *, trust: bool) -> Any:
    """The model in the folder, in evaluation mode. Raises ConfigError as `check`, and when it cannot be loaded."""
    check(folder, trust=trust)
    if not own_code(folder):
        return loading.load_base(folder, dtype).to(device)
    from transformers import AutoModelForCausalLM

    with reading(folder, "a model with code of its own"):
        net: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=True
        )
    return net.eval().to(device)


def load_tokenizer(folder: Path, *, trust: bool) -> Any:
    """The tokenizer in the folder. Raises ConfigError as `check`, and when it cannot be loaded."""
    check(folder, trust=trust)
    if not own_code(folder):
        return loading.load_tokenizer(folder)
    from transformers import AutoTokenizer

    with reading(folder, "a tokenizer with code of its own"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=True)
