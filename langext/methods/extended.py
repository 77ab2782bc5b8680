"""A base model with the extensions of one or several methods, in memory: what learns in it, and its delta.

A delta holds the trainable parameters and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from langext.architectures import vocabulary
from langext.methods.base import Method
from langext.spec import ConfigError

DELTA = "delta.safetensors"


@dataclass(frozen=True)
class Earlier:
    """An extension that the base came with: another language, learnt before."""

    method: Method
    delta: Path
    language: str


@dataclass
class LiveModel:
    """A model in memory with what is needed to use and save it."""

    net: Any
    """A transformers causal language model; Any, because its classes are typed too loosely to check against."""
    tokenizer: Any
    """A transformers tokenizer."""
    methods: tuple[Method, ...] = ()
    """Of all extensions, the first added first; only the last one's parameters learn. () for the untouched base."""
    base_names: frozenset[str] = frozenset()
    """Parameters that the base has too."""
    fixed: frozenset[str] = frozenset()
    """Parameters of earlier extensions and of the base below them: they never learn."""

    @property
    def method(self) -> Method | None:
        """The newest extension's method; None for the untouched base."""
        return self.methods[-1] if self.methods else None

    def trainable(self, name: str) -> bool:
        """Does the parameter of this name learn?"""
        if self.method is None or name in self.fixed:
            return False
        return name.endswith(vocabulary.NEW_ROWS) or self.method.trainable(name, self.net.config)

    def freeze(self) -> None:
        """Let exactly the trainable parameters require gradients."""
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(self.trainable(name))

    def learning(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name. A tied pair appears once, under the name that comes first."""
        return {n: p for n, p in self.net.named_parameters() if self.trainable(n)}

    def delta(self) -> dict[str, Tensor]:
        """Their values."""
        return {n: p.detach() for n, p in self.learning().items()}


def build(net: Any, tokenizer: Any, method: Method | None, num_new: int = 0, earlier: Sequence[Earlier] = ()) -> LiveModel:
    """Extend a base in place: room for the tokenizer's `num_new` last tokens, earlier extensions, then the method's modules."""
    base_names = frozenset(name for name, _ in net.named_parameters())
    if num_new:
        vocabulary.extend(net, first_new=len(tokenizer) - num_new, num_new=num_new)
    fixed: set[str] = set()
    for extension in earlier:
        extension.method.extend(net)
        fixed |= _put(net, dict(net.named_parameters()), load_file(extension.delta), extension.delta)
    if earlier:
        fixed |= {name for name, _ in net.named_parameters() if not name.endswith(vocabulary.NEW_ROWS)}
    if method is not None:
        method.extend(net)
    methods = (*(e.method for e in earlier), *([method] if method else []))
    live = LiveModel(net, tokenizer, methods, base_names, frozenset(fixed))
    live.freeze()
    return live


def load_delta(live: LiveModel, path: Path) -> None:
    """Copy a saved delta into the live model; what it leaves out keeps the base's value.

    Raises ConfigError when names or shapes are not the model's own.
    """
    saved, wanted = load_file(path), live.learning()
    odd = sorted((saved.keys() - wanted.keys()) | (wanted.keys() - saved.keys() - live.base_names))
    if odd:
        raise ConfigError(f"{path}: holds other parameters than the method makes, for example {odd[0]}")
    _put(live.net, wanted, saved, path)


def set_delta(live: LiveModel, delta: Mapping[str, Tensor]) -> None:
    """Give the live model other values for (some of) what it learns."""
    _put(live.net, live.learning(), delta, Path(DELTA))


@torch.no_grad()
def _put(net: Any, into: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: Path) -> set[str]:
    """Copy saved tensors into parameters of the net; those on the meta device become the saved ones."""
    become: dict[Tensor, nn.Parameter] = {}
    for name, tensor in saved.items():
        if name not in into or tensor.shape != into[name].shape:
            has = tuple(into[name].shape) if name in into else "no such parameter"
            raise ConfigError(f"{path}: {name} is {tuple(tensor.shape)}, the model has {has}")
        if into[name].is_meta:
            become[into[name]] = nn.Parameter(tensor, requires_grad=False)
        else:
            into[name].copy_(tensor)
    _replace(net, become)
    return set(saved)


def _replace(net: Any, become: Mapping[Tensor, nn.Parameter]) -> None:
    """Put other parameters in the places of these, wherever the net refers to them."""
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter in become:
                setattr(module, name, become[parameter])
