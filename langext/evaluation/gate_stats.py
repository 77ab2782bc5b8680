"""Statistics of a model's gates on text, layer by layer. Shapes: L layers, B sequences, T tokens."""

from typing import Any

import torch

from langext.architectures import vocabulary
from langext.methods.extended import LiveModel
from langext.methods.gates import GATES


class Observer:
    """Adds up the method's diagnostics. Call it after each forward pass with the (B, T) mask of the tokens that count."""

    def __init__(self, live: "LiveModel"):
        self.live = live
        self.sums: dict[str, torch.Tensor] = {}
        self.tokens, self.as_base, self.own = 0, 0, 0
        self.more_tokens = isinstance(live.net.get_output_embeddings(), vocabulary.ExtendedHead)  # they change every softmax

    def __call__(self, mask_BT: torch.Tensor) -> None:
        """Add up the diagnostics of the last forward pass over the tokens that `mask_BT` marks."""
        if self.live.method is None:
            return
        diagnostics = self.live.method.diagnostics(self.live.net)
        for name, values_LBT in diagnostics.items():
            total_L = (values_LBT * mask_BT).sum((1, 2)).cpu()
            self.sums[name] = self.sums.get(name, torch.zeros_like(total_L)) + total_L
        if "open" in diagnostics:
            self.as_base += int((_as_base(diagnostics["open"]) & mask_BT).sum())
            self.own += int(((diagnostics["open"] == 0).all(0) & mask_BT).sum())
        self.tokens += int(mask_BT.sum())

    def own_closed(self) -> float:
        """Share of the tokens whose own gates are all closed, whatever attention brings from tokens before them."""
        return self.own / self.tokens

    def layers(self) -> dict[str, Any]:
        """Mean of each diagnostic per layer, and `all_closed`: the share of tokens that are computed exactly as in the base.

        `open` and `all_closed` are left out where they have no meaning: for gates that never close, and `all_closed` also for
        models with new tokens.
        """
        means: dict[str, Any] = {name: (total / self.tokens).tolist() for name, total in self.sums.items()}
        if not _closes(self.live):
            means.pop("open", None)  # for these gates `open` only means above one half
        elif not self.more_tokens:
            means["all_closed"] = self.as_base / self.tokens
        return means


def _as_base(open_LBT: torch.Tensor) -> torch.Tensor:
    """(B, T) True for tokens that no open gate has influenced.

    A token is influenced by its own open gates, and by open gates of earlier tokens: attention in the layers above carries
    them on. Above the last layer there is no attention, so an open gate there influences only its own token.
    """
    opened_LBT = open_LBT > 0
    reached_BT = opened_LBT[:-1].any(0).cumsum(1) > 0
    return ~(reached_BT | opened_LBT[-1])


def _closes(live: LiveModel) -> bool:
    """True when the gate is exactly zero, with no gradient, for some of its inputs."""
    gate = live.method.block_gate if live.method else None
    return gate is not None and GATES[gate].closes
