"""What the gates of a model do on text, layer by layer."""

from typing import Any

import torch

from langext.architectures import vocabulary
from langext.methods.extended import LiveModel
from langext.methods.gates import GATES


class Observer:
    """Called after each forward pass with the (B, T) mask of tokens that count; adds up the method's diagnostics."""

    def __init__(self, live: "LiveModel"):
        self.live = live
        self.sums: dict[str, torch.Tensor] = {}
        self.tokens, self.as_base = 0, 0
        self.more_tokens = isinstance(live.net.get_output_embeddings(), vocabulary.ExtendedHead)  # they share in every softmax

    def __call__(self, mask_BT: torch.Tensor) -> None:
        """Add up the diagnostics of the last forward pass over the tokens that `mask_BT` marks."""
        if self.live.method is None:
            return
        found = self.live.method.diagnostics(self.live.net)
        for name, values_LBT in found.items():
            total_L = (values_LBT * mask_BT).sum((1, 2)).cpu()
            self.sums[name] = self.sums.get(name, torch.zeros_like(total_L)) + total_L
        if "open" in found:
            self.as_base += int((_as_base(found["open"]) & mask_BT).sum())
        self.tokens += int(mask_BT.sum())

    def layers(self) -> dict[str, Any]:
        """Mean of each diagnostic per layer, and `all_closed`, the share of tokens computed exactly as the base does."""
        means: dict[str, Any] = {name: (total / self.tokens).tolist() for name, total in self.sums.items()}
        if not _closes(self.live):
            means.pop("open", None)  # above one half is not open or closed
        elif not self.more_tokens:
            means["all_closed"] = self.as_base / self.tokens
        return means


def _as_base(open_LBT: torch.Tensor) -> torch.Tensor:
    """(B, T) tokens that no open gate has reached: none of their own, and, through the attention of the layers above it, none
    of a token before them.
    """
    opened_LBT = open_LBT > 0
    reached_BT = opened_LBT[:-1].any(0).cumsum(1) > 0
    return ~(reached_BT | opened_LBT[-1])


def _closes(live: LiveModel) -> bool:
    """Is the gate exactly zero, and without a gradient, for a part of its inputs?"""
    gate = live.method.block_gate if live.method else None
    return gate is not None and GATES[gate].closes
