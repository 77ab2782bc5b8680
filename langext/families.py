"""What differs between model families, and nothing else. Adding a family: one entry in `FAMILIES`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langext.spec import ConfigError, near

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Family:
    """Where the parts of a decoder lie in a transformers model of one `model_type`."""

    blocks: Callable[[Any], "nn.ModuleList"]
    """Model -> its transformer blocks, in order."""
    ffn: str
    """Attribute of a block that holds the feed-forward network; its input is already normed."""


FAMILIES: dict[str, Family] = {
    "llama": Family(blocks=lambda model: model.model.layers, ffn="mlp"),
}


def of(config: Any) -> Family:
    """The family of a transformers config. Raises ConfigError naming the known ones."""
    kind = config.model_type
    if kind not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ConfigError(f"base model: architecture {kind!r} is not supported.{near(kind, FAMILIES)} Known: {known}.")
    return FAMILIES[kind]


def ffns(model: Any) -> list["nn.Module"]:
    """The feed-forward network of every block, first layer first."""
    family = of(model.config)
    return [getattr(block, family.ffn) for block in family.blocks(model)]
