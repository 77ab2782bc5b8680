"""Grow, don't overwrite: wider feed-forward networks whose new half starts as a copy. https://arxiv.org/abs/2603.08647.

A network of k copies whose output matrices are divided by k computes what one did. For a gated network both input matrices are
copied:

    FFN(x) = W_down h(x)   ->   W_down/k h_1(x) + ... + W_down/k h_k(x)      h_i(x) = act(W_gate,i x) * (W_up,i x)

Copies with equal output matrices get equal gradients and never come apart. `new_copy` trains the k - 1 new copies and keeps
the original: one moves, the other does not. `all_mlp` trains the original too. So whatever learns is not divided but dealt out:
of m learning copies number c gets the elements (i, j) of the output matrix with (i + j) mod m = c, whole. With `new_copy` the
original keeps half of the output and the new copies are dealt the other half; k = 2 is the paper's. Every start is exact.

Shapes: D model width, F width of the feed-forward network, k copies.
"""

import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from langext.architectures import families
from langext.methods import extension, layers
from langext.methods.base import Method
from langext.methods.extension import Extension
from langext.methods.layers import Layers
from langext.spec import ConfigError

if TYPE_CHECKING:
    from langext.architectures.stock import Stock

ATTRIBUTE = "grown"


def deal(matrix: Tensor, m: int) -> list[Tensor]:
    """M matrices that sum to `matrix`: each of its elements goes whole to one of them."""
    place = (torch.arange(matrix.shape[0])[:, None] + torch.arange(matrix.shape[1])) % m
    return [matrix * (place == c).to(matrix.device) for c in range(m)]


class Copies(Extension):
    """The k - 1 new copies of one feed-forward network, side by side."""

    def __init__(self, stack: int, ffn: Any, k: int, dealt: bool):
        super().__init__(stack)
        self.act = ffn.act_fn
        self.kept = 1.0 if dealt else 0.5
        """Share of its old output that the original still gives."""
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
        """(..., D) input and output of the original network -> (..., D) to be added to that output."""
        new = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        added = new - (1 - self.kept) * old
        self.note(added)
        return added


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone())
    return linear


class Grow(Method):
    """Feed-forward networks k times as wide."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2603.08647"
    name: Literal["grow"]
    k: int = Field(2, ge=2)
    """Copies of each feed-forward network, the original included."""
    layers: Layers = "all"
    """Where: all, a list of layer numbers from 0, or {top: n} for the n layers nearest to the output."""
    train: Literal["new_copy", "all_mlp"] = "new_copy"
    """new_copy keeps the original frozen. all_mlp trains it too: learns more, forgets more."""

    @property
    def reversible(self) -> bool:
        """While the original is kept."""
        return self.train == "new_copy"

    def check(self, config: Any) -> None:
        """The base has these layers, and no biases in its feed-forward networks."""
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
        """The new copies, and with all_mlp the originals of the layers that grew."""
        if f".{ATTRIBUTE}." in name:
            return True
        found = re.search(r"\.layers\.(\d+)\.mlp\.", name)
        return self.train == "all_mlp" and found is not None and int(found[1]) in layers.chosen(self.layers, config)

    def dense(self) -> bool:
        """The networks are wider than the base's."""
        return False

    def architecture(self, config: Any) -> str:
        """All layers of a stock model are as wide as the widest."""
        some = layers.chosen(self.layers, config) if config is not None else []
        rest = "" if config is None or len(some) == config.num_hidden_layers else ", zeros in the layers that did not grow"
        return f"the base's own, with feed-forward networks {self.k} times as wide{rest}"

    def fold(self, model: Any) -> "Stock":
        """Original and copies side by side."""
        from langext.architectures import folding

        found = {i: getattr(ffn, ATTRIBUTE, None) for i, ffn in enumerate(families.ffns(model))}
        copies = {i: grown for i, grown in found.items() if grown is not None}
        return folding.wider(model, [copies], {i: grown.kept for i, grown in copies.items()})
