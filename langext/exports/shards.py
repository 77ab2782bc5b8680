"""Write the weights of a stock form into safetensors files of limited size, with the index that transformers reads.

The one rule: never more than the tensors of one file are in memory. https://huggingface.co/docs/transformers/big_models
"""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from langext.architectures.precision import WEIGHTS
from langext.architectures.stock import Stock, Tensors, stored
from langext.artifacts import write_json

LIMIT = 500_000_000
"""Largest size of a file in bytes. A larger tensor gets a file of its own."""


def write(parts: Iterable[dict[str, Tensor]], out: Path) -> None:
    """Write the tensors of all `parts` (name -> tensor) into `out`.

    One file is model.safetensors; several are model-00001-of-0000n.safetensors and model.safetensors.index.json.
    """
    names: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        save_file({name: tensor.contiguous() for name, tensor in waiting.items()}, out / f"{len(names)}.tmp", {"format": "pt"})
        names.append(list(waiting))
        waiting.clear()

    for part in parts:
        for name, tensor in part.items():
            if waiting and sum(kept.nbytes for kept in waiting.values()) + tensor.nbytes > LIMIT:
                flush()
            waiting[name] = tensor
            total += tensor.nbytes
    flush()
    if len(names) == 1:
        (out / "0.tmp").rename(out / "model.safetensors")
        return
    # Renamed only now, because the names hold the number of all files.
    file_of = {}
    for number, tensors in enumerate(names):
        file = f"model-{number + 1:05}-of-{len(names):05}.safetensors"
        (out / f"{number}.tmp").rename(out / file)
        file_of |= dict.fromkeys(tensors, file)
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": file_of})


def save(stock: Stock, out: Path) -> None:
    """Write config.json and the weights into `out`, rounded to `WEIGHTS`, under the names of the architecture's checkpoints."""
    shell = stock.shell()
    write((_as_stored(shell, part) for part in stock.parts()), out)
    config = copy.deepcopy(shell.config)
    config.architectures, config.dtype = [type(shell).__name__], WEIGHTS
    config.save_pretrained(out)


def _as_stored(shell: Any, tensors: Tensors) -> Tensors:
    """Undo the changes that transformers makes while loading, such as fusing the experts of a layer into one tensor."""
    return revert_weight_conversion(shell, stored(tensors))
