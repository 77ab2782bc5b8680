"""LDIFS: the squared distance in feature space to the model before training, https://arxiv.org/abs/2308.13320.

Features are taken after the embedding and after 1/4, 2/4, 3/4 and 4/4 of the layers: five slices. The vector of each token is
divided by its L2 norm. The squared differences are summed over the width and averaged over original-language tokens and slices,
so one token contributes 2 (1 - cos), a number in [0, 4]. The paper's code divides by the norm over the token axis instead; a
weight of 0.2 here corresponds to its alpha = 10 with 50 tokens.

Shapes: S slices, B sequences, T tokens, D model width.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from langext.architectures import families
from langext.methods.penalties.base import MicroBatch, Penalty, Term

QUARTERS = 4


class Features:
    """Keeps the five slices of a model's last forward pass, by forward hooks."""

    def __init__(self, net: Any):
        self.slices: dict[int, Tensor] = {}
        blocks = families.blocks(net)
        # -(-n // 4) rounds up, so that every slice comes after at least one layer, also in a model with fewer than four.
        ends = [net.get_input_embeddings(), *(blocks[-(-len(blocks) * q // QUARTERS) - 1] for q in range(1, QUARTERS + 1))]
        for k, module in enumerate(ends):
            module.register_forward_hook(lambda _, __, output, k=k: self._keep(k, output))

    def _keep(self, k: int, output: Any) -> None:
        self.slices[k] = output[0] if isinstance(output, tuple) else output

    def take(self) -> list[Tensor]:
        """The five slices, each (B, T, D). They are removed from this object, so that it holds no memory afterwards.

        Raises RuntimeError if the model has not run since they were taken.
        """
        if len(self.slices) <= QUARTERS:
            raise RuntimeError("the model has not run since its features were taken")
        taken = [self.slices[k] for k in range(QUARTERS + 1)]
        self.slices = {}
        return taken


def distance(features: list[Tensor], reference: list[Tensor]) -> Tensor:
    """(B, T) squared distance between unit vectors, in float32, averaged over slices. Both lists hold (B, T, D) slices."""
    each = []
    for ours, theirs in zip(features, reference, strict=True):
        unit_ours, unit_theirs = (F.normalize(x.float(), dim=-1, eps=1e-10) for x in (ours, theirs))
        each.append((unit_ours - unit_theirs).square().sum(-1))
    return torch.stack(each).mean(0)


class LDIFS(Penalty):
    """Keeps the features of original-language text near those of the model before training."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2308.13320"
    name: Literal["ldifs"]
    reads_states: ClassVar[bool] = True
    reads_weights: ClassVar[bool] = True
    weight: float = Field(0.2, gt=0)
    """Factor of the term in the loss. Raise it for less forgetting and less learning."""

    def attach(self, net: Any, method: Any, reference: Callable[[], Any]) -> Term:
        """The term. The reference is the net with its extension switched off or, if the base learns, a frozen copy."""
        ours = Features(net)
        frozen = None if method.reversible else reference()
        theirs = ours if frozen is None else Features(frozen)

        def base_features(inputs: dict[str, Any]) -> list[Tensor]:
            training = net.training
            with torch.no_grad():
                if frozen is None:
                    with method.off(net):
                        net.eval().base_model(**inputs)
                    net.train(training)
                else:
                    frozen.base_model(**inputs)
            return theirs.take()

        def term(micro_batch: MicroBatch, input_ids_BT: Tensor, position_ids_BT: Tensor) -> Tensor:
            now = ours.take()  # taken first: without a frozen copy, the reference pass overwrites the slices of `ours`
            # The last slice follows everything that learns, so it must have gradients; earlier ones may come before all of it.
            if torch.is_grad_enabled() and not now[-1].requires_grad:
                raise RuntimeError("the features carry no graph: use non-reentrant activation checkpointing")
            rows = micro_batch.original_BT.any(1)
            if not rows.any():
                return now[0].new_zeros((), dtype=torch.float32)
            # Only sequences with original-language tokens count, so only they run through the reference.
            inputs = {"input_ids": input_ids_BT[rows], "position_ids": position_ids_BT[rows], "use_cache": False}
            part = replace(micro_batch, original_BT=micro_batch.original_BT[rows])
            return part.original_mean(distance([slice_BTD[rows] for slice_BTD in now], base_features(inputs)))

        return term
