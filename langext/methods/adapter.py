"""The vanilla adapter: the block of neutral residues without a gate and without a local loss.

It is the baseline that https://arxiv.org/abs/2410.02744 calls "adapters". It runs in parallel to the feed-forward network.
"""

from typing import ClassVar, Literal

from langext.methods.residue import Parallel


class Adapter(Parallel):
    """Blocks beside the feed-forward networks whose output is always added in full."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.02744"
    name: Literal["adapter"]
    gate: Literal["none"] = "none"
    """There is no gate: the blocks are always open."""
