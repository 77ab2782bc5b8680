"""What a penalty may know about the step that it is part of.

A step's penalty is the sum of what its micro-batches contribute, over all processes: so it depends neither on how a batch is
cut nor on how many processes share it. Shapes: B sequences, T tokens in each.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Portion:
    """One micro-batch's part of an optimizer step."""

    original_BT: Tensor
    """Which tokens are of an original language; the others are of the new one."""
    num_original: int
    """Original-language tokens in the whole step."""
    num_tokens: int
    """Tokens in the whole step."""
    done: float
    """Share of the training's steps that lie behind, in [0, 1)."""

    def original_mean(self, values_BT: Tensor) -> Tensor:
        """This part's contribution to the mean over the step's original-language tokens."""
        return (values_BT * self.original_BT).sum() / max(1, self.num_original)

    def mean(self, values_BT: Tensor) -> Tensor:
        """This part's contribution to the mean over all tokens of the step."""
        return values_BT.sum() / self.num_tokens

    def once(self, value: Tensor) -> Tensor:
        """This part's contribution to a value that does not depend on tokens."""
        return value * (self.original_BT.numel() / self.num_tokens)
