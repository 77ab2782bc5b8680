"""All that the engine is told, and what DeepSpeed is told of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import distributed

from langext.training import deepspeed_file


@dataclass(frozen=True)
class EngineSettings:
    """All settings of the engine."""

    file: str
    """Name of the DeepSpeed configuration, for messages."""
    deepspeed: dict[str, Any]
    """The DeepSpeed configuration, as `deepspeed_file.read` returns it."""
    micro_batch: int
    accumulate: int
    """Micro-batches that each process computes in one optimizer step."""
    clip: float
    """Gradient norm above which gradients are scaled down."""
    bf16: bool
    betas: tuple[float, float]
    weight_decay: float
    """AdamW's weight decay, for matrices only, gates excepted: there is no reason to pull a gain or a gate towards zero."""
    ema: float | None
    """Decay per step of the running average of the weights; None keeps no average."""
    monitor: Sequence[str]
    """Where DeepSpeed's monitor reports to: tensorboard, wandb."""
    out: Path
    """Folder in which the monitor writes."""

    @property
    def layout(self) -> str:
        """Name of the layout of a checkpoint, `CheckpointRecord.layout`."""
        kind = "-fp32" if not self.bf16 else "-fp32-sums" if self.sums_in_fp32 else ""
        return f"zero{deepspeed_file.zero_stage(self.deepspeed)}{kind}"

    @property
    def sums_in_fp32(self) -> bool:
        """True when gradients of several micro-batches are summed in float32, because a sum in bf16 loses small gradients."""
        return self.bf16 and self.accumulate > 1

    def for_deepspeed(self, *, universal: bool) -> dict[str, Any]:
        """The complete DeepSpeed configuration. `universal`: the checkpoint that will be loaded has the universal form."""
        whole = self.deepspeed | {
            "train_batch_size": self.micro_batch * self.accumulate * distributed.get_world_size(),
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": self.accumulate,
            # Under ZeRO 0 `Engine.step` clips, because it needs the norm anyway.
            "gradient_clipping": self.clip if deepspeed_file.zero_stage(self.deepspeed) else 0.0,
            "bf16": {"enabled": self.bf16},
            "checkpoint": {"load_universal": universal},
            "steps_per_print": 10**9,  # langext prints its own progress
            # The optimizer is torch's AdamW, also where its states are in the machine's memory.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "tensorboard": {
                "enabled": "tensorboard" in self.monitor, "output_path": str(self.out), "job_name": "tensorboard",
            },
            "wandb": {"enabled": "wandb" in self.monitor, "project": "langext", "group": self.out.parent.name},
        }  # fmt: skip
        return whole | ({"data_types": {"grad_accum_dtype": "fp32"}} if self.sums_in_fp32 else {})
