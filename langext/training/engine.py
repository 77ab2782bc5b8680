"""The one seam to DeepSpeed: start, step, save, load. Used for one CPU process and for many GPUs alike.

DeepSpeed keeps float32 masters of what learns, partitions them (and, under ZeRO 3, the model) and clips gradients; nothing else
is left to it.
"""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

from langext import ready
from langext.architectures import vocabulary
from langext.spec import ConfigError
from langext.training import checkpoints

OURS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "optimizer", "scheduler", "bf16", "fp16", "data_types", "checkpoint", "tensorboard", "wandb",
)  # fmt: skip
PATIENCE = timedelta(minutes=30)
"""How long processes wait for one another: what one process does alone, such as converting a checkpoint, takes less."""
BYTES_PER_TRAINABLE = 14
"""Of a checkpoint: two of weights and twelve of the float32 master and AdamW's moments."""


class NotFinite(Exception):
    """A loss was infinite or not a number. The weights are as they were before the step."""


def read_deepspeed(name: str) -> dict[str, Any]:
    """Read a DeepSpeed configuration: one that comes with langext, or a file. Raises ConfigError for what the stage decides."""
    at = ("runtime", "deepspeed")
    path = ready.find("deepspeed", name, ".json", at)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {error.lineno}: not valid JSON: {error.msg}", at=at) from None
    if clash := [key for key in OURS if key in config]:
        raise ConfigError(f"{path}: {', '.join(clash)} must not be set here; the train stage decides it", at=at)
    if zero_stage(config) not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3 (got {zero_stage(config)})", at=at)
    return config


def zero_stage(config: dict[str, Any]) -> int:
    """The ZeRO stage of a DeepSpeed configuration."""
    return config.get("zero_optimization", {}).get("stage", 0)


def sums_in_fp32(bf16: bool, accumulate: int) -> bool:
    """Are gradients of several micro-batches summed in float32? A sum in bf16 would lose the small ones."""
    return bf16 and accumulate > 1


def layout(config: dict[str, Any], bf16: bool, accumulate: int) -> str:
    """Which of DeepSpeed's layouts a checkpoint has: under ZeRO 1 it takes another optimizer for sums in float32."""
    return f"zero{zero_stage(config)}" + ("-fp32-sums" if sums_in_fp32(bf16, accumulate) else "")


def join_processes() -> torch.device:
    """Join the process group of the launcher, or make one of a single process. Returns this process's device."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # imports slowly and looks at DS_ACCELERATOR while it does

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # its warnings are about its own internals
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls, not ours
    # Its shared-memory all-reduce is compiled on first use and needs a C++ compiler; gloo does the same work without one.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" not in os.environ:  # a file instead of a port, so that two runs on one machine cannot meet
        store = Path(tempfile.mkdtemp(prefix="langext-")) / "store"
        distributed.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)
        os.environ.setdefault("LOCAL_RANK", "0")
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=PATIENCE)
    if backend == "gloo":
        # Else DeepSpeed converts every gradient to float64 for its norm: a twentieth of a step.
        accelerator: Any = deepspeed.accelerator.get_accelerator()
        accelerator.is_fp64_supported = lambda: False
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


@dataclass(frozen=True)
class EngineSettings:
    """What the engine is told."""

    deepspeed: dict[str, Any]
    """The DeepSpeed configuration, as `read_deepspeed` gives it."""
    micro_batch: int
    accumulate: int
    """Micro-batches of a process in one optimizer step."""
    clip: float
    """Gradient norm above which gradients are scaled down."""
    bf16: bool
    betas: tuple[float, float]
    weight_decay: float
    """Of matrices alone: a gain or a gate has no reason to go to zero."""
    ema: float | None
    """Decay of a running average of the weights; None keeps none."""
    monitor: Sequence[str]
    """What DeepSpeed's monitor reports to."""
    out: Path
    """Folder for the monitor."""

    @property
    def layout(self) -> str:
        """Which of DeepSpeed's layouts a checkpoint has: under ZeRO 1 it takes another optimizer for sums in float32."""
        return f"zero{zero_stage(self.deepspeed)}" + ("-fp32-sums" if self.sums_in_fp32 else "")

    @property
    def sums_in_fp32(self) -> bool:
        """Are gradients of several micro-batches summed in float32? A sum in bf16 would lose the small ones."""
        return self.bf16 and self.accumulate > 1

    def for_deepspeed(self, *, universal: bool) -> dict[str, Any]:
        """The whole configuration. `universal` says that the checkpoint to be loaded has DeepSpeed's universal form."""
        whole = self.deepspeed | {
            "train_batch_size": self.micro_batch * self.accumulate * distributed.get_world_size(),
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": self.accumulate,
            "gradient_clipping": self.clip if zero_stage(self.deepspeed) else 0.0,
            "bf16": {"enabled": self.bf16},
            "checkpoint": {"load_universal": universal},
            "steps_per_print": 10**9,
            "tensorboard": {
                "enabled": "tensorboard" in self.monitor, "output_path": str(self.out), "job_name": "tensorboard",
            },
            "wandb": {"enabled": "wandb" in self.monitor, "project": "langext", "group": self.out.parent.name},
        }  # fmt: skip
        return whole | ({"data_types": {"grad_accum_dtype": "fp32"}} if self.sums_in_fp32 else {})


