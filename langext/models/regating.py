"""Replace a trained ReLU gate by a hard sigmoid, because stock architectures have only the latter.

    relu(w.x) A(x)  ->  h(w'.x) c A(x)        h(z) = sigmoid(z) where z > 0, else 0

With w' = s w and s > 0, both gates are open for exactly the same inputs. s and c are fitted by least squares, layer by layer,
and c is multiplied into the block's output matrix. Then only the rows w' are trained further, by distillation: they minimise
KL(before || after) on text of every language.

Shapes: B sequences, T tokens, N open tokens, D model width, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from langext.methods.gates import GateName
from langext.methods.residue import Residue

SLOPES = [2.0**k for k in range(-12, 13)]
"""The candidates for s. A power of two only changes exponents, so a row in bf16 keeps its direction exactly."""


@dataclass
class Regated:
    """One block with its old and its new gate."""

    block: Residue
    before: Tensor
    """The ReLU gate's row w, divided by c: the block's output is now multiplied by c, and the product stays the same."""
    row: nn.Parameter
    """The new gate's row w'."""
    gates: tuple[GateName, GateName]
    """The names of the old and the new gate."""


def fit(z_N: Tensor, weight_N: Tensor) -> tuple[float, float]:
    """(s, c) that minimise the sum of weight (z - c h(s z))^2 over open tokens (z > 0); (1, 1) when all weights are zero."""
    if not weight_N.sum() > 0:
        return 1.0, 1.0
    candidates = []  # (squared error, s, c)
    for s in SLOPES:
        h_N = torch.sigmoid(s * z_N)
        # For a fixed s the best c has a closed form (least squares with one unknown), so only s is searched.
        c = ((weight_N * z_N * h_N).sum() / (weight_N * h_N * h_N).sum()).item()
        candidates.append(((weight_N * (z_N - c * h_N).square()).sum().item(), s, c))
    return min(candidates)[1:]


@torch.no_grad()
def start(net: Any, blocks: Sequence[Residue], goal: GateName, rows: Sequence[list[int]]) -> list[Regated]:
    """Fit every block on text (`rows` of token ids) and give it the gate `goal`. Changes the blocks of `net` in place."""
    seen: dict[int, list[tuple[Tensor, Tensor]]] = {i: [] for i in range(len(blocks))}
    for block in blocks:
        block.watched = True
    for row in rows:
        net(input_ids=torch.tensor([row], device=net.device))
        for i, block in enumerate(blocks):
            assert block.z_BT is not None and block.added_BT is not None, "watched"
            z, added = block.z_BT.flatten().float(), block.added_BT.flatten()
            # added / z is the mean |A(x)|: the weight says how much an error of the gate changes the output of the block.
            seen[i].append((z[z > 0], (added[z > 0] / z[z > 0]).square()))
    regated = []
    for i, block in enumerate(blocks):
        block.watched, block.z_BT, block.added_BT = False, None, None
        s, c = fit(*(torch.cat(part) for part in zip(*seen[i], strict=True)))
        assert block.router is not None, "a block with a ReLU gate"
        w = block.router.weight.data.float()
        block.down_proj.weight.data.mul_(c)
        regated.append(Regated(block, w / c, nn.Parameter(s * w), (block.gate, goal)))
    _use(regated, after=True)
    return regated


@contextmanager
def as_before(regated: Sequence[Regated]) -> Iterator[None]:
    """Inside this context the model computes the same as before, with its ReLU gates."""
    _use(regated, after=False)
    try:
        yield
    finally:
        _use(regated, after=True)


def settle(regated: Sequence[Regated], dtype: torch.dtype) -> None:
    """Round the new rows in place to `dtype`, the precision in which the model will be loaded. They stay float32 tensors."""
    for item in regated:
        item.row.data.copy_(item.row.data.to(dtype))


def _use(regated: Sequence[Regated], after: bool) -> None:
    """Switch all blocks to their new gates, or back to their old ones."""
    for item in regated:
        assert item.block.router is not None
        item.block.gate = item.gates[after]
        item.block.router.weight = item.row if after else nn.Parameter(item.before, requires_grad=False)


def distil(net: Any, regated: Sequence[Regated], batches: Sequence[Sequence[list[int]]], lr: float) -> Iterator[float]:
    """Train only the new rows, one step per batch of token ids. Yields the KL of each batch, in nats per token.

    `lr` is the learning rate of the first step as a share of a row's root mean square. It falls to zero along a cosine.
    """
    net.requires_grad_(False)
    for item in regated:
        item.row.requires_grad_(True)
    # AdamW's steps have the size of the learning rate, and the fit of s gives rows of very different sizes.
    groups = [{"params": [item.row], "lr": lr * item.row.detach().square().mean().sqrt().item()} for item in regated]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.5 + 0.5 * math.cos(math.pi * i / len(batches)))
    for batch in batches:
        total, tokens = 0.0, sum(map(len, batch))
        for row in batch:
            ids = torch.tensor([row], device=net.device)
            with torch.no_grad(), as_before(regated):
                before_TV = net(input_ids=ids).logits[0].float().log_softmax(-1)
            after_TV = net(input_ids=ids).logits[0].float().log_softmax(-1)
            kl = (before_TV.exp() * (before_TV - after_TV)).sum() / tokens
            kl.backward()  # row by row, so that the logits of only one row are in memory
            total += kl.item()
        optimizer.step()
        optimizer.zero_grad()
        falling.step()
        yield total
