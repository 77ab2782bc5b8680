"""LDIFS: squared distance in feature space to the model before training, https://arxiv.org/abs/2308.13320.

Features are taken after the embedding and after 1/4, 2/4, 3/4 and 4/4 of the layers. Each token's vector is divided by its
L2 norm, the squared differences are summed over the width and averaged over original-language tokens and the five slices: so
one token contributes 2 (1 - cos) and lies in [0, 4]. The paper's code divides over the token axis instead; a weight of 0.2 here
is its alpha = 10 on 50 tokens.

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
from langext.methods.penalties.base import Penalty, Portion, Term

QUARTERS = 4


class Features:
    """Remembers the five slices of a model's last forward pass."""

    def __init__(self, net: Any):
        self.slices: dict[int, Tensor] = {}
        blocks = families.blocks(net)
        places = [net.get_input_embeddings(), *(blocks[-(-len(blocks) * q // QUARTERS) - 1] for q in range(1, QUARTERS + 1))]
        for k, module in enumerate(places):
            module.register_forward_hook(lambda _, __, output, k=k: self._keep(k, output))

    def _keep(self, k: int, output: Any) -> None:
        self.slices[k] = output[0] if isinstance(output, tuple) else output

    def take(self) -> list[Tensor]:
        """The slices, each (B, T, D); forgotten here."""
        taken = [self.slices[k] for k in range(QUARTERS + 1)]
        self.slices = {}
        return taken


def distance(features: list[Tensor], reference: list[Tensor]) -> Tensor:
    """(B, T) squared distance of unit vectors, averaged over the slices; in float32."""
    each = []
    for ours, theirs in zip(features, reference, strict=True):
        unit_ours, unit_theirs = (F.normalize(x.float(), dim=-1, eps=1e-10) for x in (ours, theirs))
        each.append((unit_ours - unit_theirs).square().sum(-1))
    return torch.stack(each).mean(0)


class LDIFS(Penalty):
    """Keep the features of original-language text where they were."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2308.13320"
    name: Literal["ldifs"]
    reads_weights: ClassVar[bool] = True
    weight: float = Field(0.2, gt=0)
    """Raise it for less forgetting and less learning."""

    def attach(self, net: Any, method: Any, reference: Callable[[], Any]) -> Term:
        """The reference is the same weights with the extension switched off or, where the base itself learns, a frozen copy."""
        ours = Features(net)
        other = None if method.reversible else reference()
        theirs = ours if other is None else Features(other)

        def base_features(inputs: dict[str, Any]) -> list[Tensor]:
            training = net.training
            with torch.no_grad():
                if other is None:
                    with method.off(net):
                        net.eval().base_model(**inputs)
                    net.train(training)
                else:
                    other.base_model(**inputs)
            return theirs.take()

        def term(portion: Portion, input_ids_BT: Tensor, position_ids_BT: Tensor) -> Tensor:
            now = ours.take()
            rows = portion.original_BT.any(1)
            if not rows.any():
                return now[0].new_zeros((), dtype=torch.float32)
            inputs = {"input_ids": input_ids_BT[rows], "position_ids": position_ids_BT[rows], "use_cache": False}
            part = replace(portion, original_BT=portion.original_BT[rows])
            return part.original_mean(distance([slice_BTD[rows] for slice_BTD in now], base_features(inputs)))

        return term
