"""The vanilla adapter: the block of neutral residues without a gate and without a local loss.

The baseline of https://arxiv.org/abs/2410.02744, which calls it "adapters"; parallel to the feed-forward network.
"""

from typing import ClassVar, Literal

from langext.methods.residue import Parallel


class Adapter(Parallel):
    """Blocks beside the feed-forward networks that are always open."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.02744"
    name: Literal["adapter"]
    gate: Literal["none"] = "none"
    """There is none: the blocks are always open."""
