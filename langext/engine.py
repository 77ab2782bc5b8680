"""The one seam to DeepSpeed: start, step, save, load. Used for one CPU process and for many GPUs alike.

DeepSpeed keeps float32 masters of what learns, partitions them by ZeRO and clips gradients; nothing else is left to it.
"""

import json
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from langext.artifacts import list_files, read_json, sha256_file, write_json
from langext.spec import ConfigError

OURS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "optimizer", "scheduler", "bf16", "fp16",
)  # fmt: skip
LATEST = "latest.json"
PATIENCE = timedelta(hours=24)
"""How long processes wait for one another; the first one tokenises alone, and that can take hours."""


def read_deepspeed(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed configuration. Raises ConfigError for what the stage decides instead."""
    if not path.is_file():
        raise ConfigError(f"runtime.deepspeed: {path}: no such file")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {error.lineno}: not valid JSON: {error.msg}") from None
    clash = [key for key in OURS if key in config]
    if clash:
        raise ConfigError(f"{path}: {', '.join(clash)} must not be set here; the train stage decides it")
    if config.get("zero_optimization", {}).get("stage", 0) == 3:
        raise ConfigError(f"{path}: ZeRO stage 3 is not supported yet; use stage 0, 1 or 2")
    return config


def join_processes() -> torch.device:
    """Join the process group of the launcher, or make one of a single process. Returns this process's device."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # imports slowly and looks at DS_ACCELERATOR while it does

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its shared-memory all-reduce is compiled on first use and needs a C++ compiler; gloo does the same work without one.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" not in os.environ:  # a file instead of a port, so that two runs on one machine cannot meet
        store = Path(tempfile.mkdtemp(prefix="langext-")) / "store"
        distributed.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)
        os.environ.setdefault("LOCAL_RANK", "0")
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=PATIENCE)
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if backend == "nccl" else torch.device("cpu")


class Engine:
    """A model under DeepSpeed with AdamW on its trainable parameters."""

    def __init__(
        self, objective: Any, net: Any, config: dict[str, Any], *, micro_batch: int, accumulate: int, clip: float, bf16: bool,
        peak: Callable[[str], float], betas: tuple[float, float], weight_decay: float,
    ):  # fmt: skip
        """`peak` gives the peak learning rate of a parameter by its name."""
        import deepspeed

        groups: dict[float, list[Any]] = {}
        for name, parameter in net.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(peak(name), []).append(parameter)
        self.peaks = list(groups)
        optimizer = torch.optim.AdamW(
            [{"params": members} for members in groups.values()], lr=0.0, betas=betas, weight_decay=weight_decay, fused=True
        )
        world = distributed.get_world_size()
        full = config | {
            "train_batch_size": micro_batch * accumulate * world,
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulate,
            "gradient_clipping": clip,
            "bf16": {"enabled": bf16},
            "steps_per_print": 10**9,
        }
        runner: Any
        runner, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=full)
        self.deepspeed = runner
        self.net = net

    def __call__(self, *inputs: Any) -> Any:
        """Forward pass of the objective."""
        return self.deepspeed(*inputs)

    def step(self, losses: Any, factor: float) -> float:
        """One optimizer step at `factor` of the peak rates over the micro-batch losses that an iterator yields. Returns the
        gradient's norm.
        """
        for group, peak in zip(self.deepspeed.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        for loss in losses:
            self.deepspeed.backward(loss)
            self.deepspeed.step()
        norm = self.deepspeed.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def agree(self, value: int) -> int:
        """The largest `value` of any process, so that all of them stop at the same step when one was asked to."""
        if distributed.get_world_size() == 1:
            return value
        shared = torch.tensor([value], device=self.deepspeed.device)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return int(shared)

    def masters(self) -> dict[str, Tensor]:
        """The trainable parameters in full, in float32 where DeepSpeed keeps masters, on rank 0 as on every other."""
        from deepspeed.utils import safe_get_full_fp32_param

        full = {}
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad:
                master = safe_get_full_fp32_param(parameter)
                full[name] = (parameter.detach() if master is None else master).clone()
        return full

    def save(self, folder: Path, step: int, state: dict[str, Any]) -> None:
        """Save beside and rename: trainables, optimizer, random state and `state`. `latest.json` names the newest, last."""
        target, beside = folder / f"step-{step}", folder / f"step-{step}.tmp"
        if (folder / LATEST).is_file() and read_json(folder / LATEST)["step"] == step:
            return  # this very state is saved already; every process sees the same file
        rank = distributed.get_rank()
        if rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        distributed.barrier()
        self.deepspeed.save_checkpoint(
            str(beside), tag="state", client_state={"langext": state}, exclude_frozen_parameters=True, save_latest=False
        )
        torch.save(_random_state(), beside / f"random-{rank}.pt")
        distributed.barrier()
        if rank == 0:
            write_json(beside / "files.json", {"world_size": distributed.get_world_size(), "files": list_files(beside)})
            shutil.rmtree(target, ignore_errors=True)
            os.replace(beside, target)
            write_json(folder / LATEST, {"step": step})
            for old in folder.glob("step-*"):
                if old != target:
                    shutil.rmtree(old)
        distributed.barrier()

    def load(self, folder: Path) -> dict[str, Any] | None:
        """Go back to the newest checkpoint and return its `state`; None when there is none.

        Raises ConfigError for a damaged checkpoint or one made by another number of processes.
        """
        if not (folder / LATEST).is_file():
            return None
        target = folder / f"step-{read_json(folder / LATEST)['step']}"
        record = read_json(target / "files.json")
        world = distributed.get_world_size()
        if record["world_size"] != world:
            raise ConfigError(f"{target}: made by {record['world_size']} processes, now there are {world}; use as many again")
        for file in record["files"]:
            path = target / file["name"]
            if not path.is_file() or sha256_file(path) != file["sha256"]:
                raise ConfigError(f"{path}: missing or damaged; start the stage over with --redo")
        _, client = self.deepspeed.load_checkpoint(str(target), tag="state", load_module_strict=False)
        _set_random_state(torch.load(target / f"random-{distributed.get_rank()}.pt", weights_only=True))
        return client["langext"]


def _random_state() -> dict[str, Any]:
    numpy_state: Any = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]),
        "python": random.getstate(),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
