"""Weights written tensor by tensor into safetensors files of a limited size, with the index that transformers reads.

The safetensors library writes a file at once and has to hold all of it; this holds a part. A file is eight bytes with the
size of the header, the header in JSON, filled up with spaces, and the tensors' bytes one after another.
https://huggingface.co/docs/safetensors and https://huggingface.co/docs/transformers/big_models
"""

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from langext.architectures.precision import WEIGHTS
from langext.architectures.stock import Stock, Tensors
from langext.artifacts import write_json

LIMIT = 2_000_000_000
"""Bytes. A larger tensor gets a file of its own."""
HEADER = 1 << 20
"""Bytes kept for a header, which is written last; a file takes as many tensors as fit into it."""
DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


class File:
    """One file that is being written, of one precision, so that every tensor is aligned."""

    def __init__(self, path: Path, limit: int | None = None, header: int = HEADER):
        """`header` are the bytes kept for it, a multiple of 8."""
        self.path, self.limit, self._room = path, limit, header
        self.dtype: torch.dtype | None = None
        self.header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self.bytes = 0
        self._header_bytes = 64
        self._file = path.open("wb")
        self._file.seek(8 + header)

    def add(self, name: str, tensor: Tensor) -> bool:
        """Append a tensor, unless the file is full. Returns whether it was appended."""
        assert self.dtype in (None, tensor.dtype), "one precision in a file"
        self.dtype = tensor.dtype
        entry = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape)}
        end = self.bytes + tensor.nbytes
        entry["data_offsets"] = [self.bytes, end]
        takes = len(json.dumps({name: entry}))
        if (self.bytes and self.limit and end > self.limit) or self._header_bytes + takes > self._room:
            return False
        self._file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        self.header[name] = entry
        self.bytes, self._header_bytes = end, self._header_bytes + takes
        return True

    def close(self) -> None:
        """Write the header."""
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + json.dumps(self.header).encode().ljust(self._room))
        self._file.close()


def write(parts: Iterable[dict[str, Tensor]], out: Path) -> None:
    """Write model.safetensors, or model-00001-of-0000n.safetensors and model.safetensors.index.json."""
    files = [File(out / "0.tmp", LIMIT)]
    for part in parts:
        for name, tensor in part.items():
            if not files[-1].add(name, tensor):
                files[-1].close()
                files.append(File(out / f"{len(files)}.tmp", LIMIT))
                added = files[-1].add(name, tensor)
                assert added, f"{name}: its name alone fills a header"
    files[-1].close()
    if len(files) == 1:
        files[0].path.rename(out / "model.safetensors")
        return
    where = {}
    for i, file in enumerate(files, start=1):
        name = f"model-{i:05}-of-{len(files):05}.safetensors"
        file.path.rename(out / name)
        where |= {tensor: name for tensor in file.header if tensor != "__metadata__"}
    total = sum(file.bytes for file in files)
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def save(stock: Stock, out: Path) -> None:
    """Write config.json and the weights, in `WEIGHTS` and under the names that checkpoints of the architecture have."""
    shell = stock.shell()
    write((_as_stored(shell, part) for part in stock.parts()), out)
    config = copy.deepcopy(shell.config)
    config.architectures, config.dtype = [type(shell).__name__], WEIGHTS
    config.save_pretrained(out)


def _as_stored(shell: Any, tensors: Tensors) -> Tensors:
    return revert_weight_conversion(shell, {name: tensor.to(WEIGHTS) for name, tensor in tensors.items()})
