"""The gates of residual blocks, all in one table. No other file of langext compares the names of gates.

A gate is a function of z = w . x (with a threshold t: z = w . x - t), one scalar for each token. To add a gate, add a row here,
its name to `GateName`, and the same row to exports/modeling_neutral_residue.py (a copy of that file is part of exports). If a
stock architecture can compute the gate, add the mapping to architectures/folding.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from langext.architectures import folding
from langext.architectures.folding import Weight

GateName = Literal["relu", "elu", "sigmoid", "hard_sigmoid", "threshold", "none"]


@dataclass(frozen=True)
class Gate:
    """What a gate computes, and how training and exports can use it."""

    value: Callable[[Tensor], Tensor]
    """z -> the factor that the block's output is multiplied by, in the shape of z."""
    closes: bool
    """True if the value is exactly zero, with a zero gradient, for some z."""
    folds_as: Weight | None
    """The weight that a stock architecture gives to the block; None if no stock architecture computes this gate."""
    open_above: float = 0.0
    """The gate counts as open for a token if its value is above this."""
    jumps: bool = False
    """True if the value jumps at z = 0: there, rounding of z changes what a model computes."""
    is_probability: bool = False
    """True if the value comes from sigmoid(z), which can be trained as the probability that a token is in the new language."""
    regates_to: GateName | None = None
    """The gate that the stage regate replaces this one by; None if that stage cannot replace it."""
    threshold: bool = False
    """True if z = w . x - t, and neither w nor t learns: they are calibrated before the training, and the delta holds them."""


def hard_sigmoid(z: Tensor) -> Tensor:
    """sigmoid(z) where z > 0, else 0."""
    return torch.sigmoid(z) * (z > 0)


def step(z: Tensor) -> Tensor:
    """1 where z > 0, else 0. It has no gradient."""
    return (z > 0).to(z.dtype)


GATES: dict[GateName, Gate] = {
    "relu": Gate(F.relu, closes=True, folds_as=None, regates_to="hard_sigmoid"),
    "elu": Gate(F.elu, closes=False, folds_as=None),
    "sigmoid": Gate(torch.sigmoid, closes=False, folds_as=Weight.SIGMOID, open_above=0.5, is_probability=True),
    "hard_sigmoid": Gate(hard_sigmoid, closes=True, folds_as=Weight.HARD_SIGMOID, jumps=True, is_probability=True),
    "threshold": Gate(step, closes=True, folds_as=Weight.STEP, jumps=True, threshold=True),
    "none": Gate(torch.ones_like, closes=False, folds_as=Weight.ONE),
}
UNGATED: GateName = "none"
"""The block's output is added in full, and there is no row w."""


def has(name: str | None) -> bool:
    """True if `name` is a real gate, neither "none" nor None (a method without blocks)."""
    return name is not None and name != UNGATED


def weights(names: Sequence[GateName]) -> list[Weight]:
    """The weights that stock architectures give to blocks with these gates. Each gate must have one; see `obstacle`."""
    folded = [GATES[name].folds_as for name in names]
    assert None not in folded, "obstacle() says so"
    return [weight for weight in folded if weight is not None]


def obstacle(names: Sequence[GateName], config: Any) -> str:
    """The reason why no stock architecture can compute blocks with these gates on this base; "" if one can.

    `names` has one gate for each extension; `config` is the base's, or None while the base is not known.
    """
    for name in names:
        if GATES[name].folds_as is None:
            to = GATES[name].regates_to
            way_out = f" (a regate stage turns it into {to})" if to else ""
            return f"no stock architecture computes a block with {article(name)} {name} gate{way_out}"
    if len(set(names)) > 1:
        return f"no stock architecture computes blocks with the gates {', '.join(names)} side by side"
    return folding.obstacle(weights(names), config)


def article(name: str) -> str:
    """The indefinite article for a name: "an" before a vowel, otherwise "a"."""
    return "an" if name[0] in "aeiou" else "a"
