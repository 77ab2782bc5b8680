"""Settings that choose layers: `all`, `middle`, a list of layer numbers from 0, or `{top: n}` for the last n.

`middle` leaves out the first 9/34 and the last 6/34 of the layers. https://arxiv.org/abs/2606.00284 freezes layers 9 to 27 of a
model of 34 layers; its layers that learn are the outer ones, where models turn text into meaning and back. The share for other
depths is ours.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from langext.errors import ConfigError

FIRST, LAST = 9 / 34, 6 / 34
"""Shares of the layers that are not in the middle, at the input and at the output."""


def _shape(value: Any) -> Any:
    if value in ("all", "middle"):
        return value
    if isinstance(value, dict):
        top = value.get("top")
        if set(value) == {"top"} and isinstance(top, int) and not isinstance(top, bool) and top >= 1:
            return value
    elif isinstance(value, list | tuple) and value and all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        if min(value) < 0 or len(set(value)) != len(value):
            raise ValueError(f"layer numbers count from 0 and occur once (got {list(value)!r:.60})")
        return sorted(value)
    raise ValueError(f"expected all, middle, a list of layer numbers from 0, or {{top: n}} with n >= 1 (got {value!r:.60})")


def _shape_or_none(value: Any) -> Any:
    return value if value is None else _shape(value)


Layers = Annotated[Literal["all", "middle"] | list[int] | dict[str, int], BeforeValidator(_shape)]
AnyLayers = Annotated[Literal["all", "middle"] | list[int] | dict[str, int] | None, BeforeValidator(_shape_or_none)]
"""The same, where None chooses no layer."""


def chosen(layers: Layers, config: Any) -> list[int]:
    """The chosen layer numbers in ascending order. Raises ConfigError if the base has no such layer."""
    return numbers(layers, config.num_hidden_layers, "layers")


def numbers(layers: AnyLayers, depth: int, key: str) -> list[int]:
    """The chosen layer numbers of a model with `depth` layers, in ascending order. Raises ConfigError, which names the key."""
    if layers is None:
        return []
    if layers == "all":
        return list(range(depth))
    if layers == "middle":
        first, end = max(1, round(FIRST * depth)), depth - max(1, round(LAST * depth))
        if first >= end:
            raise ConfigError(f"{key}: a model of {depth} layers has no middle", at=(key,))
        return list(range(first, end))
    if isinstance(layers, dict):
        if layers["top"] > depth:
            raise ConfigError(f"{key}: top {layers['top']} asked for, the base has {depth} layers", at=(key,))
        return list(range(depth - layers["top"], depth))
    if layers[-1] >= depth:
        raise ConfigError(f"{key}: no layer {layers[-1]}, the base has layers 0 to {depth - 1}", at=(key,))
    return list(layers)
