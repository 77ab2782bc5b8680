"""Rewrite ("fold") an extended model as a stock architecture that computes the same function.

The gate of the blocks beside the feed-forward network decides which architecture that is. Below, FFN is the base's feed-forward
network, A is a block, z = w . x is the input of its gate, and K is the number of blocks in a layer:

- No gate, or a network that grew: one wider feed-forward network. Matrix rows and columns of all parts stand side by side.
- One sigmoid, on a base that Granite's mixtures of experts can hold: GraniteMoeHybrid with attention in every layer. FFN is the
  shared MLP. There are two routed experts, both always chosen: one of zeros with a zero router row, and A with router row w.
  softmax([0, z]) gives A the weight sigmoid(z). GraniteMoeShared is the same under another name, and fewer programs know it;
  it is taken where the rope is scaled: MLX reads GraniteMoeHybrid without the scaling, silently, and refuses the other name.
- One sigmoid, on Qwen2: Qwen2Moe. FFN is the only routed expert; its weight, a softmax over one logit, is 1. A is the shared
  expert with the gate w.
- Other sigmoids: Glm4Moe. FFN is the shared expert. Each A is a routed expert with router row w; all are always chosen, with
  weight sigmoid(z).
- Hard sigmoids: Glm4Moe. FFN is the shared expert. There are 2 K routed experts, of which the best K are chosen: each A with
  router row w, and K experts of zeros with zero router rows. The experts of zeros score sigmoid(0) = 1/2, so an A is chosen
  when z > 0, with weight sigmoid(z). A small bias on the scores of the A sees to it that one with z <= 0 never is, and that no
  A scores exactly as an expert of zeros, where the choice would depend on the program. Float32 cannot tell sigmoid(z) from 1/2
  for z of at most 2^-23 = 1.2e-7: there the folded gate is closed, and one that is trained is open. The chance of such a z is
  about 1e-7 for a token and layer.
- One threshold: Glm4Moe. FFN is the shared expert. There are four routed experts, of which the best two are chosen: the two
  halves of A, both with router row s w and an output matrix of twice the size, and two of zeros with zero router rows, which
  score 1/2. The score of the halves is sigmoid(s w . x) + 1/2 - sigmoid(s t), so that both are chosen when w . x > t, and
  neither else; `experts.threshold` chooses s. Their weights are made to sum to 1, hence each is 1/2 exactly. (One expert of two
  would do, but MLX makes the weights sum to 1 only where more than one expert is chosen.)

Shapes: D model width, H width of the widest block, F width of the feed-forward network, E experts.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any

import torch

from langext.architectures import experts, families, stock
from langext.architectures.stock import Stock, Tensors

KEPT = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
    "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout",
    "initializer_range", "tie_word_embeddings",
)  # fmt: skip
BEHIND = -0.75 * 2.0**-25
"""What is added to the score of a block: 1/2 becomes the float32 number before it, and every larger number stays larger.

The numbers before 1/2 are 2^-25 apart, so the sum is rounded to 1/2 - 2^-25. Those after 1/2 are 2^-24 apart, so 1/2 + 2^-24 is
rounded to itself. Not half of a distance, where rounding to even could give 1/2.
"""


class Weight(Enum):
    """The factor that a block's output is multiplied by, as a function of z."""

    ONE = "1"
    SIGMOID = "sigmoid(z)"
    HARD_SIGMOID = "sigmoid(z) where z > 0, else 0"
    STEP = "1 where z > 0, else 0, with z = w . x - t"


def architecture(weights: Sequence[Weight], config: Any) -> str:
    """The stock architecture for blocks with these weights, in words.

    `config` is the base's; None while the base is not known, which gives the most likely name.
    """
    if set(weights) == {Weight.ONE}:
        return "the base's own, with a wider feed-forward network"
    if list(weights) == [Weight.SIGMOID]:
        if _fits_granite(config):
            return "GraniteMoeShared" if _scales_rope(config) else "GraniteMoeHybrid"
        if families.of(config).qkv_bias:
            return "Qwen2Moe"
    return "Glm4Moe"


