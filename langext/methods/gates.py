"""The gates of residual blocks: what each does to a token, and whether it closes."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Gate = Literal["relu", "elu", "sigmoid", "hard_sigmoid", "none"]


def opened(z: Tensor, gate: str) -> Tensor:
    """The gate's value for z = w . x."""
    if gate == "relu":
        return F.relu(z)
    if gate == "elu":
        return F.elu(z)
    return torch.sigmoid(z) * (z > 0) if gate == "hard_sigmoid" else torch.sigmoid(z)


def closes(gate: str) -> bool:
    """Is the gate exactly zero for half of its inputs?"""
    return gate in ("relu", "hard_sigmoid")
