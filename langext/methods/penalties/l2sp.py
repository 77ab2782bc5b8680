"""L2-SP: the squared distance between the weights and their starting values, https://arxiv.org/abs/1802.01483."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from langext.methods.penalties.base import MicroBatch, Penalty, Term


class L2SP(Penalty):
    """Keeps the weights that learn near their starting values. A copy of these values stays in memory."""

    paper: ClassVar[str] = "https://arxiv.org/abs/1802.01483"
    name: Literal["l2sp"]
    needs_original: ClassVar[bool] = False
    reads_weights: ClassVar[bool] = True
    weight: float = Field(0.1, gt=0)
    """The term is weight / 2 times the sum of squared differences of all weights that learn. Raise it for less forgetting and
    less learning. In bf16 the rounded weights are compared: a change too small for bf16 costs nothing."""

    def attach(self, net: Any, method: Any, reference: Callable[[], Any]) -> Term:
        """The term; copies the present weights as starting values."""
        learning = [p for p in net.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in learning]

        def term(micro_batch: MicroBatch, input_ids_BT: Tensor, position_ids_BT: Tensor) -> Tensor:
            squares = [(p - p0).square().sum(dtype=torch.float32) for p, p0 in zip(learning, start, strict=True)]
            return micro_batch.once(torch.stack(squares).sum() / 2)

        return term
