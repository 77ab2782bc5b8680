"""The gates of residual blocks, all in one table. Nothing else in langext compares their names.

A gate is a function of z = w . x, one scalar for each token. Adding one: a row here and its name in `GateName`, the same row in
exports/modeling_neutral_residue.py (which travels with exports), and, for a stock architecture, its folding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from langext.architectures import folding
from langext.architectures.folding import Weight

GateName = Literal["relu", "elu", "sigmoid", "hard_sigmoid", "none"]


@dataclass(frozen=True)
class Gate:
    """What a gate does, and what others can make of it."""

    value: Callable[[Tensor], Tensor]
    """z -> what the block's output is multiplied by."""
    closes: bool
    """Is it exactly zero, without a gradient, for a part of its inputs?"""
    folds_as: Weight | None
    """How a stock architecture weighs the block; None where none computes this gate."""
    open_above: float = 0.0
    """Values above this count as open."""
    is_probability: bool = False
    """Does it read sigmoid(z), which can be trained as the probability that a token is of the new language?"""
    regates_to: GateName | None = None
    """The gate that stage regate turns it into."""


def hard_sigmoid(z: Tensor) -> Tensor:
    """sigmoid(z) where z > 0, else 0."""
    return torch.sigmoid(z) * (z > 0)


GATES: dict[GateName, Gate] = {
    "relu": Gate(F.relu, closes=True, folds_as=None, regates_to="hard_sigmoid"),
    "elu": Gate(F.elu, closes=False, folds_as=None),
    "sigmoid": Gate(torch.sigmoid, closes=False, folds_as=Weight.SIGMOID, open_above=0.5, is_probability=True),
    "hard_sigmoid": Gate(hard_sigmoid, closes=True, folds_as=Weight.HARD_SIGMOID, is_probability=True),
    "none": Gate(torch.ones_like, closes=False, folds_as=Weight.ONE),
}
UNGATED: GateName = "none"
"""The block is added as it is, and has no row w."""


def has(name: str | None) -> bool:
    """Is there a gate? None stands for a method without blocks."""
    return name is not None and name != UNGATED


def weights(names: Sequence[GateName]) -> list[Weight]:
    """How stock architectures weigh blocks with these gates, all of which must have a folding."""
    found = [GATES[name].folds_as for name in names]
    assert None not in found, "obstacle() says so"
    return [weight for weight in found if weight is not None]


def obstacle(names: Sequence[GateName], config: Any) -> str:
    """Why no stock architecture computes blocks with these gates on this base; empty when one does."""
    for name in names:
        if GATES[name].folds_as is None:
            to = GATES[name].regates_to
            way_out = f" (a regate stage turns it into {to})" if to else ""
            return f"no stock architecture computes a block with {article(name)} {name} gate{way_out}"
    if len(set(names)) > 1:
        return f"no stock architecture computes blocks with the gates {', '.join(names)} side by side"
    return folding.obstacle(weights(names), config)


def article(name: str) -> str:
    """A or an."""
    return "an" if name[0] in "aeiou" else "a"
