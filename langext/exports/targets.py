"""The table of export formats: whether a model can be exported to each format exactly, and if not, why.

The one rule: a format is refused with a reason unless it computes the same as the trained model. To add a format, add a file
that writes it and a row in `TARGETS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langext.architectures import families, folding
from langext.errors import ConfigError
from langext.exports import checkpoint
from langext.exports.formats import FORMATS, Order
from langext.methods import gates
from langext.methods.base import Method


@dataclass(frozen=True)
class Target:
    """One export format. In its functions `config` is the base's transformers config, or None while the base is not on disk."""

    obstacle: Callable[[Any, Sequence[Method], str | None], str]
    """(config, methods, llama.cpp's name of the pre-tokenizer) -> why the export cannot be exact; empty when it can."""
    architecture: Callable[[Any, Sequence[Method]], str]
    """(config, methods) -> what the checkpoint will be, in words."""
    write: Callable[[Order], dict[str, Any]]
    """Writes the export, loads it again and compares; returns the comparison by field of `ExportSummary`."""
    folds: bool = True
    """True if the export is made from the stock form that the method folds to."""
    own_code: bool = False
    """True if the export contains modeling code, which transformers runs only when the user trusts it."""
    chosen_by_auto: bool = True
    """True if `auto` may choose this format. False for a format that only langext can load."""


def _stock_obstacle(config: Any, methods: Sequence[Method], pre: str | None) -> str:
    names = _gates(methods)
    return gates.obstacle(names, config) if len(methods) > 1 else methods[-1].obstacle(config)


def _stock_architecture(config: Any, methods: Sequence[Method]) -> str:
    if len(methods) > 1:
        return folding.architecture(gates.weights(_gates(methods)), config)
    return methods[-1].architecture(config)


def _dense_obstacle(config: Any, methods: Sequence[Method], pre: str | None) -> str:
    if reason := next((name for name in _gates(methods) if gates.has(name)), None):
        return f"a block with {gates.article(reason)} {reason} gate is no part of a dense network"
    return _stock_obstacle(config, methods, pre)


def _gguf_obstacle(config: Any, methods: Sequence[Method], pre: str | None) -> str:
    from langext.exports.gguf import file, vocabulary  # imports slowly

    reason = _stock_obstacle(config, methods, pre)
    if reason or config is None:
        return reason
    weights = gates.weights(_gates(methods))
    # The config of the checkpoint that would be written: the base's config plus what folding changes.
    made = {"architectures": [folding.folded_class(weights, config)], "layer_types": methods[-1].layer_types(config)}
    made["num_hidden_layers"] = len(made["layer_types"] or []) or config.num_hidden_layers
    return file.obstacle(config.to_dict() | made) or vocabulary.obstacle(Path(config.name_or_path), pre)


def _remote_obstacle(config: Any, methods: Sequence[Method], pre: str | None) -> str:
    plain = next((method for method in methods if method.block_gate is None), None)
    if plain is None:
        return ""
    return f"langext has no code for {plain.name}" if plain.obstacle(config) else f"{plain.name} needs no code of its own"


def _remote_architecture(config: Any, methods: Sequence[Method]) -> str:
    prefix = families.of(config).prefix if config is not None else "the base"
    return f"{prefix} with neutral residues (remote code in the folder)"


def _gguf_architecture(config: Any, methods: Sequence[Method]) -> str:
    return f"{_stock_architecture(config, methods)}, for llama.cpp"


def _gguf_write(order: Order) -> dict[str, Any]:
    from langext.exports.gguf import check  # imports slowly

    return check.export(order)


def _delta_write(order: Order) -> dict[str, Any]:
    from langext.exports import delta

    return delta.export(order)


TARGETS: dict[str, Target] = {
    "native": Target(_stock_obstacle, _stock_architecture, checkpoint.write),
    "dense": Target(_dense_obstacle, _stock_architecture, checkpoint.write),
    "remote": Target(_remote_obstacle, _remote_architecture, checkpoint.write, folds=False, own_code=True),
    "gguf": Target(_gguf_obstacle, _gguf_architecture, _gguf_write),
    "delta": Target(
        lambda *_: "", lambda *_: "what was learnt, without the base", _delta_write, folds=False, chosen_by_auto=False
    ),
}  # fmt: skip


def _gates(methods: Sequence[Method]) -> list[gates.GateName]:
    """The gates of those methods that add residual blocks."""
    return [method.block_gate for method in methods if method.block_gate is not None]


def choose(config: Any, methods: Sequence[Method], form: str, pre: str | None = None) -> str:
    """Return the format to write: `form` itself, or for `auto` the first one in `TARGETS` that is exact.

    `config` is the base's transformers config, or None while the base is not on disk. `methods` are those of all extensions,
    the oldest first. `pre` is llama.cpp's name of the base's pre-tokenizer, if the user gave one.

    Raises ConfigError when the format is not known or cannot be exact. The message gives the reason and the possible formats.
    """
    if form not in FORMATS:
        raise ConfigError(f"export format {form!r} is not known; choose {', '.join(FORMATS)}")
    reasons = {name: target.obstacle(config, methods, pre) for name, target in TARGETS.items()}
    possible = [name for name in TARGETS if not reasons[name]]
    if form == "auto":
        form = next((name for name in possible if TARGETS[name].chosen_by_auto), "native")
    if reasons[form]:
        raise ConfigError(f"format {form!r}: {reasons[form]}; possible: {', '.join(possible) or 'none'}", at=("format",))
    return form


def architecture(config: Any, methods: Sequence[Method], form: str) -> str:
    """Describe the architecture that a checkpoint will have, in words, for `langext plan` and the model card."""
    return TARGETS[form].architecture(config, methods)
