"""How many floating-point operations (FLOPs) training needs, and how many a device can do in a second."""

import re
from typing import Any

PEAKS = {
    # https://www.nvidia.com/en-us/data-center/hgx, https://www.nvidia.com/en-us/data-center/gb200-nvl72
    "B200": 2250e12, "GB200": 2500e12,
    # https://www.nvidia.com/en-us/data-center/h100, .../h200 and .../grace-hopper-superchip
    "H100( SXM5)?( 80GB)?( HBM3)?": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H200": 989e12, "H200 NVL": 835e12,
    "GH200 .+": 989e12,
    # https://www.nvidia.com/en-us/data-center/a100 and the pages of .../a30, .../a40, .../a10
    "A100([ -].+)?": 312e12, "A30": 165e12, "A40": 149.7e12, "A10": 125e12,
    # https://www.nvidia.com/en-us/data-center/l40s, .../l40, .../l4
    "L40S": 362e12, "L40": 181e12, "L4": 121e12,
    # With sums in float32: https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf,
    # https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf,
    # https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf
    "RTX 5090": 209.5e12, "RTX 4090": 165.2e12, "RTX 3090": 71e12, "RTX A6000": 154.8e12,
    # https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html, .../mi325x.html
    "MI300X": 1307e12, "MI325X": 1307e12,
}  # fmt: skip
"""Name of a device, as a regular expression -> its peak in bf16, dense, in FLOP/s, from the vendors' pages. Where these count
with sparsity, it is half of what they say. The whole name must match: an L40 is no L4, a 4090 D or a laptop's 4090 no 4090, and
a slice of a GPU (MIG) no GPU. Devices without bf16 units (V100, T4) have no such peak."""
VENDOR = re.compile(r"^(NVIDIA|AMD|Tesla|GeForce|Instinct)\s+")


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
    """Peak FLOP/s of one device in bf16, by its name as the driver says it; None when the device is not in `PEAKS`."""
    name = device_name.strip()
    while VENDOR.match(name):
        name = VENDOR.sub("", name)
    return None if " MIG " in name else next((flops for model, flops in PEAKS.items() if re.fullmatch(model, name)), None)
