"""Domain cross-entropy: the gates as classifiers of new against original language, https://arxiv.org/abs/2410.02744."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from langext.methods.gates import GATES
from langext.methods.penalties.base import Penalty, Portion, Term
from langext.spec import ConfigError


def value(modules: Sequence[Any], portion: Portion) -> Tensor:
    """Contribution to the mean over gates and tokens of the cross-entropy of sigmoid(z): 1 for new, 0 for original."""
    is_new_BT = (~portion.original_BT).float()
    each = []
    for module in modules:
        if torch.is_grad_enabled() and not module.z_BT.requires_grad:
            raise RuntimeError("the gates carry no graph: use non-reentrant activation checkpointing")
        each.append(portion.mean(F.binary_cross_entropy_with_logits(module.z_BT, is_new_BT, reduction="none")))
    return torch.stack(each).mean()


class DomainCE(Penalty):
    """Teach the gates to tell the new language from the original ones."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.02744"
    name: Literal["domain_ce"]
    weight: float = Field(0.01, gt=0)
    """Raise it for gates that separate the languages more sharply."""

    def check(self, method: Any) -> None:
        """Only a sigmoid is a probability."""
        super().check(method)
        gate = method.block_gate
        if gate is None or not GATES[gate].is_probability:
            probable = " or ".join(name for name, gate in GATES.items() if gate.is_probability)
            has = f"{method.name} with gate {gate}" if gate else method.name
            raise ConfigError(f"domain_ce needs neutral_residues with gate {probable}; this is {has}")

    def attach(self, net: Any, method: Any, reference: Callable[[], Any]) -> Term:
        """Watch the gates."""
        modules = method.extensions(net)
        for module in modules:
            module.watched = True
        return lambda portion, ids, positions: value(modules, portion)
