"""LiNeS: scale what training changed less in the early layers than in the late ones. https://arxiv.org/abs/2410.17146.

    theta = theta_0 + f(l) (theta_trained - theta_0)      f(l) = alpha + beta (l - 1) / (L - 1),  l = 1 .. L

Parameters outside the layers get alpha, as in the authors' code. New vocabulary rows have no theta_0 and are never scaled.
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
    """The factors of one choice of alpha and beta."""

    alpha: float
    beta: float
    head: Head = "alpha"
    """What an untied output head and the last norm get: alpha, or the last layer's factor."""

    def factor(self, place: tuple[int, int] | None, name: str) -> float:
        """The factor of a parameter that lies in layer `place` = (index from 0, depth), None outside the layers."""
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
    """A trained delta pulled towards where it started, `origin`. `config` is the base's.

    Of a low-rank change only the factor that starts at zero is scaled: the product is then scaled as a whole, exactly.
    """
    parts = method.linear_parts()
    assert parts is not None, f"{method.name} cannot be scaled layer by layer"
    out = {}
    for name, tensor in delta.items():
        by = lines.factor(method.layer(name, config), name)
        if name.endswith(vocabulary.NEW_ROWS) or (parts and not name.endswith(parts)):
            out[name] = tensor
        elif parts:
            out[name] = tensor * by
        else:
            out[name] = origin[name] + by * (tensor - origin[name])
    return out
