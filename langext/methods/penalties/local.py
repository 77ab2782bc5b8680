"""Local loss: the L1 norm of what an extension adds on original-language tokens, https://arxiv.org/abs/2410.02744."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from langext.errors import ConfigError
from langext.methods.penalties.base import MicroBatch, Penalty, Term


def value(modules: Sequence[Any], micro_batch: MicroBatch) -> Tensor:
    """The micro-batch's part of the mean, over modules and original-language tokens, of |what the module adds|_1 / D, a scalar.

    The modules must be watched. Raises RuntimeError as `Extension.size` does.
    """
    return torch.stack([micro_batch.original_mean(module.size()) for module in modules]).mean()


class Local(Penalty):
    """Keeps what the method adds near zero on original-language text."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.02744"
    name: Literal["local"]
    weight: float = Field(0.01, gt=0)
    """Factor of the term in the loss, alpha in the paper. Raise it for less forgetting and less learning."""

    def check(self, method: Any) -> None:
        """Raise ConfigError if the method adds no modules, but changes the base itself."""
        super().check(method)
        if not method.reversible:
            raise ConfigError(f"local: {method.name} changes the base itself, there is nothing added to keep small; use ldifs")

    def attach(self, net: Any, method: Any, reference: Callable[[], Any]) -> Term:
        """The term; makes the extension's modules keep the size of what they add."""
        modules = method.extensions(net)
        for module in modules:
            module.watched = True
        return lambda micro_batch, ids, positions: value(modules, micro_batch)
