"""Shrink the change of the weights by training, layer by layer.

    theta = theta_0 + f(l) (theta_trained - theta_0)      l = 1 .. L

theta_0 are the weights before training, L is the number of layers. Two choices of f:

- LiNeS, https://arxiv.org/abs/2410.17146: f(l) = alpha + beta (l - 1) / (L - 1), less in early layers than in late ones.
  Parameters outside the layers get alpha, as in the authors' code.
- Train, then revert, https://arxiv.org/abs/2606.00284: f(l) = 0 in some layers, 1 in the others and outside the layers.

New vocabulary rows have no theta_0 and are never scaled.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from langext.architectures import vocabulary
from langext.methods.base import Method

Head = Literal["alpha", "last"]


class Factors(Protocol):
    """A choice of f."""

    def factor(self, place: tuple[int, int] | None, name: str) -> float:
        """The factor of the parameter `name`. `place` is (layer index from 0, number of layers), None outside the layers."""
        ...


@dataclass(frozen=True)
class Reverted:
    """The weights of some layers become again what they were before training."""

    layers: Collection[int]
    """Layer numbers from 0."""

    def factor(self, place: tuple[int, int] | None, name: str) -> float:
        """As in `Factors`."""
        return 0.0 if place is not None and place[0] in self.layers else 1.0


@dataclass(frozen=True)
class Lines:
    """The scaling factors of LiNeS for one choice of alpha and beta."""

    alpha: float
    beta: float
    head: Head = "alpha"
    """Factor of an untied output head and of the last norm: `alpha`, or with `last` that of the last layer (alpha + beta)."""

    def factor(self, place: tuple[int, int] | None, name: str) -> float:
        """As in `Factors`."""
        if name.endswith(vocabulary.NEW_ROWS):
            return 1.0
        if place is None:
            late = self.head == "last" and name in ("lm_head.weight", "model.norm.weight")
            return self.alpha + self.beta if late else self.alpha
        index, depth = place
        return self.alpha + self.beta * (index / (depth - 1) if depth > 1 else 1.0)


def rescaled(
    delta: Mapping[str, Tensor], origin: Mapping[str, Tensor], method: Method, config: Any, factors: Factors
) -> dict[str, Tensor]:
    """A copy of a trained `delta` with every change scaled by its factor.

    `origin` holds the values before training, `config` is the base's. A low-rank change is a product of two matrices; only the
    matrix that starts at zero is scaled, which scales the product exactly.
    """
    parts = method.linear_parts()
    assert parts is not None, f"{method.name} cannot be scaled layer by layer"
    out = {}
    for name, tensor in delta.items():
        by = factors.factor(method.layer(name, config), name)
        if name.endswith(vocabulary.NEW_ROWS) or (parts and not name.endswith(parts)):
            out[name] = tensor  # new rows, or the other matrix of a low-rank product
        elif parts:
            out[name] = tensor * by
        else:
            out[name] = origin[name] + by * (tensor - origin[name])
    return out
