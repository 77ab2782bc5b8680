"""Bases by their shapes, and the figures that `langext plan` computes for them."""

from pathlib import Path
from typing import Any

from transformers import LlamaConfig, Qwen2Config

from langext.pipeline import estimate
from langext.pipeline.plan import Pipeline
from langext.spec import load
from langext.stages.extend import Extend
from langext.stages.train import Train

ROOT = Path(__file__).parent.parent.parent
LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8}
BASES: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": LLAMA | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": LLAMA | {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "Llama-3.1-70B": LLAMA | {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "tie_word_embeddings": False,
    },
    "Qwen2.5-1.5B": {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""The shapes in the config.json of each base on the hub."""


def config(name: str) -> Any:
    """The configuration of a base."""
    return (Qwen2Config if name.startswith("Qwen") else LlamaConfig)(**BASES[name])


def cookbook(name: str) -> str:
    """What the cookbook says of one of its pipelines, in the words of its table."""
    spec = load(ROOT / "pipelines" / "cookbook" / f"{name}.yaml", Pipeline)
    methods = [stage.method for stage in spec.stages if isinstance(stage, Extend)]
    if spec.base_model.startswith("runs/"):
        methods *= 2  # on top of a run of the same method
    base = "Llama-3.2-1B" if spec.base_model.startswith("runs/") else spec.base_model.split("/")[1].removesuffix("-Instruct")
    train = next(stage for stage in spec.stages if isinstance(stage, Train))
    numbers = estimate.size(config(base), methods, 0)
    cost = estimate.training(config(base), numbers, train)
    return (
        f"| {cost['tokens'] / 1e6:,.1f} M | {numbers.trainable / 1e6:,.0f} M of {numbers.total / 1e6:,.0f} M "
        f"| {cost['flops']:.1e} | {cost['memory'] / 2**30:.0f} GiB | {cost['disk'] / 2**30:.0f} GiB |"
    )


def sizing(base: str, method: Any, peak: float) -> str:
    """One row of the sizing table, from the column of what learns."""
    shape = config(base)
    numbers = estimate.size(shape, [method], 0)
    row = [f"{numbers.trainable / 1e6:,.0f} M of {numbers.total / 1e6:,.0f} M"]
    cost = {}
    for file, gpus, nodes in (("one_gpu", 1, 1), ("zero2", 8, 1), ("zero3", 8, 1), ("zero3", 8, 4)):
        runtime = {"gpus": gpus, "nodes": nodes, "hostfile": "hosts", "deepspeed": file, "micro_batch": 1}
        train = Train.model_validate({"uses": "train", "steps": 1, "lr": 1, "sequence_length": 2048, "batch_sequences": 1,
                                      "runtime": runtime})  # fmt: skip
        cost = estimate.training(shape, numbers, train)
        row.append(f"{cost['memory'] / 2**30:.0f}")
    per_token = cost["flops"] / cost["tokens"]
    row += [f"{per_token / 1e9:.1f}", f"{1e9 * per_token / peak / 3600:.0f}"]
    return " | ".join(row)