def folded_class(weights: Sequence[Weight], config: Any) -> str:
    """The class name of the stock model for blocks with these weights; [] stands for a method without blocks."""
    base = f"{families.of(config).prefix}ForCausalLM"
    return base if set(weights) <= {Weight.ONE} else f"{architecture(weights, config)}ForCausalLM"


def obstacle(weights: Sequence[Weight], config: Any) -> str:
    """The reason why no stock architecture can compute such blocks on this base; "" if one can.

    All entries of `weights` must be equal.
    """
    if len(weights) > 1 and set(weights) == {Weight.STEP}:
        return "the chosen experts of a stock mixture share a weight of 1, and several blocks with thresholds need one each"
    if set(weights) == {Weight.ONE} or config is None:
        return ""
    if families.of(config).norm_plus:
        return "no stock mixture of experts has Gemma's norms and embeddings"
    if getattr(config, "mlp_bias", False):
        return f"{architecture(weights, config)} has no place for this base's biases in the feed-forward network"
    if getattr(config, "attention_bias", False):
        return f"{architecture(weights, config)} has no place for this base's bias in the attention's output"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"{architecture(weights, config)} has no sliding-window attention"
    return ""


def _fits_granite(config: Any) -> bool:
    """True if Granite's mixtures of experts can hold the base: attention without biases or norms, as wide as all its heads."""
    if config is None:
        return True
    plain = families.of(config).plain
    return plain and config.hidden_size == config.num_attention_heads * _head_dim(config)


def _scales_rope(config: Any) -> bool:
    return config is not None and config.rope_parameters.get("rope_type", "default") != "default"


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def fold(net: Any, stacks: Sequence[Mapping[int, Any]], weights: Sequence[Weight]) -> Stock:
    """The stock form of `net`. `net` itself stays as it is.

    `stacks` has one mapping for each extension: layer -> block. `weights` has the weight of the blocks of each extension.
    The caller has checked that there is no `obstacle`.
    """
    assert not obstacle(weights, net.config), "checked before"
    if set(weights) == {Weight.ONE}:
        return wider(net, stacks)
    makers = {"GraniteMoeHybrid": _granite, "GraniteMoeShared": _granite, "Qwen2Moe": _qwen, "Glm4Moe": _glm}
    make = makers[architecture(weights, net.config)]
    return make(net, stacks, weights[0])


def wider(net: Any, stacks: Sequence[Mapping[int, Any]], kept: Mapping[int, float] | None = None) -> Stock:
    """The stock form of a net with ungated networks beside the feed-forward networks: the base's own, but wider.

    `stacks` has one mapping for each extension: layer -> network. Layers without a network get zeros, because a stock model has
    one width for all layers. `kept` maps a layer to the factor of the base's own output; it is 1 for the other layers.
    """
    config, added = copy.deepcopy(net.config), [experts.width([stack]) for stack in stacks]
    config.intermediate_size += sum(added)
    layer_of = {block: i for i, block in enumerate(families.blocks(net))}

    def widened(block: Any) -> Tensors:
        ffn, layer = block.mlp, layer_of[block]
        tensors = _without_ffn(block)
        for name, dim in experts.MATRICES:
            own: Any = getattr(ffn, name)
            # Only the output matrix (dim 1) is scaled by `kept`: the activation is not linear in the input matrices.
            weights = [own.weight.detach() * (kept or {}).get(layer, 1.0) if dim else own.weight.detach()]
            for stack, width in zip(stacks, added, strict=True):
                new = getattr(stack[layer], name).weight.detach() if layer in stack else weights[0].narrow(dim, 0, 0)
                weights.append(experts.pad(new, dim, width))
            tensors[f"mlp.{name}.weight"] = torch.cat(weights, dim)
            if own.bias is not None:  # the added networks have no biases, so their part of it is zero
                bias = own.bias.detach()
                tensors[f"mlp.{name}.bias"] = bias if dim else experts.pad(bias, 0, config.intermediate_size)
        return tensors

    return stock.of(net, widened, config)


