"""The modules that methods add to a model. They can be switched off, and the size of what they add can be recorded.

Rule: no parameter of the base changes its name. So every added module derives from `Extension`, owns its new parameters, and
runs in a forward hook of a base module. Shapes: B sequences, T tokens, D model width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Extension(nn.Module):
    """Base class of all modules that a method adds."""

    def __init__(self, stack: int):
        super().__init__()
        self.stack = stack
        """Number of the extension that this module is part of: 0 for the model's first extension, 1 for the next, and so on."""
        self.on = True
        """While this is False, the base module computes as if the extension did not exist."""
        self.watched = False
        """True if the size of what is added is to be kept, for a penalty."""
        self.added_BT: Tensor | None = None
        """(B, T) mean over D of the absolute value of what the last forward pass added, with gradients."""

    def hang(self, module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False) -> None:
        """Register `hook` to run after each forward pass of `module`, while this extension is switched on."""

        def switched(*given: Any) -> Any:
            return hook(*given) if self.on else None

        module.register_forward_hook(switched, with_kwargs=with_kwargs)

    def note(self, added_BTD: Tensor) -> None:
        """Store the size of what is added, if the extension is `watched`."""
        if self.watched:
            self.added_BT = added_BTD.abs().mean(-1, dtype=torch.float32)  # no copy in float32 is kept for the backward pass

    def size(self) -> Tensor:
        """`added_BT` of the last forward pass.

        Raises RuntimeError if there was no forward pass, or if it has no gradients: a penalty on it would have no effect.
        """
        if self.added_BT is None:
            raise RuntimeError("the model has not run since this extension is watched")
        if torch.is_grad_enabled() and not self.added_BT.requires_grad:
            raise RuntimeError(
                "what the extension added carries no graph: reentrant activation checkpointing hides it from the penalty; "
                "use the non-reentrant one"
            )
        return self.added_BT


def extensions(model: Any) -> list[Extension]:
    """All added modules, in the order of `model.modules()`."""
    return [module for module in model.modules() if isinstance(module, Extension)]


def newest(model: Any) -> list[Extension]:
    """The modules of the newest extension; [] for a bare base."""
    added = extensions(model)
    top = max((module.stack for module in added), default=0)
    return [module for module in added if module.stack == top]


def next_stack(model: Any) -> int:
    """The `stack` number for the next extension of the model."""
    return max((module.stack for module in extensions(model)), default=-1) + 1


@contextmanager
def switched_off(modules: list[Extension]) -> Iterator[None]:
    """A context in which the model computes what it computed before these modules were added."""
    for module in modules:
        module.on = False
    try:
        yield
    finally:
        for module in modules:
            module.on = True
