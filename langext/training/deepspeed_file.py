"""The DeepSpeed configuration that a stage names. Rule: what decides the result is the stage's, and must not be in the file."""

from typing import Any

from langext import ready
from langext.artifacts import read_object
from langext.errors import ConfigError, one_line
from langext.spec import near

ALLOWED = (
    "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "communication_data_type",
    "prescale_gradients", "gradient_predivide_factor", "disable_allgather", "aio", "activation_checkpointing", "comms_logger",
    "flops_profiler", "csv_monitor", "comet", "wall_clock_breakdown", "memory_breakdown", "dump_state",
)  # fmt: skip
"""Keys that may be in the file: how memory and communication are shared out, and what DeepSpeed tells of it."""
OURS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "optimizer", "scheduler", "bf16", "fp16", "data_types", "checkpoint", "tensorboard", "wandb",
)  # fmt: skip
"""Keys that must not be in the file: `EngineSettings.for_deepspeed` sets them, or langext does that work itself."""


def read(name: str) -> dict[str, Any]:
    """Read a DeepSpeed configuration: `name` is one that comes with langext, or a file.

    Raises ConfigError for invalid JSON, for a key that the train stage sets itself (`OURS`) or that is not `ALLOWED`, since
    DeepSpeed ignores what it does not know, and for an unknown ZeRO stage.
    """
    at = ("runtime", "deepspeed")
    path = ready.find("deepspeed", name, ".json", at)
    try:
        config = read_object(path)
    except ConfigError as error:
        raise ConfigError(str(error), at=at) from None
    if clash := [key for key in OURS if key in config]:
        raise ConfigError(f"{path}: {', '.join(clash)} must not be set here; the train stage decides it", at=at)
    for key in config:
        if key not in ALLOWED:
            raise ConfigError(f"{path}: {one_line(key)} is not a key that may be set here.{near(key, ALLOWED)}", at=at)
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(f"{path}: zero_optimization must hold settings (got {zero!r:.40})", at=at)
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3 (got {stage!r:.40})", at=at)
    return config


def zero_stage(config: dict[str, Any]) -> int:
    """The ZeRO stage of a DeepSpeed configuration; 0 when it names none."""
    return config.get("zero_optimization", {}).get("stage", 0)
