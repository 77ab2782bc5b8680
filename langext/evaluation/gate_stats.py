"""Statistics of a model's gates on text, layer by layer. Shapes: L layers, B sequences, T tokens."""

from typing import Any

import torch

from langext.architectures import vocabulary
from langext.evaluation.open_gates import Opened, as_base
from langext.methods import extension
from langext.methods.extended import LiveModel
from langext.methods.gates import GATES
from langext.methods.residue import Residue


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
            opened_LBT = diagnostics["open"] > 0
            self.as_base += int((as_base(opened_LBT) & mask_BT).sum())
            self.own += int((~opened_LBT.any(0) & mask_BT).sum())
        self.tokens += int(mask_BT.sum())

    def closed(self) -> float:
        """Share of the tokens whose own gates are all closed, whatever attention brings from tokens before them."""
        return self.own / self.tokens

    def figures(self) -> dict[str, Any]:
        """Means of the diagnostics per layer, `closed`, and `as_base`: share of tokens computed exactly as by the base.

        `open`, `closed` and `as_base` are left out where they have no meaning: for gates that never close, and `as_base` also
        for models with new tokens.
        """
        means: dict[str, Any] = {name: (total / self.tokens).tolist() for name, total in self.sums.items()}
        if not _closes(self.live):
            means.pop("open", None)  # for these gates `open` only means above one half
            return means
        means["closed"] = self.closed()
        if not self.more_tokens:
            means["as_base"] = self.as_base / self.tokens
        return means


def _closes(live: LiveModel) -> bool:
    """True when the gate is exactly zero, with no gradient, for some of its inputs."""
    gate = live.method.block_gate if live.method else None
    return gate is not None and GATES[gate].closes


def opened(net: Any, earlier: int = 0) -> Opened:
    """The reader of the open gates of an extended model, without its first `earlier` extensions."""
    added = [module for module in extension.extensions(net) if module.stack >= earlier]
    blocks = [module for module in added if isinstance(module, Residue) and GATES[module.gate].closes]

    def read(num_passages: int, num_tokens: int) -> torch.Tensor | None:
        if not added or len(blocks) < len(added):  # what has no gate, or one that never closes, is at work on every token
            return None
        open_LBT = torch.zeros(net.config.num_hidden_layers, num_passages, num_tokens, dtype=torch.bool)
        for block in blocks:
            assert block.gate_BT is not None, "there was a forward pass"
            open_LBT[block.layer] |= (block.gate_BT != 0).cpu()
        return open_LBT

    return read
