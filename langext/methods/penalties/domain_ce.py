"""Domain cross-entropy: train the gates to classify tokens as new or original language, https://arxiv.org/abs/2410.02744."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from langext.errors import ConfigError
from langext.methods.gates import GATES
from langext.methods.penalties.base import MicroBatch, Penalty, Term


def value(modules: Sequence[Any], micro_batch: MicroBatch) -> Tensor:
    """The micro-batch's part of the mean, over gates and tokens, of the binary cross-entropy of sigmoid(z), a scalar in nats.

    The target is 1 for the new language and 0 for an original one. The modules must be watched. Raises RuntimeError if a z has
    no gradients, because the penalty would then have no effect.
    """
    is_new_BT = (~micro_batch.original_BT).float()
    each = []
    for module in modules:
        if torch.is_grad_enabled() and not module.z_BT.requires_grad:
            raise RuntimeError("the gates carry no graph: use non-reentrant activation checkpointing")
        each.append(micro_batch.mean(F.binary_cross_entropy_with_logits(module.z_BT, is_new_BT, reduction="none")))
    return torch.stack(each).mean()


class DomainCE(Penalty):
    """Trains the gates to tell the new language from the original ones."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.02744"
    name: Literal["domain_ce"]
    weight: float = Field(0.01, gt=0)
    """Factor of the term in the loss. Raise it for gates that separate the languages more sharply."""

    def check(self, method: Any) -> None:
        """Raise ConfigError unless the method has gates made of a sigmoid: only these are probabilities."""
        super().check(method)
        gate = method.block_gate
        if gate is None or not GATES[gate].is_probability:
            probable = " or ".join(name for name, gate in GATES.items() if gate.is_probability)
            has = f"{method.name} with gate {gate}" if gate else method.name
            raise ConfigError(f"domain_ce needs neutral_residues with gate {probable}; this is {has}")

    def attach(self, net: Any, method: Any, reference: Callable[[], Any]) -> Term:
        """The term; makes the gates keep the values that it reads."""
        modules = method.extensions(net)
        for module in modules:
            module.watched = True
        return lambda micro_batch, ids, positions: value(modules, micro_batch)
