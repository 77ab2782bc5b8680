"""Floating-point operations of training, and what devices can do."""

from typing import Any

# Dense bf16 tensor-core peaks in FLOP/s, from the vendors' data sheets. The first name that is part of the device's counts.
PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12, "MI300X": 1307e12,
}  # fmt: skip


def per_token(total: int, trainable: int, config: Any, length: int) -> float:
    """FLOPs of one training token.

    2 P forward, 2 P backward through all weights, 2 more for each weight that learns (https://arxiv.org/abs/2001.08361), and
    12 L D T for attention over `length` tokens (https://arxiv.org/abs/2204.02311). Counts the backward pass through every
    layer, also where a method learns in the last ones alone. Looking up an untied embedding is no product and not counted.
    """
    if not config.tie_word_embeddings:
        total -= config.vocab_size * config.hidden_size
    return 4 * total + 2 * trainable + 12 * config.num_hidden_layers * config.hidden_size * length


def peak(device_name: str) -> float | None:
    """Of one device in bf16; None when it is not known."""
    return next((flops for name, flops in PEAKS.items() if name in device_name), None)
