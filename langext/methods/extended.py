"""A base model with its extensions in memory: which of its parameters learn, and how to save and load them.

Rule: a delta (the saved form of an extension) holds the parameters that learn and those of the extension that are constant
(rows and thresholds of calibrated gates), and nothing else.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from langext.architectures import vocabulary
from langext.errors import ConfigError, reading
from langext.methods.base import Method
from tokenizer_tools.vocabulary import next_id

DELTA = "delta.safetensors"


@dataclass(frozen=True)
class Earlier:
    """An extension that an earlier run added to the base, for another language."""

    method: Method
    delta: Path
    """File with the parameters of the earlier run's extension."""
    language: str


@dataclass
class LiveModel:
    """A model in memory, with all that is needed to use, train and save it."""

    net: Any
    """A causal language model of transformers. Typed Any, because the types in transformers are too loose for a checker."""
    tokenizer: Any
    """A tokenizer of transformers."""
    methods: tuple[Method, ...] = ()
    """The methods of all extensions, in the order in which they were added. Only the last one learns. () for a bare base."""
    base_names: frozenset[str] = frozenset()
    """Names of the parameters that the base already has."""
    fixed: frozenset[str] = frozenset()
    """Names of parameters that never learn: those of earlier extensions and, if there are any, of the base."""

    @property
    def method(self) -> Method | None:
        """The method of the newest extension; None for a bare base."""
        return self.methods[-1] if self.methods else None

    def trainable(self, name: str) -> bool:
        """True if the parameter with this name learns."""
        if self.method is None or name in self.fixed:
            return False
        return name.endswith(vocabulary.NEW_ROWS) or self.method.trainable(name, self.net.config)

    def constant(self, name: str) -> bool:
        """True if the parameter with this name is part of the newest extension but does not learn."""
        return self.method is not None and name not in self.fixed and self.method.constant(name)

    @property
    def had_rows(self) -> bool:
        """True if the vocabulary has new rows that came with an earlier extension: the newest one then adds none."""
        return any(name.endswith(vocabulary.NEW_ROWS) for name in self.fixed)

    def freeze(self) -> None:
        """Make the trainable parameters require gradients, and all others not."""
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(self.trainable(name))

    def learning(self) -> dict[str, nn.Parameter]:
        """Name -> trainable parameter. Tied parameters appear once, under the name that comes first."""
        return {n: p for n, p in self.net.named_parameters() if self.trainable(n)}

    def held(self) -> dict[str, nn.Parameter]:
        """Name -> parameter that a delta holds: those that learn, and the constants of the newest extension."""
        return {n: p for n, p in self.net.named_parameters() if self.trainable(n) or self.constant(n)}

    def delta(self) -> dict[str, Tensor]:
        """Name -> present value of every parameter that a delta holds, without gradients. Not a copy: training changes it."""
        return {n: p.detach() for n, p in self.held().items()}


def build(
    net: Any,
    tokenizer: Any,
    method: Method | None,
    num_new: int | Collection[int] = 0,
    earlier: Sequence[Earlier] = (),
    *,
    padded: bool = True,
) -> LiveModel:
    """Extend a base in place, and return it as a LiveModel.

    Adds, in this order: rows for the last `num_new` tokens of the tokenizer, or for those with these ids, the earlier
    extensions with the values of their deltas, and the modules of `method` (None adds none). `padded` is as of
    `vocabulary.extend`. Raises ConfigError if an earlier delta does not fit.
    """
    # Taken first: everything that is added below is not the base's.
    base_names = frozenset(name for name, _ in net.named_parameters())
    if num_new:
        end = next_id(tokenizer)
        first, slots = vocabulary.places(range(end - num_new, end) if isinstance(num_new, int) else num_new, end)
        vocabulary.extend(net, first, end - first + len(slots), slots, padded=padded)
    fixed: set[str] = set()
    for extension in earlier:
        extension.method.extend(net)
        fixed |= _put(net, dict(net.named_parameters()), _read(extension.delta), extension.delta)
    # Earlier extensions were trained on this base, so it must not change, even if the method would train it.
    if earlier:
        fixed |= {name for name, _ in net.named_parameters() if not name.endswith(vocabulary.NEW_ROWS)}
    if method is not None:
        method.extend(net)
    methods = (*(e.method for e in earlier), *([method] if method else []))
    live = LiveModel(net, tokenizer, methods, base_names, frozenset(fixed))
    live.freeze()
    return live


def load_delta(live: LiveModel, path: Path) -> None:
    """Copy a saved delta into the live model. A parameter of the base that is not in the delta keeps its value.

    Raises ConfigError if a name or a shape does not fit the model, or if a parameter that the base lacks is not in the delta.
    """
    saved, wanted = _read(path), live.held()
    # Only parameters of the base may be missing: stage extend leaves them out of its delta, because they have not changed yet.
    if odd := sorted(saved.keys() - wanted.keys()):
        raise ConfigError(f"{path}: holds other parameters than the method makes, for example {odd[0]}")
    if lacking := sorted(wanted.keys() - saved.keys() - live.base_names):
        raise ConfigError(f"{path}: lacks parameters that the method makes, for example {lacking[0]}")
    _put(live.net, wanted, saved, path)


def _read(path: Path) -> dict[str, Tensor]:
    with reading(path, "safetensors"):
        return load_file(path)


def set_delta(live: LiveModel, delta: Mapping[str, Tensor]) -> None:
    """Copy these values into the parameters that a delta of the live model holds; it may be some or all of them.

    Raises ConfigError if a name or a shape does not fit.
    """
    _put(live.net, live.held(), delta, Path(DELTA))


@torch.no_grad()
def _put(net: Any, into: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: Path) -> set[str]:
    """Copy saved tensors into the parameters `into` of the net, and return their names.

    A parameter on the meta device has no memory to copy to, so a frozen parameter made of the saved tensor replaces it.
    """
    become: dict[Tensor, nn.Parameter] = {}
    for name, tensor in saved.items():
        if name not in into or tensor.shape != into[name].shape:
            has = tuple(into[name].shape) if name in into else "no such parameter"
            raise ConfigError(f"{path}: {name} is {tuple(tensor.shape)}, the model has {has}")
        if into[name].is_meta:
            become[into[name]] = nn.Parameter(tensor, requires_grad=False)
        else:
            into[name].copy_(tensor)
    replace_parameters(net, become)
    return set(saved)


def replace_parameters(net: Any, become: Mapping[Tensor, nn.Parameter]) -> None:
    """Replace every key of `become` by its value, in all modules of the net that hold it."""
    for module in net.modules():
        # Duplicates are kept, because a tied parameter must be replaced in each module that holds it.
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter in become:
                setattr(module, name, become[parameter])
