"""Write a GGUF file for llama.cpp from a checkpoint folder, one tensor at a time.

The one rule: a checkpoint is written only as an architecture of llama.cpp that computes the same; anything else is refused with
the reason. Tensor names and metadata keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open
from torch import Tensor

from langext.artifacts import read_json
from langext.errors import ConfigError
from langext.exports.formats import Precision
from langext.exports.gguf import vocabulary

KINDS = {"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
    "GemmaForCausalLM": gguf.MODEL_ARCH.GEMMA,
    "Gemma2ForCausalLM": gguf.MODEL_ARCH.GEMMA2,
    "Gemma3ForCausalLM": gguf.MODEL_ARCH.GEMMA3,
    "GraniteMoeHybridForCausalLM": gguf.MODEL_ARCH.GRANITE_MOE,  # with attention in every layer, as `folding` makes it
    "GraniteMoeSharedForCausalLM": gguf.MODEL_ARCH.GRANITE_MOE,
    "Qwen2MoeForCausalLM": gguf.MODEL_ARCH.QWEN2MOE,
    "Glm4MoeForCausalLM": gguf.MODEL_ARCH.GLM4_MOE,
}
INTERLEAVED = ("LlamaForCausalLM", "MistralForCausalLM", "GraniteMoeHybridForCausalLM", "GraniteMoeSharedForCausalLM")
"""Architectures whose rows of q and k are reordered. Rope rotates pairs of dimensions: here llama.cpp pairs neighbours (0 with
1), and transformers pairs the two halves of a head (0 with width / 2)."""
ROPE_FACTORS = (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.QWEN2, gguf.MODEL_ARCH.QWEN3, gguf.MODEL_ARCH.GRANITE_MOE)
"""Architectures of llama.cpp that read rope_freqs.weight. All others would silently compute plain rope."""
GEMMA_PERIOD = {"Gemma2ForCausalLM": 2, "Gemma3ForCausalLM": 6}
"""Class -> n: in llama.cpp every n-th layer has full attention and all others have a sliding window."""

KEYS = {
    gguf.MODEL_ARCH.GEMMA2: {
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    gguf.MODEL_ARCH.GRANITE_MOE: {
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_shared_feed_forward_length": "shared_intermediate_size",
        "attention_scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    },
    gguf.MODEL_ARCH.QWEN2MOE: {
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    },
    gguf.MODEL_ARCH.GLM4_MOE: {
        "expert_count": "n_routed_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_count": "n_shared_experts",
        "expert_weights_scale": "routed_scaling_factor",
        "expert_weights_norm": "norm_topk_prob",
    },
}
"""Metadata of some architectures only. Architecture -> {<name> in GGUFWriter.add_<name>: key in transformers' config}."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the GGUF file, with its name there and its shape in transformers' order (rows first)."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], Tensor]
    """Reads the tensor from the checkpoint, so that only one is in memory at a time."""


def obstacle(config: Any) -> str:
    """Explain why llama.cpp would not compute the same as transformers with this config (a dict); empty text when it would."""
    name = config["architectures"][0]
    if name not in ARCHITECTURES:
        return f"llama.cpp has no architecture for {name}"
    act = config.get("hidden_activation") or config["hidden_act"]
    # llama.cpp fixes the activation for each architecture: GELU (tanh) in Gemma, SiLU in all others.
    if (act == "silu") == name.startswith("Gemma") or act not in ("silu", "gelu_pytorch_tanh"):
        return f"llama.cpp computes another activation than {act} for this architecture"
    rope = rope_of(config)
    if rope["rope_type"] not in ("default", "llama3", "linear"):
        return f"rope of type {rope['rope_type']} is not written to GGUF"
    if rope["rope_type"] == "llama3" and ARCHITECTURES[name] not in ROPE_FACTORS:
        return f"llama.cpp's {gguf.MODEL_ARCH_NAMES[ARCHITECTURES[name]]} has no llama3 rope"
    if name in GEMMA_PERIOD:
        period = GEMMA_PERIOD[name]
        kinds = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(config["num_hidden_layers"])]
        if config["layer_types"] != kinds:
            return f"llama.cpp expects full attention in every layer number divisible by {period}, and nowhere else"
        # llama.cpp derives these from the architecture and the head width, so the file cannot say otherwise.
        if config["query_pre_attn_scalar"] != head_dim(config):
            return "attention scores that are not divided by the root of the head's width are not written"
        softcaps = (config.get("attn_logit_softcapping"), config.get("final_logit_softcapping"))
        if (None in softcaps) if name == "Gemma2ForCausalLM" else (softcaps != (None, None)):
            return "llama.cpp expects soft caps in Gemma 2 and none in Gemma 3"
        if config.get("use_bidirectional_attention"):
            return "attention to later tokens is not written"
    elif config.get("sliding_window") and config.get("use_sliding_window", True):
        return "llama.cpp has no sliding-window attention for this architecture"
    return ""


