"""The layers below the first one that learns, computed once for each training sequence and read from disk from then on.

The base is frozen, so the states that enter the first layer with something new are the same in every epoch, at every learning
rate, with every seed and method. The one rule: a row of states that is not whole, or not for this base, is not there.

Shapes: B sequences, T tokens in each, D model width.
"""

import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from langext.architectures import families, vocabulary
from langext.artifacts import BaseManifest, fingerprint
from langext.console import say
from langext.data.mixture import Batch, Mixture
from langext.errors import RunFailed
from langext.methods.extension import Extension

GiB = 2**30
FOLDER = "prefix-"
"""Beginning of the name of a folder of states, beside the token files they belong to. `--reuse` leaves it behind."""
STATES, MARKS = "states.bin", "marks.bin"
THERE = 1 << 32
"""Added to the checksum of a row that has been written, so that the mark of a row is never zero."""


def first_learning(net: Any, learns: Callable[[str], bool]) -> int:
    """The lowest layer with a parameter that learns or a module that a method added; 0 when something below all layers learns.

    `learns` tells of a parameter's name. New vocabulary rows count as learning, also those of an earlier language.
    """
    below = {id(p) for p in net.get_input_embeddings().parameters()}
    names = {name: p for name, p in net.named_parameters() if learns(name) or name.endswith(vocabulary.NEW_ROWS)}
    if any(name.endswith(vocabulary.NEW_ROWS) or id(p) in below for name, p in names.items()):
        return 0
    blocks = families.blocks(net)
    extended = [i for i, block in enumerate(blocks) if any(isinstance(m, Extension) for m in block.modules())]
    learning = [int(name.removeprefix(families.LAYERS).split(".")[0]) for name in names if name.startswith(families.LAYERS)]
    return min([*extended, *learning, len(blocks)])


class _Skipped(nn.Module):
    """Stands in for a block that is not to be computed. Keeps the states that enter it."""

    def forward(self, states_BTD: Tensor, *_: Any, **__: Any) -> Tensor:
        """(B, T, D) -> the same."""
        self.states_BTD = states_BTD
        return states_BTD


@contextmanager
def skipped(net: Any, layers: Iterable[int]) -> Iterator[_Skipped]:
    """A context in which these layers of the model hand on what they get. Yields the module that stands in for all of them."""
    blocks, stand_in = families.blocks(net), _Skipped()
    kept = {number: blocks[number] for number in layers}
    # The list is changed and not the blocks: these may be compiled, and DeepSpeed keeps its own hooks on them.
    for number in kept:
        blocks[number] = stand_in
    try:
        yield stand_in
    finally:
        for number, block in kept.items():
            blocks[number] = block


@torch.no_grad()
def states_below(net: Any, first: int, input_ids_BT: Tensor, position_ids_BT: Tensor) -> Tensor:
    """(B, T, D) states that enter layer `first`, without gradients."""
    with skipped(net, range(first, len(families.blocks(net)))) as stand_in:
        net.base_model(input_ids=input_ids_BT, position_ids=position_ids_BT, use_cache=False)
    return stand_in.states_BTD


class Store:
    """The states of the sequences of one source, in two files: the rows, and for each row its checksum once it is written.

    Several processes and runs may write at the same time: a row that two have mixed fails its checksum. Only the rows that were
    written take room on the disk, where the file system has sparse files (those of Linux and macOS have).
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: torch.dtype):
        """`shape` is (T, D) of each row."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shape, self.dtype = folder, shape, dtype
        self.bytes = shape[0] * shape[1] * dtype.itemsize
        """Size of a row."""
        # Read and not mapped into memory: a mapped file that is cut short or deleted would kill the process.
        self.rows, self.marks = (os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644) for name in (STATES, MARKS))

    def read(self, number: int) -> Tensor | None:
        """(T, D) states of the sequence; None when they have not been written, or not wholly."""
        mark = os.pread(self.marks, 8, number * 8)
        if len(mark) < 8 or not any(mark):
            return None
        row = bytearray(os.pread(self.rows, self.bytes, number * self.bytes))
        if len(row) < self.bytes or zlib.crc32(row) + THERE != int.from_bytes(mark, "little"):
            return None
        return torch.frombuffer(row, dtype=self.dtype).view(self.shape)

    def write(self, number: int, states_TD: Tensor) -> None:
        """Write the states of the sequence. Raises RunFailed when the disk takes no more."""
        row = states_TD.contiguous().cpu().view(torch.uint8).numpy().tobytes()
        try:
            _write(self.rows, row, number * self.bytes)
            _write(self.marks, (zlib.crc32(row) + THERE).to_bytes(8, "little"), number * 8)
        except OSError as error:
            raise RunFailed(
                f"{self.folder}: {error.strerror}; make room, or set runtime.prefix_cache: off, and run the same command again "
                "to go on"
            ) from None


