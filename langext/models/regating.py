"""A trained ReLU gate turned into a hard sigmoid, which stock architectures have.

    relu(w.x) A(x)  ->  h(w'.x) c A(x)        h(z) = sigmoid(z) where z > 0, else 0

With w' = s w, s > 0, both are open for exactly the same inputs. s and c are fitted by least squares layer by layer; then the
rows w' alone are distilled, KL(before || after) on text of every language. c goes into the block's output matrix.

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
"""What s is chosen from: with a power of two a row in bf16 keeps its direction to the last bit."""


@dataclass
class Regated:
    """One block with both gates: its ReLU row, divided by c because A is multiplied by it, and the new row."""

    block: Residue
    before: Tensor
    row: nn.Parameter
    gates: tuple[GateName, GateName]
    """Its gate before and after."""


def fit(z_N: Tensor, weight_N: Tensor) -> tuple[float, float]:
    """(s, c) that minimise sum of weight (z - c h(s z))^2 over open tokens, z > 0; (1, 1) when nothing is added for any."""
    if not weight_N.sum() > 0:
        return 1.0, 1.0
    found = []
    for s in SLOPES:
        h_N = torch.sigmoid(s * z_N)
        c = ((weight_N * z_N * h_N).sum() / (weight_N * h_N * h_N).sum()).item()
        found.append(((weight_N * (z_N - c * h_N).square()).sum().item(), s, c))
    return min(found)[1:]


@torch.no_grad()
def start(net: Any, blocks: Sequence[Residue], goal: GateName, rows: Sequence[list[int]]) -> list[Regated]:
    """Fit every block on some text and give it the gate `goal`, in place. `rows` are token ids."""
    seen: dict[int, list[tuple[Tensor, Tensor]]] = {i: [] for i in range(len(blocks))}
    for block in blocks:
        block.watched = True
    for row in rows:
        net(input_ids=torch.tensor([row], device=net.device))
        for i, block in enumerate(blocks):
            assert block.z_BT is not None and block.added_BT is not None, "watched"
            z, added = block.z_BT.flatten().float(), block.added_BT.flatten()
            seen[i].append((z[z > 0], (added[z > 0] / z[z > 0]).square()))
    made = []
    for i, block in enumerate(blocks):
        block.watched, block.z_BT, block.added_BT = False, None, None
        s, c = fit(*(torch.cat(part) for part in zip(*seen[i], strict=True)))
        assert block.router is not None, "a block with a ReLU gate"
        w = block.router.weight.data.float()
        block.down_proj.weight.data.mul_(c)
        made.append(Regated(block, w / c, nn.Parameter(s * w), (block.gate, goal)))
    _use(made, after=True)
    return made


@contextmanager
def as_before(regated: Sequence[Regated]) -> Iterator[None]:
    """Within it the model computes what it did with its ReLU gates."""
    _use(regated, after=False)
    try:
        yield
    finally:
        _use(regated, after=True)


def settle(regated: Sequence[Regated], dtype: torch.dtype) -> None:
    """Round the new rows, in place, to the precision that the model is loaded in later."""
    for one in regated:
        one.row.data.copy_(one.row.data.to(dtype))


def _use(regated: Sequence[Regated], after: bool) -> None:
    for one in regated:
        assert one.block.router is not None
        one.block.gate = one.gates[after]
        one.block.router.weight = one.row if after else nn.Parameter(one.before, requires_grad=False)


def distil(net: Any, regated: Sequence[Regated], batches: Sequence[Sequence[list[int]]], lr: float) -> Iterator[float]:
    """Train the new rows and nothing else, one step for each batch of token ids; yields the batch's KL per token in nats.

    `lr` is the first step's size as a share of a row's root mean square; it falls to zero along a cosine.
    """
    net.requires_grad_(False)
    for one in regated:
        one.row.requires_grad_(True)
    groups = [{"params": [one.row], "lr": lr * one.row.detach().square().mean().sqrt().item()} for one in regated]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.5 + 0.5 * math.cos(math.pi * i / len(batches)))
    for batch in batches:
        total, tokens = 0.0, sum(map(len, batch))
        for row in batch:
            ids = torch.tensor([row], device=net.device)
            with torch.no_grad(), as_before(regated):
                want_TV = net(input_ids=ids).logits[0].float().log_softmax(-1)
            got_TV = net(input_ids=ids).logits[0].float().log_softmax(-1)
            kl = (want_TV.exp() * (want_TV - got_TV)).sum() / tokens
            kl.backward()
            total += kl.item()
        optimizer.step()
        optimizer.zero_grad()
        falling.step()
        yield total