def _without_ffn(block: Any) -> Tensors:
    """The tensors of a block's attention and norms."""
    return {name: tensor for name, tensor in stock.plain(block).items() if not name.startswith("mlp.")}


def _common(net: Any) -> dict[str, Any]:
    config = net.config
    return {key: getattr(config, key) for key in KEPT} | {"rope_parameters": dict(config.rope_parameters)}


def _moe(net: Any, stacks: Sequence[Mapping[int, Any]], config: Any, ffn: Callable[[Any, list[Any]], Tensors]) -> Stock:
    """The stock form as a mixture of experts.

    `ffn` gets a layer's feed-forward network and one block for each extension (None if the layer has no block of it), and
    returns the tensors that replace them.
    """
    layer_of = {block: i for i, block in enumerate(families.blocks(net))}

    def with_experts(block: Any) -> Tensors:
        return _without_ffn(block) | ffn(block.mlp, [stack.get(layer_of[block]) for stack in stacks])

    folded = stock.of(net, with_experts, config)
    if config.tie_word_embeddings:
        return folded

    def ends() -> Tensors:
        tensors = folded.ends()
        # A tied base has no head of its own, but this architecture needs one. The head of an untied base takes precedence.
        return {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()} | tensors

    return replace(folded, ends=ends)


def _granite(net: Any, stacks: Sequence[Mapping[int, Any]], weight: Weight) -> Stock:
    from transformers import GraniteMoeHybridConfig, GraniteMoeSharedConfig

    assert weight is Weight.SIGMOID and len(stacks) == 1, "softmax over two experts is one sigmoid"
    hidden = experts.width(stacks)

    def change(ffn: Any, blocks: list[Any]) -> Tensors:
        gate_up, down, rows = experts.matrices(ffn, blocks, hidden, empty=1)
        # flip: the expert of zeros comes first, in the order of softmax([0, z]).
        return {
            "shared_mlp.input_linear.weight": torch.cat([ffn.gate_proj.weight, ffn.up_proj.weight]).detach(),
            "shared_mlp.output_linear.weight": ffn.down_proj.weight.detach(),
            "block_sparse_moe.experts.gate_up_proj": gate_up.flip(0),
            "block_sparse_moe.experts.down_proj": down.flip(0),
            "block_sparse_moe.router.weight": rows.flip(0),
        }

    # Granite scales embeddings, attention, residuals and logits; these multipliers turn that into what a Llama model computes.
    own: dict[str, Any] = dict(
        intermediate_size=hidden, shared_intermediate_size=net.config.intermediate_size, num_local_experts=2,
        num_experts_per_tok=2, attention_multiplier=_head_dim(net.config) ** -0.5, embedding_multiplier=1.0,
        residual_multiplier=1.0, logits_scaling=1.0, output_router_logits=False, attention_bias=False,
    )  # fmt: skip
    if _scales_rope(net.config):
        return _moe(net, stacks, GraniteMoeSharedConfig(**_common(net), **own), change)
    # No layer is of the Mamba kind, but transformers checks that its heads divide twice the width, and vLLM that they can be
    # shared out as the heads of attention are.
    hybrid: dict[str, Any] = dict(
        layer_types=["attention"] * net.config.num_hidden_layers, position_embedding_type="rope",
        mamba_n_heads=net.config.num_attention_heads,
    )  # fmt: skip
    return _moe(net, stacks, GraniteMoeHybridConfig(**_common(net), **own, **hybrid), change)


