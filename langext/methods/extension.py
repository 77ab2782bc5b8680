"""What a method adds to a model, as modules that can be switched off and watched.

Every added module derives from `Extension`, is reached through a forward hook of a base module, and owns the new parameters:
no parameter of the base changes its name. Shapes: B sequences, T tokens, D model width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Extension(nn.Module):
    """Base of the added modules."""

    def __init__(self, stack: int):
        super().__init__()
        self.stack = stack
        """0 for the first extension of the model, 1 for the one added after it, and so on."""
        self.on = True
        """While False the base module computes as if this were not there."""
        self.watched = False
        """Keep the size of what is added, for a penalty?"""
        self.added_BT: Tensor | None = None
        """Mean absolute value over D of what the last forward pass added, with its graph."""

    def hang(self, module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False) -> None:
        """Let `hook` run after `module`'s forward pass while this is switched on."""

        def switched(*given: Any) -> Any:
            return hook(*given) if self.on else None

        module.register_forward_hook(switched, with_kwargs=with_kwargs)

    def note(self, added_BTD: Tensor) -> None:
        """Keep the size of what is added, if anybody wants it."""
        if self.watched:
            self.added_BT = added_BTD.abs().mean(-1, dtype=torch.float32)  # no copy in float32 is kept for the backward pass

    def size(self) -> Tensor:
        """(B, T) `added_BT`. Raises RuntimeError when no gradient can reach it: it would be a penalty without effect."""
        if self.added_BT is None:
            raise RuntimeError("the model has not run since this extension is watched")
        if torch.is_grad_enabled() and not self.added_BT.requires_grad:
            raise RuntimeError(
                "what the extension added carries no graph: reentrant activation checkpointing hides it from the penalty; "
                "use the non-reentrant one"
            )
        return self.added_BT


def extensions(model: Any) -> list[Extension]:
    """All added modules, in the order of the model."""
    return [module for module in model.modules() if isinstance(module, Extension)]


def newest(model: Any) -> list[Extension]:
    """The modules that were added last; [] for a base."""
    found = extensions(model)
    top = max((module.stack for module in found), default=0)
    return [module for module in found if module.stack == top]


def next_stack(model: Any) -> int:
    """The number that the next extension gets."""
    return max((module.stack for module in extensions(model)), default=-1) + 1


@contextmanager
def switched_off(modules: list[Extension]) -> Iterator[None]:
    """Within it the model computes what it did before these modules were added."""
    for module in modules:
        module.on = False
    try:
        yield
    finally:
        for module in modules:
            module.on = True
