"""The setting `layers`, which layers a method changes: `all`, a list of layer numbers from 0, or `{top: n}` for the last n."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from langext.errors import ConfigError


def _shape(value: Any) -> Any:
    if value == "all":
        return value
    if isinstance(value, dict):
        top = value.get("top")
        if set(value) == {"top"} and isinstance(top, int) and not isinstance(top, bool) and top >= 1:
            return value
    elif isinstance(value, list | tuple) and value and all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        if min(value) < 0 or len(set(value)) != len(value):
            raise ValueError(f"layer numbers count from 0 and occur once (got {list(value)!r:.60})")
        return sorted(value)
    raise ValueError(f"expected all, a list of layer numbers from 0, or {{top: n}} with n >= 1 (got {value!r:.60})")


Layers = Annotated[Literal["all"] | list[int] | dict[str, int], BeforeValidator(_shape)]


def chosen(layers: Layers, config: Any) -> list[int]:
    """The chosen layer numbers in ascending order. Raises ConfigError if the base has no such layer."""
    depth = config.num_hidden_layers
    if layers == "all":
        return list(range(depth))
    if isinstance(layers, dict):
        if layers["top"] > depth:
            raise ConfigError(f"layers: top {layers['top']} asked for, the base has {depth} layers", at=("layers",))
        return list(range(depth - layers["top"], depth))
    if layers[-1] >= depth:
        raise ConfigError(f"layers: no layer {layers[-1]}, the base has layers 0 to {depth - 1}", at=("layers",))
    return list(layers)
