"""Which format an extended model can be exported to, and what it becomes there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langext.architectures import families
from langext.exports.formats import FORMATS
from langext.spec import ConfigError


def choose(config: Any, methods: Sequence[Any], form: str, pre: str | None = None) -> str:
    """The format to write. Raises ConfigError with the reason when it cannot be exact, and names what can.

    `config` is the base's transformers config, or None while it is not on this machine. `methods` are those of all
    extensions, the first added first. `pre` is llama.cpp's name of the base's pre-tokenizer, where the user gave one.
    """
    if form not in FORMATS:
        raise ConfigError(f"export format {form!r} is not known; choose {', '.join(FORMATS)}")
    reasons = {f: _obstacle(config, methods, f, pre) for f in FORMATS[1:]}
    possible = [f for f in FORMATS[1:] if not reasons[f]]
    if form == "auto":
        form = next((f for f in possible if f != "delta"), "native")  # a delta needs langext to be loaded
    if reasons[form]:
        raise ConfigError(f"format {form!r}: {reasons[form]}; possible: {', '.join(possible) or 'none'}", at=("format",))
    return form


def _obstacle(config: Any, methods: Sequence[Any], form: str, pre: str | None) -> str:
    """Why a format cannot be exact here, or an empty string."""
    from langext.architectures import folding
    from langext.exports.gguf import file, vocabulary

    gates: list[Any] = [getattr(method, "gate", None) for method in methods]
    if form == "delta":
        return ""
    if form == "remote":
        return "" if all(gates) else f"{methods[-1].name} needs no code of its own"
    reason = folding.obstacle(gates, config) if len(gates) > 1 else methods[-1].obstacle(config)
    gated = next((gate for gate in gates if gate not in (None, "none")), None)
    if form == "dense" and gated:
        return f"a block with {'an' if gated == 'elu' else 'a'} {gated} gate is no part of a dense network"
    if form == "gguf" and not reason and config is not None:
        made = {"architectures": [folding.folded_class(gates, config)], "layer_types": methods[-1].layer_types(config)}
        made["num_hidden_layers"] = len(made["layer_types"] or []) or config.num_hidden_layers
        return file.obstacle(config.to_dict() | made) or vocabulary.obstacle(Path(config.name_or_path), pre)
    return reason


def architecture(config: Any, methods: Sequence[Any], form: str) -> str:
    """The architecture a checkpoint will have, in words, for `langext plan` and the model card."""
    from langext.architectures import folding

    if form == "delta":
        return "what was learnt, without the base"
    if form == "remote":
        prefix = families.of(config).prefix if config is not None else "the base"
        return f"{prefix} with neutral residues (remote code in the folder)"
    many = len(methods) > 1
    described = folding.architecture([m.gate for m in methods], config) if many else methods[-1].architecture(config)
    return f"{described}, for llama.cpp" if form == "gguf" else described
