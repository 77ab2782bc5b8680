"""LiNeS: shrink the change of the weights by training, more in early layers than in late ones. https://arxiv.org/abs/2410.17146.

    theta = theta_0 + f(l) (theta_trained - theta_0)      f(l) = alpha + beta (l - 1) / (L - 1),  l = 1 .. L

theta_0 are the weights before training, L is the number of layers. Parameters outside the layers get alpha, as in the authors'
code. New vocabulary rows have no theta_0 and are never scaled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from langext.architectures import vocabulary
from langext.methods.base import Method

Head = Literal["alpha", "last"]


@dataclass(frozen=True)
class Lines:
    """The scaling factors for one choice of alpha and beta."""

    alpha: float
    beta: float
    head: Head = "alpha"
    """Factor of an untied output head and of the last norm: `alpha`, or with `last` that of the last layer (alpha + beta)."""

    def factor(self, place: tuple[int, int] | None, name: str) -> float:
        """The factor of the parameter `name`. `place` is (layer index from 0, number of layers), None outside the layers."""
        if name.endswith(vocabulary.NEW_ROWS):
            return 1.0
        if place is None:
            late = self.head == "last" and name in ("lm_head.weight", "model.norm.weight")
            return self.alpha + self.beta if late else self.alpha
        index, depth = place
        return self.alpha + self.beta * (index / (depth - 1) if depth > 1 else 1.0)


def rescaled(
    delta: Mapping[str, Tensor], origin: Mapping[str, Tensor], method: Method, config: Any, lines: Lines
) -> dict[str, Tensor]:
    """A copy of a trained `delta` with every change scaled by its factor.

    `origin` holds the values before training, `config` is the base's. A low-rank change is a product of two matrices; only the
    matrix that starts at zero is scaled, which scales the product exactly.
    """
    parts = method.linear_parts()
    assert parts is not None, f"{method.name} cannot be scaled layer by layer"
    out = {}
    for name, tensor in delta.items():
        by = lines.factor(method.layer(name, config), name)
        if name.endswith(vocabulary.NEW_ROWS) or (parts and not name.endswith(parts)):
            out[name] = tensor  # new rows, or the other matrix of a low-rank product
        elif parts:
            out[name] = tensor * by
        else:
            out[name] = origin[name] + by * (tensor - origin[name])
    return out
