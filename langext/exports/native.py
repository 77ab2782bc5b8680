"""Extended models as stock architectures: what no gate, a sigmoid gate and a hard sigmoid gate become.

The mappings (FFN is the base's feed-forward network, A the block, z = w . x its gate's input):

- no gate: one wider feed-forward network, rows and columns side by side.
- sigmoid: GraniteMoeShared. FFN is the shared MLP. Two routed experts, both always chosen: zeros with a zero router row, and
  A with router row w. softmax([0, z]) gives A the weight sigmoid(z).
- hard sigmoid: Glm4Moe. FFN is the shared expert. Two routed experts, the better one chosen: A with router row w, and zeros
  with a zero router row. sigmoid(0) = 1/2 is the threshold, so A is chosen exactly when z > 0, with weight sigmoid(z).
- full fine-tuning: the base's own architecture.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Glm4MoeConfig, GraniteMoeSharedConfig

from langext import families
from langext.methods.neutral_residues import NeutralResidues, residues

KEPT = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
    "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout",
    "initializer_range",
)  # fmt: skip


def write(live: Any, out: Path) -> None:
    """Save the folded model as safetensors with a config that stock transformers knows."""
    net = live.net
    if not isinstance(live.method, NeutralResidues):
        net.save_pretrained(out)
        return
    convert = {"none": _wider, "sigmoid": _granite, "hard_sigmoid": _glm}[live.method.gate]
    config, tensors = convert(net)
    config.dtype = net.dtype
    with torch.device("meta"):
        stock = AutoModelForCausalLM.from_config(config)
    stock.load_state_dict(tensors, assign=True)
    stock.tie_weights()
    stock.save_pretrained(out)


def _common(net: Any) -> dict[str, Any]:
    config = net.config
    return {key: getattr(config, key) for key in KEPT} | {"rope_parameters": dict(config.rope_parameters)}


def _shared_tensors(net: Any) -> dict[str, Tensor]:
    """Everything but the feed-forward networks, under names that the three stock targets share with Llama."""
    tensors = {n: p.detach() for n, p in net.state_dict().items() if ".mlp." not in n}
    tensors.setdefault("lm_head.weight", net.get_output_embeddings().weight.detach())
    return tensors


def _wider(net: Any) -> tuple[Any, dict[str, Tensor]]:
    tensors = _shared_tensors(net)
    width = 0
    for i, (ffn, block) in enumerate(_pairs(net)):
        for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            both = [getattr(ffn, name).weight.detach(), getattr(block, name).weight.detach()]
            tensors[f"model.layers.{i}.mlp.{name}.weight"] = torch.cat(both, dim)
        width = ffn.gate_proj.weight.shape[0] + block.gate_proj.weight.shape[0]
    config = type(net.config).from_dict(net.config.to_dict() | {"intermediate_size": width})
    return config, tensors


def _granite(net: Any) -> tuple[Any, dict[str, Tensor]]:
    tensors = _shared_tensors(net)
    hidden = ffn_width = 0
    for i, (ffn, block) in enumerate(_pairs(net)):
        at = f"model.layers.{i}"
        tensors[f"{at}.shared_mlp.input_linear.weight"] = torch.cat([ffn.gate_proj.weight, ffn.up_proj.weight]).detach()
        tensors[f"{at}.shared_mlp.output_linear.weight"] = ffn.down_proj.weight.detach()
        gate_up, down, row = _expert(block)
        nothing = [torch.zeros_like(t) for t in (gate_up, down, row)]
        tensors[f"{at}.block_sparse_moe.experts.gate_up_proj"] = torch.stack([nothing[0], gate_up])
        tensors[f"{at}.block_sparse_moe.experts.down_proj"] = torch.stack([nothing[1], down])
        tensors[f"{at}.block_sparse_moe.router.weight"] = torch.cat([nothing[2], row])
        hidden, ffn_width = block.gate_proj.weight.shape[0], ffn.gate_proj.weight.shape[0]
    config = GraniteMoeSharedConfig(
        **_common(net), intermediate_size=hidden, shared_intermediate_size=ffn_width, num_local_experts=2,
        num_experts_per_tok=2, attention_multiplier=net.config.head_dim**-0.5, embedding_multiplier=1.0,
        residual_multiplier=1.0, logits_scaling=1.0, output_router_logits=False, attention_bias=False,
        tie_word_embeddings=net.config.tie_word_embeddings,
    )  # fmt: skip
    return config, tensors


def _glm(net: Any) -> tuple[Any, dict[str, Tensor]]:
    tensors = _shared_tensors(net)
    hidden = num_shared = 0
    for i, (ffn, block) in enumerate(_pairs(net)):
        at = f"model.layers.{i}.mlp"
        hidden = block.gate_proj.weight.shape[0]
        num_shared = -(-ffn.gate_proj.weight.shape[0] // hidden)
        for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            weight = getattr(ffn, name).weight.detach()
            tensors[f"{at}.shared_experts.{name}.weight"] = _pad(weight, dim, num_shared * hidden)
        gate_up, down, row = _expert(block)
        tensors[f"{at}.experts.gate_up_proj"] = torch.stack([gate_up, torch.zeros_like(gate_up)])
        tensors[f"{at}.experts.down_proj"] = torch.stack([down, torch.zeros_like(down)])
        tensors[f"{at}.gate.weight"] = torch.cat([row, torch.zeros_like(row)])
        tensors[f"{at}.gate.e_score_correction_bias"] = torch.zeros(2)
    kept = _common(net)
    kept["rope_parameters"]["partial_rotary_factor"] = 1.0
    own: dict[str, Any] = dict(
        head_dim=net.config.head_dim, intermediate_size=num_shared * hidden, moe_intermediate_size=hidden,
        n_shared_experts=num_shared, n_routed_experts=2, num_experts_per_tok=1, n_group=1, topk_group=1,
        norm_topk_prob=False, routed_scaling_factor=1.0, first_k_dense_replace=0, num_nextn_predict_layers=0,
        use_qk_norm=False, attention_bias=False,
        tie_word_embeddings=False,  # vLLM's glm4_moe reads an untied head only
    )  # fmt: skip
    config = Glm4MoeConfig(**kept, **own)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()
    return config, tensors


def _pairs(net: Any) -> Iterator[tuple[Any, Any]]:
    """The feed-forward network and the block of every layer."""
    return zip(families.ffns(net), residues(net), strict=True)


def _expert(block: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(2H, D) gate and up rows, (D, H) down columns, (1, D) router row of a block."""
    gate_up = torch.cat([block.gate_proj.weight, block.up_proj.weight]).detach()
    return gate_up, block.down_proj.weight.detach(), block.router.weight.detach()


def _pad(weight: Tensor, dim: int, size: int) -> Tensor:
    shape = list(weight.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([weight, weight.new_zeros(shape)], dim)