def _write(file: int, content: bytes, at: int) -> None:
    done = 0
    while done < len(content):  # a disk that is nearly full takes a part, and says at the next call that it is full
        done += os.pwrite(file, content[done:], at + done)


@dataclass(frozen=True)
class Prefix:
    """The states that enter layer `first`, for all sequences of a training."""

    net: Any
    first: int
    order: Mixture
    stores: Mapping[str, Store]
    agree: Callable[[int], int]
    """`Engine.agree`."""

    def states(self, batch: Batch, input_ids_BT: Tensor, position_ids_BT: Tensor) -> Tensor:
        """(B, T, D) states of a micro-batch: read if all are there in every process, else computed and kept.

        A whole micro-batch is computed or none of it, because its shape decides how a matrix product rounds.
        """
        places = [self.order.locate(index) for index in batch.indices]
        rows = [self.stores[name].read(number) for name, number in places]
        found = [row for row in rows if row is not None]
        # All processes compute when one has to: under ZeRO 3 each gathers the weights for all.
        if not self.agree(int(len(found) < len(rows))):
            return torch.stack(found).to(input_ids_BT.device)
        states_BTD = states_below(self.net, self.first, input_ids_BT, position_ids_BT)
        for (name, number), row, states_TD in zip(places, rows, states_BTD, strict=True):
            if row is None:
                self.stores[name].write(number, states_TD)
        return states_BTD


def key(base: BaseManifest, net: Any, first: int, shape_BT: tuple[int, int]) -> str:
    """Name of the folder of states, which depend on all of this: base, layer, micro-batch, precision, attention, device."""
    device = net.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    made = {
        "files": {file.name: file.sha256 for file in base.files}, "layer": first, "shape": shape_BT,
        "precision": str(net.dtype), "attention": net.config._attn_implementation, "device": f"{device.type} {kind}",
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip
    return FOLDER + fingerprint(made)


LEAST_SAVED = 0.25
"""Share of the layers that must lie below the first one that learns: reading states costs time and disk too."""
MOST_DISK = 0.5
"""Most of the free disk that states may take."""


def pays(order: Mixture, folder: Path, row_bytes: int, saved: float, *, shared: bool) -> bool:
    """True when states in `folder` would be read: there are some, or a later epoch or run reads them. Says what disk they take.

    `saved` is the share of the layers that need not be computed, `shared` says whether other runs use the same folder. False,
    with a line that says so, when the disk has no room.
    """
    if saved < LEAST_SAVED:
        return False
    times = np.bincount(order.owner, minlength=len(order.names))
    wanted = {
        name: min(int(n), order.files[name].num_sequences(order.length)) for n, name in zip(times, order.names, strict=True)
    }
    there = {name: _written(folder / name) for name in order.names}
    if not (shared or any(there.values()) or sum(wanted.values()) < len(order)):
        return False
    more = sum(max(0, wanted[name] - there[name]) for name in order.names) * row_bytes
    free = shutil.disk_usage(folder.parent).free
    room = f"{more / GiB:.2f} GiB of disk for the states below the first layer that learns"
    if more > MOST_DISK * free:
        say(f"  warning: no room for {room} ({free / GiB:.2f} GiB are free); these layers are computed in every step")
        return False
    say(f"  up to {room}, which are computed once for each sequence (runtime.prefix_cache)")
    return True


def _written(folder: Path) -> int:
    marks = folder / MARKS
    return int(np.count_nonzero(np.fromfile(marks, dtype=np.uint64))) if marks.is_file() else 0
