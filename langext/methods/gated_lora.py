"""Gated LoRA: low-rank changes in which every rank has a gate that depends on the token.

    W x  ->  W0 x + (alpha / r) B diag(g(x)) A x        g(x) = sigmoid(W_g x + b_g)

The method is DISeL, https://arxiv.org/abs/2605.19028: tokens that do not look like the new text can keep all gates near zero.
The gates start nearly closed (b_g = -3), with random W_g, so that they depend on the token from the first step.

Shapes: r is the rank, B is (out, r) and starts at zero, A is (r, in), W_g is (r, in), b_g is (r).
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from langext.methods.extension import Extension
from langext.methods.lora import LowRank

ATTRIBUTE = "gated_lora"


class GatedLowRank(Extension):
    """The low-rank change of one linear map, with its gates."""

    def __init__(self, stack: int, linear: nn.Linear, rank: int, scale: float, bias: float):
        super().__init__(stack)
        self.scale = scale
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False)  # uniform of variance 1 / (3 in), as PEFT starts its A
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False)
        self.gate = nn.Linear(linear.in_features, rank)  # the same, which is Kaiming's of the authors' code
        nn.init.zeros_(self.lora_B.weight)
        nn.init.constant_(self.gate.bias, bias)
        self.to(device=linear.weight.device, dtype=linear.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) input of the linear map -> (..., out) to be added to its output."""
        out = self.lora_B(torch.sigmoid(self.gate(x)) * self.lora_A(x)) * self.scale
        self.note(out)
        return out


class GatedLora(LowRank):
    """LoRA whose ranks open and close token by token."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2605.19028"
    name: Literal["gated_lora"]
    gate_bias: float = Field(-3.0, ge=-20, le=20)
    """Start of b_g: the gates start near sigmoid of it, 0.05 for -3. The paper takes -5 to -7 for little text. Lower values
    forget less and learn more slowly."""
    gate_lr_factor: float = Field(5.0, gt=0)
    """Learning rate of the gates, as a multiple of that of the training; 5 in the paper. Higher values let more gates open."""

    def extend(self, model: Any) -> None:
        """Attach a change to every target with a forward hook."""
        self.hang(model, ATTRIBUTE, lambda stack, linear: GatedLowRank(stack, linear, self.rank, self.scale, self.gate_bias))

    def trainable(self, name: str, config: Any) -> bool:
        """True for the factors A and B and for the gates; the base does not learn."""
        return f".{ATTRIBUTE}." in name

    def peak_lr(self, name: str, lr: float) -> float:
        """`gate_lr_factor` times the learning rate of the training for the gates; that of the training for the factors."""
        return lr * self.gate_lr_factor if f".{ATTRIBUTE}.gate." in name else lr

    def decays(self, name: str) -> bool:
        """False for the gates: W_g of zeros would make them the same for all tokens."""
        return f".{ATTRIBUTE}.gate." not in name

    def linear_parts(self) -> tuple[str, ...] | None:
        """None: the changes depend on the token, so no matrix can hold them."""
        return None

    def dense(self) -> bool:
        """False: the changes cannot be merged into the base's matrices."""
        return False

    def obstacle(self, config: Any) -> str:
        """The reason why the model exports as a delta alone."""
        return "gated_lora changes a matrix by another amount for every token, which no stock architecture does"
