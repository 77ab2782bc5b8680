"""Grow, don't overwrite: wider feed-forward networks whose new part starts as a copy. https://arxiv.org/abs/2603.08647.

k copies of a network, with output matrices divided by k, compute the same as the one network. In a gated network both input
matrices are copied:

    FFN(x) = W_down h(x)   ->   W_down/k h_1(x) + ... + W_down/k h_k(x)      h_i(x) = act(W_gate,i x) * (W_up,i x)

`train: new_copy` trains the k - 1 new copies and keeps the original frozen; `train: all_mlp` trains the original too.

Copies that learn must not start with equal output matrices: they would get equal gradients and stay equal for ever. So their
output matrix is not divided but dealt out, like cards: of m learning copies, copy c gets the elements (i, j) with
(i + j) mod m = c unchanged, and zeros elsewhere. With `new_copy` the original keeps half of its output matrix, and the other
half is dealt to the new copies; the paper has k = 2. The start is always exactly the base.

Shapes: D model width, F width of the feed-forward network, k copies.
"""

import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from langext.architectures import families
from langext.errors import ConfigError
from langext.methods import extension, layers
from langext.methods.base import Method
from langext.methods.extension import Extension
from langext.methods.layers import Layers

if TYPE_CHECKING:
    from langext.architectures.stock import Stock

ATTRIBUTE = "grown"


def deal(matrix: Tensor, m: int) -> list[Tensor]:
    """A list of m matrices whose sum is exactly `matrix`: each element is in one of them, and zero in the others."""
    owner = (torch.arange(matrix.shape[0])[:, None] + torch.arange(matrix.shape[1])) % m
    return [matrix * (owner == c).to(matrix.device) for c in range(m)]


class Copies(Extension):
    """The k - 1 new copies of one feed-forward network, as one network of k - 1 times its width.

    With `dealt`, the original takes part in the dealing, and its output matrix is changed in place.
    """

    def __init__(self, stack: int, ffn: Any, k: int, dealt: bool):
        super().__init__(stack)
        self.act = ffn.act_fn
        self.kept = 1.0 if dealt else 0.5
        """Factor by which the output of the original network still counts."""
        down: Tensor = ffn.down_proj.weight.data
        if dealt:
            first, *new = deal(down, k)
            down.copy_(first)
        else:
            new = deal(down / 2, k - 1)
        self.gate_proj = _linear(ffn.gate_proj.weight.data.repeat(k - 1, 1))
        self.up_proj = _linear(ffn.up_proj.weight.data.repeat(k - 1, 1))
        self.down_proj = _linear(torch.cat(new, 1))

    def forward(self, x: Tensor, old: Tensor) -> Tensor:
        """(..., D) to be added to `old`. `x` and `old`, both (..., D), are input and output of the original network."""
        new = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        # The original's matrix stays whole while training, so that switching this off restores the base.
        added = new - (1 - self.kept) * old
        self.note(added)
        return added


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone())
    return linear


class Grow(Method):
    """Makes feed-forward networks k times as wide."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2603.08647"
    copies: ClassVar[bool] = True
    name: Literal["grow"]
    k: int = Field(2, ge=2, le=64)
    """Number of copies of each feed-forward network, including the original. More copies learn more and cost more."""
    layers: Layers = "all"
    """Which layers grow: all, middle, a list of layer numbers from 0, or {top: n} for the n layers nearest to the output."""
    train: Literal["new_copy", "all_mlp"] = "new_copy"
    """new_copy keeps the original frozen. all_mlp trains it too, which learns more and forgets more."""

    @property
    def reversible(self) -> bool:
        """True if the original network stays frozen."""
        return self.train == "new_copy"

    def check(self, config: Any) -> None:
        """Raise ConfigError if the base lacks one of the layers, or has biases in its feed-forward networks."""
        super().check(config)
        layers.chosen(self.layers, config)
        if getattr(config, "mlp_bias", False):
            raise ConfigError("grow does not copy biases, and this base has some in its feed-forward networks (mlp_bias)")

    def extend(self, model: Any) -> None:
        """Attach the new copies by forward hooks."""
        self.check(model.config)
        stack, ffns = extension.next_stack(model), families.ffns(model)
        for layer in layers.chosen(self.layers, model.config):
            copies = Copies(stack, ffns[layer], self.k, dealt=self.train == "all_mlp")
            ffns[layer].add_module(ATTRIBUTE, copies)
            copies.hang(ffns[layer], lambda _, inputs, output, copies=copies: output + copies(inputs[0], output))

    def trainable(self, name: str, config: Any) -> bool:
        """True for the new copies and, with all_mlp, for the original networks of the layers that grew."""
        if f".{ATTRIBUTE}." in name:
            return True
        in_ffn = re.search(r"\.layers\.(\d+)\.mlp\.", name)
        return self.train == "all_mlp" and in_ffn is not None and int(in_ffn[1]) in layers.chosen(self.layers, config)

    def dense(self) -> bool:
        """False: the networks are wider than the base's."""
        return False

    def architecture(self, config: Any) -> str:
        """The base's own architecture, but wider. A stock model has one width for all layers, so the rest gets zeros."""
        growing = layers.chosen(self.layers, config) if config is not None else []
        rest = "" if config is None or len(growing) == config.num_hidden_layers else ", zeros in the layers that did not grow"
        return f"the base's own, with feed-forward networks {self.k} times as wide{rest}"

    def fold(self, model: Any) -> "Stock":
        """The stock form: original and copies as one wider network in each layer."""
        from langext.architectures import folding

        by_layer = {i: getattr(ffn, ATTRIBUTE, None) for i, ffn in enumerate(families.ffns(model))}
        copies = {i: grown for i, grown in by_layer.items() if grown is not None}
        return folding.wider(model, [copies], {i: grown.kept for i, grown in copies.items()})
