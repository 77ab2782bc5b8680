"""Local sparsity: the L1 norm of what an extension adds on original-language tokens, https://arxiv.org/abs/2410.02744."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from langext.methods.penalties.base import Penalty, Portion, Term
from langext.spec import ConfigError


def value(modules: Sequence[Any], portion: Portion) -> Tensor:
    """Contribution to the mean over modules and original-language tokens of |what the module adds|_1 / D."""
    return torch.stack([portion.original_mean(module.size()) for module in modules]).mean()


class Local(Penalty):
    """Keep what the method adds near zero on original-language text."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.02744"
    name: Literal["local"]
    weight: float = Field(0.01, gt=0)
    """The paper's alpha. Raise it for less forgetting and less learning."""

    def check(self, method: Any) -> None:
        """Something has to be added."""
        super().check(method)
        if not method.reversible:
            raise ConfigError(f"local: {method.name} changes the base itself, there is nothing added to keep small; use ldifs")

    def attach(self, net: Any, method: Any, reference: Callable[[], Any]) -> Term:
        """Watch the extension's modules."""
        modules = method.extensions(net)
        for module in modules:
            module.watched = True
        return lambda portion, ids, positions: value(modules, portion)
