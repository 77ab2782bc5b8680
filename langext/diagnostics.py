"""What a method's gates do on held-out text, layer by layer."""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from langext.modeling import LiveModel


class Observer:
    """Called after each forward pass with the (B, T) mask of tokens that count; adds up the method's diagnostics."""

    def __init__(self, live: "LiveModel"):
        self.live = live
        self.sums: dict[str, torch.Tensor] = {}
        self.tokens, self.closed = 0, 0

    def __call__(self, mask_BT: torch.Tensor) -> None:
        """Add up the diagnostics of the last forward pass over the tokens that `mask_BT` marks."""
        if self.live.method is None:
            return
        found = self.live.method.diagnostics(self.live.net)
        for name, values_LBT in found.items():
            total_L = (values_LBT * mask_BT).sum((1, 2)).cpu()
            self.sums[name] = self.sums.get(name, torch.zeros_like(total_L)) + total_L
        if "open" in found:
            self.closed += int(((found["open"].sum(0) == 0) & mask_BT).sum())
        self.tokens += int(mask_BT.sum())

    def layers(self) -> dict[str, Any]:
        """Mean of each diagnostic per layer, and `all_closed`, the share of tokens whose gates are closed in every layer."""
        means: dict[str, Any] = {name: (total / self.tokens).tolist() for name, total in self.sums.items()}
        if "open" in means:
            means["all_closed"] = self.closed / self.tokens
        return means