class Engine:
    """A model under DeepSpeed with AdamW on its trainable parameters."""

    def __init__(
        self, objective: Any, net: Any, settings: EngineSettings, peak: Callable[[str], float], *, universal: bool = False
    ):
        """`peak` gives the peak learning rate of a parameter by its name; `universal` as in `EngineSettings.for_deepspeed`."""
        import deepspeed

        groups: dict[tuple[float, float], list[Any]] = {}
        for name, parameter in net.named_parameters():
            if parameter.requires_grad:
                key = (peak(name), settings.weight_decay if parameter.ndim > 1 else 0.0)
                groups.setdefault(key, []).append(parameter)
        self.groups = list(groups)
        optimizer = torch.optim.AdamW(
            [{"params": members} for members in groups.values()], lr=0.0, betas=settings.betas, weight_decay=0.0, fused=True
        )
        self.net, self.settings, self.ema = net, settings, settings.ema
        self.zero_stage = zero_stage(settings.deepspeed)
        self.deepspeed: Any
        whole = settings.for_deepspeed(universal=universal)
        self.deepspeed, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=whole)
        if self.zero_stage == 3:  # the loss multiplies by the head without calling it as a module
            for parameter in vocabulary.head_parameters(net):
                deepspeed.zero.register_external_parameter(objective, parameter)
        self.average = [weights.detach().clone() for weights in self._flat()] if self.ema else []

    def __call__(self, *inputs: Any) -> Any:
        """Forward pass of the objective."""
        return self.deepspeed(*inputs)

    def step(self, losses: Iterable[Tensor], factor: float) -> float:
        """One optimizer step at `factor` of the peak rates over the micro-batch losses that an iterable yields. Returns the
        gradient's norm before clipping. Raises NotFinite, in every process, before anything is changed.
        """
        for group, (peak, decay) in zip(self.deepspeed.optimizer.param_groups, self.groups, strict=True):
            group["lr"], group["weight_decay"] = peak * factor, decay
        norm, odd = None, torch.zeros((), dtype=torch.bool, device=self.deepspeed.device)
        for number, loss in enumerate(losses, start=1):
            self.deepspeed.backward(loss)
            odd |= ~torch.isfinite(loss.detach())
            if number == self.settings.accumulate:
                if self.agree(int(odd)):
                    raise NotFinite
                if not self.zero_stage:  # all gradients are here, and DeepSpeed would not tell their norm
                    norm = torch.nn.utils.clip_grad_norm_(self._learning().values(), self.settings.clip)
            self.deepspeed.step()
        if self.ema:
            for average, weights in zip(self.average, self._flat(), strict=True):
                average.lerp_(weights.detach(), 1 - self.ema)
        return float(self.deepspeed.get_global_grad_norm() if norm is None else norm)

    def agree(self, value: int) -> int:
        """The largest `value` of any process, so that all of them decide alike."""
        if distributed.get_world_size() == 1:
            return value
        shared = torch.tensor([value], device=self.deepspeed.device)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return int(shared)

    def from_first(self, value: Any) -> Any:
        """Rank 0's `value` in every process, so that measurements that differ in the last bit cannot part them."""
        shared = [value]
        distributed.broadcast_object_list(shared)
        return shared[0]

    def everywhere(self, values: list[Any]) -> list[list[Any]]:
        """The `values` of all processes."""
        found: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(found, values)
        return found

    def report(self, tokens: int, figures: dict[str, float]) -> None:
        """Hand figures to DeepSpeed's monitor, if there is one."""
        if self.deepspeed.monitor.enabled and distributed.get_rank() == 0:
            self.deepspeed.monitor.write_events([(name, value, tokens) for name, value in figures.items()])

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Under ZeRO 3: a context in which the head is whole in every process, also after a module that shares it has run."""
        if self.zero_stage != 3:
            yield
            return
        import deepspeed

        head, reader = vocabulary.head_parameters(self.net), -1  # no module has this id
        with deepspeed.zero.GatheredParameters(head):
            for parameter in head:
                parameter.ds_active_sub_modules.add(reader)  # type: ignore[attr-defined]
            try:
                yield
            finally:
                for parameter in head:
                    parameter.ds_active_sub_modules.discard(reader)  # type: ignore[attr-defined]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the model's weights are their running average, where one is kept."""
        if not self.ema:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, weights in zip(self.average, self._flat(), strict=True):
            kept = weights.detach().clone()
            weights.copy_(average)
            average.copy_(kept)
        if self.zero_stage:
            for name, master in self._masters():
                self._learning()[name].copy_(master)

    def masters(self) -> dict[str, Tensor]:
        """The trainable parameters in full, in float32 where DeepSpeed keeps masters; on rank 0, {} on the others."""
        kept = {}
        for name, master in self._masters():  # every process takes part in gathering them
            if distributed.get_rank() == 0:
                kept[name] = master.detach().cpu().clone()
        return kept

    def _masters(self) -> Iterator[tuple[str, Any]]:
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self._learning().items():
            yield name, parameter.detach() if not self.zero_stage else safe_get_full_fp32_param(parameter)

    def _learning(self) -> dict[str, Any]:
        return {name: p for name, p in self.net.named_parameters() if p.requires_grad}

    def _flat(self) -> list[Tensor]:
        """This process's part of the float32 weights that the optimizer updates. Not for ZeRO 3."""
        inner = self.deepspeed.optimizer.optimizer if self.zero_stage else self.deepspeed.optimizer
        return [weights for group in inner.param_groups for weights in group["params"]]

    def save(self, kept: checkpoints.Checkpoints, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint of `step`: what learns, the optimizer, the running average and `state`."""
        size = sum(getattr(p, "ds_numel", p.numel()) for p in self._learning().values())
        kept.write(step, lambda folder: self._fill(folder, state), self.settings.layout, size * BYTES_PER_TRAINABLE)

    def _fill(self, folder: Path, state: dict[str, Any]) -> None:
        self.deepspeed.save_checkpoint(
            str(folder),
            tag=checkpoints.STATE,
            client_state={"langext": state},
            exclude_frozen_parameters=True,
            save_latest=False,
        )
        if self.ema:
            with self.averaged():
                average = self.masters()
            if average:
                save_file({name: tensor.contiguous() for name, tensor in average.items()}, folder / checkpoints.AVERAGE)

    def load(self, checkpoint: Path, state_from: Path) -> dict[str, Any]:
        """Go back to a checkpoint and return its `state`. `state_from` is the checkpoint itself or its universal form."""
        if self.ema:
            average = load_file(checkpoint / checkpoints.AVERAGE)
            self._set(average)
            self.average = [weights.detach().clone() for weights in self._flat()]
        _, client = self.deepspeed.load_checkpoint(str(state_from), tag=checkpoints.STATE, load_module_strict=False)
        return client["langext"]

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self._learning().items():
            value = values[name].to(parameter.device)
            if self.zero_stage:
                safe_set_full_fp32_param(parameter, value)
            else:
                parameter.copy_(value)
