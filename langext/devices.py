"""The GPUs of this machine that torch can compute on, and why it cannot where there are some."""

import os
import shutil
import subprocess
import warnings
from pathlib import Path

from langext.errors import one_line

DRIVER = Path("/proc/driver/nvidia/version")
"""There where the kernel has NVIDIA's module, in containers too."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
HIDDEN = ("", "-1", "none", "NoDevFiles")
"""Values of this variable by which a user, or Slurm, takes GPUs away."""


def gpus() -> int:
    """How many there are; 0 where torch cannot compute on those that are there."""
    import torch

    with warnings.catch_warnings(action="ignore"):  # `unused_gpus` says it
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def unused_gpus() -> str:
    """Why torch computes on none although the machine has some; empty where it does, and where they are hidden from it."""
    import torch

    visible = os.environ.get(VISIBLE)
    if gpus() or visible in HIDDEN or not (DRIVER.exists() or _listed()):
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"the machine has NVIDIA's driver, and torch {torch.__version__} is built without CUDA; install torch for CUDA, as "
            f"https://pytorch.org/get-started/locally says, or set {VISIBLE}= if the CPU is meant"
        )
    if visible is not None:
        return f"{VISIBLE} is {visible}, and leaves torch none of the GPUs of the machine"
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return (
            f"the machine has NVIDIA's driver, and torch {torch.__version__} finds no GPU: {one_line(error)}; a container "
            "needs --gpus all, a Slurm job --gpus, and a driver that is too old a torch for the CUDA that nvidia-smi names"
        )
    return ""


def _listed() -> bool:
    """Whether nvidia-smi lists a GPU: under WSL the kernel has no module."""
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.startswith("GPU")
