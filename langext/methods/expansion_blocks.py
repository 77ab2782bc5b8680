"""Expansion blocks: copies of some layers that run after them and start as the identity.

The method is LLaMA Pro, https://arxiv.org/abs/2401.02415.

At first a new block adds exactly zero: its output projections are zero (`families.silence` says how it is done for Gemma 2 and
3). Only the new blocks learn. In training, a new block runs in a forward hook of the layer before it, so that no parameter of
the base changes its name; `fold` makes it a layer like all others.
"""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from langext.architectures import families
from langext.errors import ConfigError
from langext.methods import extension
from langext.methods.base import Method
from langext.methods.extension import Extension

if TYPE_CHECKING:
    from langext.architectures.stock import Stock

ATTRIBUTE = "expansion"


class Expansion(Extension):
    """A whole decoder block that runs right after a block of the base."""

    def __init__(self, stack: int, block: nn.Module):
        super().__init__(stack)
        self.block = block

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(B, T, D) output of the block before -> (B, T, D) output of this block."""
        out = self.block(hidden, *args, **kwargs)
        if self.watched:
            self.note(out - hidden)
        return out


class ExpansionBlocks(Method):
    """Inserts new layers; only these learn."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2401.02415"
    copies: ClassVar[bool] = True
    name: Literal["expansion_blocks"]
    every: int | None = Field(None, ge=1)
    """A new block follows every this many layers. Raise it for fewer new blocks, which learn less and cost less. 4 if neither
    this nor `positions` is given."""
    positions: list[int] | None = Field(None, min_length=1)
    """Numbers of the layers, counted from 0, that a new block follows; instead of `every`."""

    @model_validator(mode="after")
    def _one_of(self) -> "ExpansionBlocks":
        if self.every is not None and self.positions is not None:
            raise ValueError("give every or positions, not both")
        if self.positions is not None and (min(self.positions) < 0 or len(set(self.positions)) < len(self.positions)):
            raise ValueError(f"positions count from 0 and occur once (got {self.positions!r:.60})")
        return self

    @property
    def reversible(self) -> bool:
        """True: the base's own layers do not change."""
        return True

    def after(self, depth: int) -> list[int]:
        """Numbers of the base's layers that a new block follows, in ascending order, for a base of `depth` layers.

        Raises ConfigError if the base has no such layer.
        """
        if self.positions is None:
            every = self.every or 4
            if every > depth:
                raise ConfigError(f"every: {every} is more than the base's {depth} layers", at=("every",))
            return [i for i in range(depth) if (i + 1) % every == 0]
        if max(self.positions) >= depth:
            raise ConfigError(
                f"positions: no layer {max(self.positions)}, the base has layers 0 to {depth - 1}", at=("positions",)
            )
        return sorted(self.positions)

    def check(self, config: Any) -> None:
        """Raise ConfigError if the base has no such layer."""
        super().check(config)
        self.after(config.num_hidden_layers)

    def extend(self, model: Any) -> None:
        """Attach a copy that adds zero to each chosen layer, and count it in the config, so that a cache has room for it."""
        self.check(model.config)
        config, blocks = model.config, families.blocks(model)
        stack, depth = extension.next_stack(model), config.num_hidden_layers
        after = self.after(depth)
        for k, i in enumerate(after):
            new: Any = copy.deepcopy(blocks[i])
            families.silence(new, config)
            _number(new, depth + k)  # the numbers below `depth` are those of the base's layers, each with its own cache
            expansion = Expansion(stack, new)
            blocks[i].add_module(ATTRIBUTE, expansion)
            expansion.hang(
                blocks[i], lambda _, args, kwargs, output, new=expansion: new(output, *args[1:], **kwargs), with_kwargs=True
            )
        if getattr(config, "layer_types", None):
            config.layer_types = [*config.layer_types, *(config.layer_types[i] for i in after)]
        config.num_hidden_layers = depth + len(after)

    def trainable(self, name: str, config: Any) -> bool:
        """True for the parameters of the new blocks; the base does not learn."""
        return f".{ATTRIBUTE}." in name

    def layer(self, name: str, config: Any) -> tuple[int, int] | None:
        """(index, depth) with the new blocks counted as layers; None for a parameter outside the layers."""
        in_base = super().layer(name, config)
        if in_base is None:
            return None
        index, depth = in_base
        after = self.after(depth)
        return index + sum(i < index for i in after) + (f".{ATTRIBUTE}." in name), depth + len(after)

    def dense(self) -> bool:
        """False: there are more layers than in the base."""
        return False

    def architecture(self, config: Any) -> str:
        """The base's own architecture, with the number of new layers."""
        more = "" if config is None else f" by {len(self.after(config.num_hidden_layers))} layers"
        return f"the base's own, deeper{more}"

    def layer_types(self, config: Any) -> list[str] | None:
        """The kinds of the base's layers, where a new block has the kind of the layer before it; None as in `Method`."""
        kinds, after = getattr(config, "layer_types", None), set(self.after(config.num_hidden_layers))
        return kinds and [kind for i, kind in enumerate(kinds) for _ in range(1 + (i in after))]

    def fold(self, model: Any) -> "Stock":
        """The base's own architecture, with the new blocks as layers in their places."""
        from langext.architectures import stock

        # `line` has the blocks in the order of the folded model, `kinds` the base's layer from which each takes its kind.
        config, line, kinds = copy.deepcopy(model.config), [], []
        block: Any
        for i, block in enumerate(families.blocks(model)):
            line.append(stock.part(block, _without_expansion))
            if hasattr(block, ATTRIBUTE):
                line.append(stock.part(block.expansion.block))
            kinds += [i] * (len(line) - len(kinds))
        if known := getattr(config, "layer_types", None):
            config.layer_types = [known[i] for i in kinds]
        return replace(stock.of(model, config=config), blocks=line)


def _without_expansion(block: Any) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in block.state_dict().items() if not name.startswith(f"{ATTRIBUTE}.")}


def _number(block: Any, index: int) -> None:
    for part in (block, block.self_attn):
        if hasattr(part, "layer_idx"):
            part.layer_idx = index
