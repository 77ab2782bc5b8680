"""How many floating-point operations (FLOPs) training needs, and how many a device can do in a second."""

from typing import Any

# Dense bf16 tensor-core peaks in FLOP/s, from the vendors' data sheets. The first entry that is part of a device's name counts,
# so "H100 PCIe" stands before "H100".
PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12, "MI300X": 1307e12,
}  # fmt: skip


def per_token(total: int, trainable: int, config: Any, length: int) -> float:
    """FLOPs for one training token. `total` and `trainable` count parameters, `length` is the sequence length in tokens.

    Per weight: 2 forward, 2 backward, and 2 more if it is trainable (https://arxiv.org/abs/2001.08361). Attention adds
    12 L D T (L layers, D width, T = `length`; https://arxiv.org/abs/2204.02311). The backward pass counts for every layer, even
    if a method trains only the last ones. An untied embedding is looked up, not multiplied, so it does not count.
    """
    if not config.tie_word_embeddings:
        total -= config.vocab_size * config.hidden_size
    return 4 * total + 2 * trainable + 12 * config.num_hidden_layers * config.hidden_size * length


def peak(device_name: str) -> float | None:
    """Peak FLOP/s of one device in bf16; None when the device is not in `PEAKS`."""
    return next((flops for name, flops in PEAKS.items() if name in device_name), None)
