"""What a stage may know and touch while it runs: its context, and where and how fast it runs."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field

from langext.spec import ConfigError, Spec


class Runtime(Spec):
    """Where and how fast a stage runs. Never part of its identity: change it and nothing runs again."""

    gpus: int = Field(default=0, ge=0)
    """Processes to launch on each node, one per GPU. 0 runs on the CPU."""
    cpu_processes: int = Field(default=1, ge=1)
    """Processes when `gpus` is 0. More than one only helps when there are cores to spare."""
    nodes: int = Field(default=1, ge=1)
    """Machines to train on. More than one needs `hostfile`."""
    hostfile: Path | None = None
    """DeepSpeed host file, one `name slots=N` per line; see configs/hostfile.example."""
    deepspeed: str = "cpu"
    """DeepSpeed configuration: one that comes with langext (cpu, one_gpu, zero2, zero3, zero3_offload, multinode), or a JSON
    file. Batch sizes, clipping and precision come from the stage and must not be in it."""
    micro_batch: int = Field(default=4, ge=1)
    """Sequences per process in one forward pass. Raise it until memory is full; results do not change."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer and compute the rest again in the backward pass: less memory, more time."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Which attention training computes with; auto is what transformers takes for the base, sdpa for most.
    flash_attention_2 needs the package flash-attn and a GPU."""
    compile: bool = False
    """Compile each block with torch.compile: a wait at the start, then faster steps on GPUs. Needs a C++ compiler on a CPU."""
    monitor: list[Literal["tensorboard", "wandb"]] = []
    """Where DeepSpeed's monitor sends the figures of training besides metrics.jsonl. wandb asks for a login of its own."""
    workers: int = Field(default=1, ge=1)
    """Processes for reading and filtering text."""

    def check(self) -> None:
        """Raise ConfigError for machines or GPUs that are not there."""
        if self.nodes > 1 and self.hostfile is None:
            raise ConfigError("runtime.nodes > 1 needs runtime.hostfile", at=("runtime", "nodes"))
        if self.nodes > 1 and not self.gpus:
            raise ConfigError("runtime.nodes > 1 needs runtime.gpus, the number on each node", at=("runtime", "gpus"))
        if self.hostfile and not self.hostfile.is_file():
            raise ConfigError(f"runtime.hostfile: {self.hostfile}: no such file", at=("runtime", "hostfile"))
        for name in self.monitor:
            if find_spec(name) is None:
                raise ConfigError(f"runtime.monitor: {name} is not installed; pip install {name}", at=("runtime", "monitor"))
        if self.attention == "flash_attention_2" and (not self.gpus or find_spec("flash_attn") is None):
            raise ConfigError(
                "runtime.attention: flash_attention_2 needs a GPU and the package flash-attn", at=("runtime", "attention")
            )
        if self.gpus and self.nodes == 1:
            import torch

            if self.gpus > torch.cuda.device_count():
                here = torch.cuda.device_count()
                raise ConfigError(f"runtime.gpus: {self.gpus} asked for, {here} on this machine", at=("runtime", "gpus"))

    @property
    def processes(self) -> int:
        """Processes in all, over every node."""
        return (self.gpus or self.cpu_processes) * self.nodes


@dataclass(frozen=True)
class Context:
    """What a stage may know and touch besides its own fields and inputs."""

    out: Path
    """The stage's own folder, the only place it writes to; but for `tokens`."""
    seed: int
    language: str
    """The new language, FLORES style."""
    original_languages: tuple[str, ...]
    """The languages that the model must not lose."""
    tokens: Path = Path()
    """Folder of text as token ids, which every stage of the run, and of other runs, may share."""
    base_model: str = ""
    """As the pipeline names it; known while planning, empty while a stage runs."""
    rank: int = 0
    world_size: int = 1
    summary: list[Spec] = field(default_factory=list)
    """What the stage has to report: the last entry goes into the manifest."""

    @property
    def languages(self) -> tuple[str, ...]:
        """New language first, then the original ones."""
        return (self.language, *self.original_languages)

    def report(self, summary: Spec) -> None:
        """Put this into the stage's manifest; see `langext.summaries`."""
        self.summary.append(summary)
