"""What differs between model families, and nothing else. Adding a family: one entry in `FAMILIES`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langext.spec import ConfigError, near

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Family:
    """What transformers calls the parts of a decoder of one `model_type`. All of them keep their blocks in `model.layers`,
    their feed-forward network in `mlp` and name their matrices as in `LINEARS`.
    """

    module: str
    """transformers.models.<module>.modeling_<module> defines it."""
    prefix: str
    """<prefix>ForCausalLM and <prefix>MLP."""
    text: str = ""
    """What config and decoder add to the prefix: Gemma3TextConfig, Gemma3TextModel."""
    norm_plus: float = 0.0
    """A norm multiplies by this plus its weight."""
    sandwich: bool = False
    """Is the output of attention and of the feed-forward network normed once more before it is added?"""

    @property
    def classes(self) -> dict[str, str]:
        """The classes that a model of its own derives from, by part."""
        return {
            "Config": f"{self.prefix}{self.text}Config",
            "Model": f"{self.prefix}{self.text}Model",
            "ForCausalLM": f"{self.prefix}ForCausalLM",
            "MLP": f"{self.prefix}MLP",
        }


FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "Llama"),
    "mistral": Family("mistral", "Mistral"),
    "qwen2": Family("qwen2", "Qwen2"),
    "qwen3": Family("qwen3", "Qwen3"),
    "gemma": Family("gemma", "Gemma", norm_plus=1.0),
    "gemma2": Family("gemma2", "Gemma2", norm_plus=1.0, sandwich=True),
    "gemma3_text": Family("gemma3", "Gemma3", text="Text", norm_plus=1.0, sandwich=True),
}

LAYERS = "model.layers."
"""What the names of all parameters in blocks begin with."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN = ("gate_proj", "up_proj", "down_proj")
LINEARS = ATTENTION + FFN


def of(config: Any) -> Family:
    """The family of a transformers config. Raises ConfigError naming the known ones."""
    kind = config.model_type
    if kind not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ConfigError(f"base model: architecture {kind!r} is not supported.{near(kind, FAMILIES)} Known: {known}.")
    return FAMILIES[kind]


def blocks(model: Any) -> "nn.ModuleList":
    """The decoder's blocks, first layer first."""
    of(model.config)
    return model.model.layers


def ffns(model: Any) -> list[Any]:
    """The feed-forward network of every block, first layer first. Its input is already normed."""
    return [block.mlp for block in blocks(model)]


def linears(block: Any, names: tuple[str, ...] = LINEARS) -> dict[str, "nn.Linear"]:
    """The linear maps of a block by name."""
    return {name: getattr(block.self_attn if name in ATTENTION else block.mlp, name) for name in names}


def softcap(config: Any) -> float | None:
    """C in logits -> c tanh(logits / c), applied after the head; None where logits are taken as they are (all but Gemma 2)."""
    return getattr(config, "final_logit_softcapping", None)


def silence(block: Any, config: Any) -> None:
    """Make a block add exactly nothing, in place, leaving gradients that let it learn.

    The output projections become zero. Where their output is normed before it is added, a zero would be blown up to full size
    by the first update, so there the norms' scale (1 + weight) becomes zero instead.
    """
    if of(config).sandwich:
        parameters = [block.post_attention_layernorm.weight, block.post_feedforward_layernorm.weight]
        value = -1.0
    else:
        parameters = [p for part in (block.self_attn.o_proj, block.mlp.down_proj) for p in part.parameters(recurse=False)]
        value = 0.0
    for parameter in parameters:
        parameter.data.fill_(value)
