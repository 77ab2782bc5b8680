"""The GPUs of this machine that torch can compute on, and why it cannot where there are some."""

import os
import shutil
import warnings
from pathlib import Path

from langext.errors import one_line

DRIVER = Path("/proc/driver/nvidia/version")
"""There where NVIDIA's driver is loaded, in containers too."""
LONGEST = 200
"""Letters of torch's own message that are shown."""


def gpus() -> int:
    """How many there are; 0 where torch cannot compute on those that are there."""
    import torch

    with warnings.catch_warnings(action="ignore"):  # `unused_gpus` says it
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def unused_gpus() -> str:
    """Why torch computes on none although NVIDIA's driver is here; empty where it does, and where they are hidden from it."""
    import torch

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if gpus() or hidden or not (DRIVER.exists() or shutil.which("nvidia-smi")):
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"NVIDIA's driver is here, and torch {torch.__version__} is built without CUDA; install torch for CUDA, as "
            "https://pytorch.org/get-started/locally says"
        )
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return (
            f"NVIDIA's driver is here, and torch {torch.__version__} cannot use it: {one_line(error):.{LONGEST}}; a container "
            "needs --gpus all; with a driver that is too old install torch for the CUDA that nvidia-smi names"
        )
    return ""
