"""Expansion blocks: copies of some layers, inserted behind them, that start as the identity. LLaMA Pro, https://arxiv.org/abs/2401.02415.

The new block adds exactly nothing at first (its output projections are zero; see `families.silence` for Gemma 2 and 3). Only
the new blocks learn. While training they hang on the layer before them; `fold` puts them in line.
"""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from langext.architectures import families
from langext.methods import extension
from langext.methods.base import Method
from langext.methods.extension import Extension
from langext.spec import ConfigError

if TYPE_CHECKING:
    from langext.architectures.stock import Stock

ATTRIBUTE = "expansion"


class Expansion(Extension):
    """A whole decoder block that runs after another one."""

    def __init__(self, stack: int, block: nn.Module):
        super().__init__(stack)
        self.block = block

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(B, T, D) output of the block before -> (B, T, D)."""
        out = self.block(hidden, *args, **kwargs)
        if self.watched:
            self.note(out - hidden)
        return out


class ExpansionBlocks(Method):
    """More layers, of which only the new ones learn."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2401.02415"
    name: Literal["expansion_blocks"]
    every: int | None = Field(None, ge=1)
    """A new block after every so many layers; 4 when `positions` is not given either."""
    positions: list[int] | None = Field(None, min_length=1)
    """New blocks after these layers, counted from 0, instead of `every`."""

    @model_validator(mode="after")
    def _one_of(self) -> "ExpansionBlocks":
        if self.every is not None and self.positions is not None:
            raise ValueError("give every or positions, not both")
        if self.positions is not None and (min(self.positions) < 0 or len(set(self.positions)) < len(self.positions)):
            raise ValueError(f"positions count from 0 and occur once (got {self.positions!r:.60})")
        return self

    @property
    def reversible(self) -> bool:
        """The base's own layers are untouched."""
        return True

    def after(self, depth: int) -> list[int]:
        """Numbers of the base's layers that get a new block behind them. Raises ConfigError when there is no such layer."""
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
        """The base has the layers that are asked for."""
        super().check(config)
        self.after(config.num_hidden_layers)

    def extend(self, model: Any) -> None:
        """Hang a silent copy behind each chosen layer. The config learns of them, so that the cache has room."""
        self.check(model.config)
        config, blocks = model.config, families.blocks(model)
        stack, depth = extension.next_stack(model), config.num_hidden_layers
        after = self.after(depth)
        for k, i in enumerate(after):
            new: Any = copy.deepcopy(blocks[i])
            families.silence(new, config)
            _number(new, depth + k)
            expansion = Expansion(stack, new)
            blocks[i].add_module(ATTRIBUTE, expansion)
            expansion.hang(
                blocks[i], lambda _, args, kwargs, output, new=expansion: new(output, *args[1:], **kwargs), with_kwargs=True
            )
        if getattr(config, "layer_types", None):
            config.layer_types = [*config.layer_types, *(config.layer_types[i] for i in after)]
        config.num_hidden_layers = depth + len(after)

    def trainable(self, name: str, config: Any) -> bool:
        """Only the new blocks learn."""
        return f".{ATTRIBUTE}." in name

    def layer(self, name: str, config: Any) -> tuple[int, int] | None:
        """Counted with the new blocks in line."""
        place = super().layer(name, config)
        if place is None:
            return None
        after = self.after(place[1])
        return place[0] + sum(i < place[0] for i in after) + (f".{ATTRIBUTE}." in name), place[1] + len(after)

    def dense(self) -> bool:
        """There are more layers than in the base."""
        return False

    def architecture(self, config: Any) -> str:
        """How much deeper."""
        more = "" if config is None else f" by {len(self.after(config.num_hidden_layers))} layers"
        return f"the base's own, deeper{more}"

    def layer_types(self, config: Any) -> list[str] | None:
        """A new block has the kind of the one before it."""
        kinds, after = getattr(config, "layer_types", None), set(self.after(config.num_hidden_layers))
        return kinds and [kind for i, kind in enumerate(kinds) for _ in range(1 + (i in after))]

    def fold(self, model: Any) -> "Stock":
        """Put the new blocks in line."""
        from langext.architectures import stock

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