def _qwen(net: Any, stacks: Sequence[Mapping[int, Any]], weight: Weight) -> Stock:
    from transformers import Qwen2MoeConfig

    assert weight is Weight.SIGMOID and len(stacks) == 1, "there is one shared expert, with a sigmoid"
    hidden = experts.width(stacks)

    def change(ffn: Any, blocks: list[Any]) -> Tensors:
        gate_up, down, rows = experts.matrices(ffn, blocks, hidden, empty=0)
        gate, up = gate_up[0].chunk(2)
        shared = (("gate_proj", gate), ("up_proj", up), ("down_proj", down[0]))
        return {f"mlp.shared_expert.{name}.weight": weight.clone() for name, weight in shared} | {
            "mlp.experts.gate_up_proj": torch.cat([ffn.gate_proj.weight, ffn.up_proj.weight]).detach()[None],
            "mlp.experts.down_proj": ffn.down_proj.weight.detach()[None],
            "mlp.gate.weight": torch.zeros_like(ffn.gate_proj.weight[:1]).detach(),
            # llama.cpp computes sigmoid(z) as silu(z) / z, which is NaN at z = 0. A zero row would give z = 0 for an absent
            # block; ones do not, and the block adds zeros whatever its gate is.
            "mlp.shared_expert_gate.weight": torch.ones_like(rows) if blocks[0] is None else rows,
        }

    own: dict[str, Any] = dict(
        intermediate_size=net.config.intermediate_size, moe_intermediate_size=net.config.intermediate_size,
        shared_expert_intermediate_size=hidden, num_experts=1, num_experts_per_tok=1, norm_topk_prob=False, qkv_bias=True,
        decoder_sparse_step=1, mlp_only_layers=[], use_sliding_window=False, output_router_logits=False,
        tie_word_embeddings=False,  # llama.cpp's qwen2moe can read an untied head only
    )  # fmt: skip
    return _moe(net, stacks, Qwen2MoeConfig(**(_common(net) | own)), change)


def _glm(net: Any, stacks: Sequence[Mapping[int, Any]], weight: Weight) -> Stock:
    from transformers import Glm4MoeConfig

    choice, halved = weight is not Weight.SIGMOID, weight is Weight.STEP
    hidden, chosen = (-(-experts.width(stacks) // 2), 2) if halved else (experts.width(stacks), len(stacks))
    empty = chosen if choice else int(chosen == 1)  # the router needs at least two experts
    num_experts = chosen + empty
    # All experts of Glm4Moe have the width `hidden`, so the base's network is padded to a whole number of shared experts.
    num_shared = -(-net.config.intermediate_size // hidden)

    def change(ffn: Any, blocks: list[Any]) -> Tensors:
        gate_up, down, rows = experts.matrices(ffn, experts.halves(blocks[0], hidden) if halved else blocks, hidden, empty)
        bias = torch.zeros(num_experts)  # added to the scores when experts are chosen, not to their weights
        if weight is Weight.HARD_SIGMOID:
            # At z = 0 a block scores 1/2 as the experts of zeros do, and its gate is closed, so these must be chosen.
            bias[:chosen] = BEHIND
        if halved and blocks[0] is not None:
            rows[:2], bias[:2] = experts.threshold(rows[0], -blocks[0].router.bias.detach())
        return {
            f"mlp.shared_experts.{name}.weight": experts.pad(getattr(ffn, name).weight.detach(), dim, num_shared * hidden)
            for name, dim in experts.MATRICES
        } | {
            "mlp.experts.gate_up_proj": gate_up,
            "mlp.experts.down_proj": down,
            "mlp.gate.weight": rows,
            "mlp.gate.e_score_correction_bias": bias,
        }

    kept = _common(net)
    kept["rope_parameters"]["partial_rotary_factor"] = 1.0  # GLM rotates half of each head by default, the bases all of it
    family = families.of(net.config)
    own: dict[str, Any] = dict(
        head_dim=_head_dim(net.config), intermediate_size=num_shared * hidden, moe_intermediate_size=hidden,
        n_shared_experts=num_shared, n_routed_experts=num_experts, num_experts_per_tok=chosen if choice else num_experts,
        n_group=1, topk_group=1, first_k_dense_replace=0, norm_topk_prob=halved, routed_scaling_factor=1.0,
        attention_bias=family.qkv_bias, use_qk_norm=family.qk_norm, num_nextn_predict_layers=0,
        tie_word_embeddings=False,  # vLLM's glm4_moe can read an untied head only
    )  # fmt: skip
    return _moe(net, stacks, Glm4MoeConfig(**(kept | own)), change)
