"""Tells whether two bases are siblings: models of the same shapes and tokens, such as a base and its instruct model.

What was trained beside one of them can then run beside the other. Reads configs, tokenizers and headers of weights alone.
"""

from pathlib import Path
from typing import Any

from langext.models import base_files, loading

SIZES = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "tie_word_embeddings",
)  # fmt: skip
"""Keys of a config that must be equal, besides the width of a head and the activation."""


def differences(there: Path, here: Path) -> list[str]:
    """Why the bases in two folders are no siblings, one line for each reason; [] when they are.

    Weights and what scales positions may differ, and tokens that only one of them has beside its vocabulary, such as those of a
    chat. Raises ConfigError when a base cannot be read.
    """
    # Other sizes are the reason for other shapes, so shapes are then not listed as well.
    found = of_configs(loading.load_config(there), loading.load_config(here)) or _of_tensors(there, here)
    return [*found, *_of_tokens(loading.load_tokenizer(there), loading.load_tokenizer(here))]


def of_configs(there: Any, here: Any) -> list[str]:
    """The keys in which two transformers configs differ and siblings do not, one line each."""
    pairs = ((key, _sizes(there)[key], value) for key, value in _sizes(here).items())
    return [f"{key}: {old} there, {new} here" for key, old, new in pairs if old != new]


def _sizes(config: Any) -> dict[str, Any]:
    found = {key: getattr(config, key, None) for key in SIZES}
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    return found | {"head_dim": heads, "activation": activation}


def _of_tensors(there: Path, here: Path) -> list[str]:
    old, new = _shapes(there), _shapes(here)
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return [f"{name}: {_shown(old.get(name))} there, {_shown(new.get(name))} here{_more(names)}" for name in names[:1]]


def _shapes(folder: Path) -> base_files.Shapes:
    """Name -> shape of the tensors of a model, without those that every model has or shares."""
    tied = {base_files.HEAD} if loading.load_config(folder).tie_word_embeddings else set()
    found = base_files.tensors(folder).items()
    return {name: shape for name, shape in found if name not in tied and not base_files.BUFFERS.search(name)}


def _shown(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else " x ".join(map(str, shape))


def _of_tokens(there: Any, here: Any) -> list[str]:
    old, new = there.get_vocab(), here.get_vocab()
    extra = (there.get_added_vocab().keys() - new.keys()) | (here.get_added_vocab().keys() - old.keys())
    moved = [token for token in sorted({*old, *new} - extra) if old.get(token) != new.get(token)]
    ids = ((token, old.get(token, "none"), new.get(token, "none")) for token in moved[:1])
    return [f"id of the token {token!r:.40}: {i} there, {j} here{_more(moved)}" for token, i, j in ids]


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""
