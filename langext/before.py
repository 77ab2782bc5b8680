"""The model that a run began with, beside the one that it made."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langext import modeling
from langext.artifacts import BASE, Model

if TYPE_CHECKING:
    from langext.methods.extended import LiveModel


@dataclass(frozen=True)
class Before:
    """That model; it may be the net of the extended one, switched off."""

    net: Any
    tokenizer: Any
    as_itself: Callable[[], AbstractContextManager[None]] = nullcontext
    """Within it `net` is this model."""


def of(model: Model, live: "LiveModel") -> Before:
    """What the extended `model` was before. `live` is that model: its own net serves where the extension can be switched off
    and has brought no tokens; otherwise the other one is loaded beside it, in the same precision on the same device.
    """
    base, method = Model(model.path.parent / BASE), live.method
    no_tokens = len(modeling.new_tokens(base)) == len(modeling.new_tokens(model))
    if method is not None and method.reversible and no_tokens:
        return Before(live.net, live.tokenizer, lambda: method.off(live.net))
    found = modeling.load(base, live.net.dtype, str(live.net.device))
    return Before(found.net, found.tokenizer)