def head_dim(config: Any) -> int:
    """Width of an attention head. Configs without `head_dim` mean hidden size / number of heads."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def rope_of(config: Any) -> dict[str, Any]:
    """The rope parameters of a config; those of full attention where layers have different ones (Gemma 3)."""
    rope = config["rope_parameters"]
    return rope.get("full_attention", rope)


def write(checkpoint: Path, out: Path, precision: Precision, pre: str | None = None, title: str | None = None) -> None:
    """Write the GGUF file `out` from a checkpoint folder. Matrices get `precision`; vectors and routers stay in float32.

    `pre` is llama.cpp's name of the pre-tokenizer, needed where langext does not recognise it. `title` is the model name that
    programs show. Raises ConfigError when llama.cpp would not compute the same as transformers.
    """
    config = read_json(checkpoint / "config.json")
    if reason := obstacle(config):
        raise ConfigError(f"GGUF: {reason}")
    architecture = ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[architecture])
    if title:
        writer.add_name(title)
    _metadata(writer, config, architecture)
    writer.add_file_type(FILE_TYPES[precision])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    vocabulary.add(writer, checkpoint, config, pre)
    entries = list(_entries(checkpoint, config, architecture))
    # The list of all tensors stands in the file before their data, so sizes are computed here without loading anything.
    for entry in entries:
        kind = _kind(entry, precision)
        size = gguf.quant_shape_to_byte_shape(entry.shape, kind)
        writer.add_tensor_info(entry.name, size, np.dtype(np.uint8), int(np.prod(size)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries:
        values = entry.load().float().contiguous().numpy()
        assert values.shape == entry.shape, entry.name
        writer.write_tensor_data(gguf.quantize(values, _kind(entry, precision)))
    writer.close()


def _kind(entry: Entry, precision: Precision) -> Kind:
    """How a tensor is stored. A Q8_0 block covers 32 values of a row, so rows of another length are stored as F16."""
    # Routers are small, and rounding them would send tokens to other experts.
    if len(entry.shape) == 1 or "ffn_gate_inp" in entry.name:
        return Kind.F32
    if precision == "q8_0" and entry.shape[-1] % gguf.GGML_QUANT_SIZES[Kind.Q8_0][0]:
        return Kind.F16
    return KINDS[precision]


def _metadata(writer: gguf.GGUFWriter, config: Any, architecture: gguf.MODEL_ARCH) -> None:
    rope = rope_of(config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if architecture in (gguf.MODEL_ARCH.GEMMA2, gguf.MODEL_ARCH.GEMMA3):
        writer.add_sliding_window(config["sliding_window"])
    if "sliding_attention" in config["rope_parameters"]:
        writer.add_rope_freq_base_swa(config["rope_parameters"]["sliding_attention"]["rope_theta"])
    for name, key in KEYS.get(architecture, {}).items():
        getattr(writer, f"add_{name}")(config[key])
    # The folded model has experts in every layer, and none of the extra layers with which GLM 4.5 predicts several tokens.
    if architecture == gguf.MODEL_ARCH.GLM4_MOE:
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_leading_dense_block_count(0)
        writer.add_nextn_predict_layers(0)


def _entries(checkpoint: Path, config: Any, architecture: gguf.MODEL_ARCH) -> Iterator[Entry]:
    """Yield all tensors under their GGUF names. Only names and shapes are read here; `load` reads the values."""
    files, shapes = {}, {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        for name, shape in _shapes(path).items():
            files[name], shapes[name] = path, shape
    known = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    if rope_of(config)["rope_type"] == "llama3":
        factors = _rope_factors(config)
        yield Entry("rope_freqs.weight", tuple(factors.shape), lambda: factors)
    for name, shape in shapes.items():
        if ".experts." in name and ".experts.0." not in name:
            continue  # written together with the first expert
        if ".experts.0." in name:
            yield from _stacked(name, shape, files)
        elif name.endswith(("input_linear.weight", "shared_mlp.output_linear.weight", "block_sparse_moe.output_linear.weight")):
            yield from _granite(name, shape, files[name])
        else:
            yield _plain(name, shape, files[name], known, config)


def _plain(name: str, shape: tuple[int, ...], path: Path, known: Any, config: Any) -> Entry:
    """A tensor that becomes one tensor of the file, perhaps with reordered rows, flattened, or plus 1 (Gemma's norms)."""
    # Named here, because gguf's own map does not have all of them.
    special = {
        "block_sparse_moe.router.layer.weight": "ffn_gate_inp.weight",
        "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
        "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    }
    end = next((end for end in special if name.endswith(end)), None)
    target = f"blk.{_layer(name)}.{special[end]}" if end else known.get_name(name, try_suffixes=(".weight", ".bias"))
    if target is None:
        raise ConfigError(f"GGUF: llama.cpp's {config['architectures'][0]} has no place for {name}")
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    part = name.split(".")[-2]
    turned = config["architectures"][0] in INTERLEAVED and part in heads
    # Gemma multiplies by 1 + weight, llama.cpp by the weight in the file.
    plus = config["architectures"][0].startswith("Gemma") and part.endswith("norm")
    flat = target.endswith("ffn_gate_inp_shexp.weight")

    def load() -> Tensor:
        value = _read(path, name)
        if turned:
            value = _interleave(value, heads[part])
        if flat:
            value = value.reshape(-1)
        return value.float() + 1 if plus else value

    return Entry(target, shape[-1:] if flat else shape, load)


def _stacked(name: str, shape: tuple[int, ...], files: dict[str, Path]) -> Iterator[Entry]:
    """One matrix of all experts of a layer, stacked: (experts, rows, columns). `name` is that of the first expert."""
    names = []
    while (expert_name := name.replace(".experts.0.", f".experts.{len(names)}.")) in files:
        names.append(expert_name)
    part = name.split(".")[-2].removesuffix("_proj")
    yield Entry(
        f"blk.{_layer(name)}.ffn_{part}_exps.weight",
        (len(names), *shape),
        lambda: torch.stack([_read(files[expert_name], expert_name) for expert_name in names]),
    )


def _granite(name: str, shape: tuple[int, ...], path: Path) -> Iterator[Entry]:
    """Split Granite's input matrices: gate and up rows are one tensor in transformers and two tensors in GGUF."""
    kind = "shexp" if "shared_mlp" in name else "exps"
    at = f"blk.{_layer(name)}.ffn"
    if "output_linear" in name:
        yield Entry(f"{at}_down_{kind}.weight", shape, lambda: _read(path, name))
        return
    half = (*shape[:-2], shape[-2] // 2, shape[-1])
    yield Entry(f"{at}_gate_{kind}.weight", half, lambda: _read(path, name).chunk(2, dim=-2)[0])
    yield Entry(f"{at}_up_{kind}.weight", half, lambda: _read(path, name).chunk(2, dim=-2)[1])


def _interleave(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head (or the entries of a bias): one of the first half, one of the second half, in turns."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _rope_factors(config: Any) -> Tensor:
    """(head width / 2,) factors by which Llama 3's rope divides the frequencies of plain rope."""
    from transformers import CONFIG_MAPPING
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    # From transformers' own function, so that both programs compute with the same numbers.
    transformers_config = CONFIG_MAPPING[config["model_type"]](**config)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](transformers_config, "cpu")
    width = head_dim(config)
    plain = rope_of(config)["rope_theta"] ** -(torch.arange(0, width, 2).float() / width)
    return plain / scaled


def _layer(name: str) -> int:
    return int(name.split(".layers.")[1].split(".")[0])


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)
