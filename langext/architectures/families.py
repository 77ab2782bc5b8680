"""The differences between model families, and nothing else. To add a family, add one entry to `FAMILIES`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langext.errors import ConfigError
from langext.spec import near

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Family:
    """The names that transformers gives to the parts of one family, and how the norms of the family work.

    Every family keeps its blocks in `model.layers` and the feed-forward network of a block in `mlp`, and names the matrices of
    a block as in `LINEARS`.
    """

    module: str
    """The family is defined in transformers.models.<module>.modeling_<module>."""
    prefix: str
    """Beginning of the class names: <prefix>ForCausalLM and <prefix>MLP."""
    text: str = ""
    """Follows the prefix in the class names of the config and the decoder: Gemma3TextConfig, Gemma3TextModel."""
    norm_plus: float = 0.0
    """A norm multiplies by (norm_plus + weight)."""
    sandwich: bool = False
    """True if the outputs of attention and of the feed-forward network pass through one more norm before they are added."""
    qkv_bias: bool = False
    """True if queries, keys and values have biases."""
    qk_norm: bool = False
    """True if queries and keys are normed."""
    without_row: tuple[str, ...] = ()
    """Tokens that the family's tokenizers name and that its text models have no row for."""

    @property
    def plain(self) -> bool:
        """Whether attention and norms are those of Llama, without biases and without further norms."""
        return not (self.qkv_bias or self.qk_norm or self.norm_plus or self.sandwich)

    @property
    def classes(self) -> dict[str, str]:
        """Role -> class name, for the classes that the modelling code of an export derives from."""
        return {
            "Config": f"{self.prefix}{self.text}Config",
            "Model": f"{self.prefix}{self.text}Model",
            "ForCausalLM": f"{self.prefix}ForCausalLM",
            "MLP": f"{self.prefix}MLP",
        }


FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "Llama"),
    "mistral": Family("mistral", "Mistral"),
    "qwen2": Family("qwen2", "Qwen2", qkv_bias=True),
    "qwen3": Family("qwen3", "Qwen3", qk_norm=True),
    "gemma": Family("gemma", "Gemma", norm_plus=1.0),
    "gemma2": Family("gemma2", "Gemma2", norm_plus=1.0, sandwich=True),
    "gemma3_text": Family("gemma3", "Gemma3", text="Text", norm_plus=1.0, sandwich=True, without_row=("<image_soft_token>",)),
}

LAYERS = "model.layers."
"""Beginning of the names of all parameters in blocks."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN = ("gate_proj", "up_proj", "down_proj")
LINEARS = ATTENTION + FFN


def of(config: Any) -> Family:
    """The family of a transformers config. Raises ConfigError, which lists the known families, for an unknown one."""
    name = config.model_type
    if name not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ConfigError(f"base model: architecture {name!r} is not supported.{near(name, FAMILIES)} Known: {known}.")
    return FAMILIES[name]


def positions(config: Any) -> int | None:
    """Number of tokens that a model with this transformers config can see at once; None if the config does not say.

    Of linear and dynamic scaling the config has the positions before it, as of YaRN, where it may name them once more; of other
    kinds those after it.
    """
    count = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if count is None or not isinstance(factor, int | float):
        return count
    if kind in ("linear", "dynamic"):
        return int(count * factor)
    if kind == "yarn":
        return max(count, int((rope.get("original_max_position_embeddings") or count) * factor))
    return count


def blocks(model: Any) -> "nn.ModuleList":
    """The decoder's blocks, first layer first. Raises ConfigError for an unknown family."""
    of(model.config)  # an unknown family may keep its blocks in another place
    return model.model.layers


def ffns(model: Any) -> list[Any]:
    """The feed-forward network of every block, first layer first. The input of these modules is already normed."""
    return [block.mlp for block in blocks(model)]


def linears(block: Any, names: tuple[str, ...] = LINEARS) -> dict[str, "nn.Linear"]:
    """Name -> linear map of a block, for the given names (all seven by default)."""
    return {name: getattr(block.self_attn if name in ATTENTION else block.mlp, name) for name in names}


def softcap(config: Any) -> float | None:
    """The number c, if the model replaces its logits by c tanh(logits / c); None if it does not (all families but Gemma 2)."""
    return getattr(config, "final_logit_softcapping", None)


def silence(block: Any, config: Any) -> None:
    """Change a block in place so that it adds exactly zero to its input, but still gets gradients and can learn.

    The output projections become zero. In a family with `sandwich` norms, the first update of a zero projection would be scaled
    up to full size by the norm behind it. There the scale of that norm, 1 + weight, becomes zero instead.
    """
    if of(config).sandwich:
        parameters = [block.post_attention_layernorm.weight, block.post_feedforward_layernorm.weight]
        value = -1.0
    else:
        parameters = [p for part in (block.self_attn.o_proj, block.mlp.down_proj) for p in part.parameters(recurse=False)]
        value = 0.0
    for parameter in parameters:
        parameter.data.fill_(value)
