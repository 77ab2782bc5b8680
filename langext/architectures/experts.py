"""The routed experts of a folded model: their matrices, router rows, and the thresholds by which they are chosen.

Shapes: D model width, H hidden units of an expert, E experts.
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

MATRICES = (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1))
"""The matrices of a gated feed-forward network, each with the dimension that counts the hidden units."""


def halves(block: Any, hidden: int) -> list[Any]:
    """Two networks of `hidden` units, the mean of which is the block's; [None, None] if there is no block."""
    if block is None:
        return [None, None]
    found = []
    for at in range(2):
        units = [
            pad(getattr(block, name).weight.detach(), dim, 2 * hidden).narrow(dim, at * hidden, hidden)
            for name, dim in MATRICES
        ]
        gate, up, down = (SimpleNamespace(weight=weight) for weight in (units[0], units[1], 2 * units[2]))
        found.append(SimpleNamespace(gate_proj=gate, up_proj=up, down_proj=down, router=block.router))
    return found


def threshold(w: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The router row s w (D,) of a block with row w (D,) and threshold t (1,), and what is added to its score (1,).

    s is a power of two, which changes no digit of w, and makes the larger of |t| and the largest |w| 1 to 2: there the sigmoid
    is steep, so that float32 tells w . x from t when they differ by a millionth of that. One more step of float32 below 1/2
    closes the gate at w . x = t, also for a row of zeros with t = 0, which would score as the expert of zeros does.
    """
    size = torch.maximum(t.abs(), w.abs().max()).clamp(2.0**-64, 2.0**64)  # so that s w is a number also where t is infinite
    s = torch.ldexp(torch.ones_like(size), 1 - torch.frexp(size).exponent)
    return s * w, (0.5 - torch.sigmoid((s * t).double()) - 2.0**-24).float()


def width(stacks: Sequence[Mapping[int, Any]]) -> int:
    """H of the widest block of all extensions; each is a mapping layer -> block."""
    return max(block.gate_proj.weight.shape[0] for stack in stacks for block in stack.values())


def matrices(ffn: Any, blocks: Sequence[Any], hidden: int, empty: int) -> tuple[Tensor, Tensor, Tensor]:
    """Expert matrices (E, 2H, D) for gate and up and (E, D, H) for down, and router rows (E, D).

    First come the blocks, then `empty` experts of zeros. A block that is None becomes an expert of zeros too.
    """
    like = ffn.gate_proj.weight.detach()
    width = like.shape[1]
    parts = []
    for block in [*blocks, *[None] * empty]:
        if block is None:
            parts.append((like.new_zeros(2 * hidden, width), like.new_zeros(width, hidden), like.new_zeros(width)))
        else:
            gate, up, down = (pad(getattr(block, name).weight.detach(), dim, hidden) for name, dim in MATRICES)
            parts.append((torch.cat([gate, up]), down, block.router.weight.detach()[0]))
    gate_up, down, rows = zip(*parts, strict=True)
    return torch.stack(gate_up), torch.stack(down), torch.stack(rows)


def pad(weight: Tensor, dim: int, size: int) -> Tensor:
    """`weight` with zeros appended along dimension `dim`, so that this dimension has length `size`."""
    shape = list(weight.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([weight, weight.new_zeros(shape)], dim)
