"""What a stage may know and touch while it runs: its context, and where and how fast it runs."""

import codecs
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from langext import devices
from langext.errors import ConfigError, read_text, user_path
from langext.spec import Benchmarks, Spec

HOST = re.compile(r"(\w[\w.@:-]*)\s+slots=([1-9]\d{0,3})(\s+#.*)?", re.ASCII)
"""A line of a host file. DeepSpeed writes the name into a command of a shell, so nothing else than a name may be there."""
LAUNCHED = re.compile(
    r"(LOCAL_|GROUP_|ROLE_|NODE_|CROSS_)?(RANK|WORLD_SIZE)|(CROSS|LOCAL)_SIZE|MASTER_(ADDR|PORT)|ROLE_NAME|TORCHELASTIC_.*"
    r"|OMPI_(COMM_WORLD|UNIVERSE)_.*|PMI_.*|PMIX_.*|PALS_.*|MV2_COMM_WORLD_.*|SLURM_(PROCID|LOCALID|NTASKS|STEP_NUM_TASKS)"
)
"""Environment variables by which torchrun, DeepSpeed, mpirun and srun tell a process which of several it is."""


def without_launcher(env: Mapping[str, str]) -> dict[str, str]:
    """The environment variables `env` without those of a launcher: a process with these is alone, whoever started it."""
    return {name: value for name, value in env.items() if not LAUNCHED.fullmatch(name)}


def compiler() -> str | None:
    """Path of the C++ compiler that torch.compile takes for a CPU; None when it is not there."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def hosts(path: Path) -> dict[str, int]:
    """Name of each machine in a host file -> its number of slots, in their order there. Raises ConfigError, with the line."""
    at = ("runtime", "hostfile")
    path = user_path(path, "runtime.hostfile")
    if not path.is_file():
        raise ConfigError(f"runtime.hostfile: {path}: no such file", at=at)
    if path.read_bytes().startswith(codecs.BOM_UTF8):
        raise ConfigError(f"runtime.hostfile: {path}: begins with a byte order mark, which DeepSpeed takes for a name", at=at)
    found: dict[str, int] = {}
    for number, line in enumerate(read_text(path, "host names").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = HOST.fullmatch(text)
        if match is None:
            problem = f"expected name slots=N, N from 1 on (got {text!r:.60})"
            raise ConfigError(f"runtime.hostfile: {path}: line {number}: {problem}", at=at)
        if match[1] in found:
            raise ConfigError(f"runtime.hostfile: {path}: line {number}: {match[1]} is there twice", at=at)
        found[match[1]] = int(match[2])
    return found


class Slurm(Spec):
    """How tasks are submitted to a Slurm cluster. Run folder, sources and models must be on a disk that all machines share."""

    partition: str | None = Field(default=None, pattern=r"^[\w.,-]+$")
    """Partition to submit to; the cluster's own default when not given."""
    time: str = Field(default="24:00:00", pattern=r"^(\d+-)?\d+(:\d+){0,2}$")
    """Most time that one task may take, as sbatch reads it (hours:minutes:seconds). Lower it to be started earlier."""
    memory_gb: int = Field(default=4, ge=1)
    """Memory that each task reserves, in GiB."""
    options: dict[Annotated[str, Field(pattern=r"^[a-z-]+$")], Annotated[str, Field(pattern=r"^[^\n\r]*$")]] = {}
    """More options of sbatch, by their long names: {account: nlp, constraint: avx2}. An empty value is a switch."""

    def check(self) -> None:
        """Raise ConfigError when Slurm is not here, or would refuse such a job. Submits nothing."""
        for program in ("sbatch", "squeue", "scancel"):
            if shutil.which(program) is None:
                raise ConfigError(
                    f"runtime.executor: slurm needs the program {program}; start this run on a machine from which jobs are "
                    "submitted",
                    at=("runtime", "executor"),
                )
        asked = {"time": self.time, "mem-per-cpu": f"{self.memory_gb}G", **self.options}
        asked |= {"partition": self.partition} if self.partition else {}
        options = [f"--{key}={value}" if value else f"--{key}" for key, value in asked.items()]
        done = subprocess.run(["sbatch", "--test-only", *options, "--wrap", "true"], capture_output=True, text=True)
        if done.returncode:
            said = " ".join(done.stderr.replace("sbatch: error: ", "").split())
            raise ConfigError(f"runtime.slurm: sbatch refuses such a job: {said}", at=("runtime", "slurm"))


class Ray(Spec):
    """Where tasks are given to Ray. Run folder, sources and models must be on a disk that all machines share."""

    address: str = Field(default="auto", min_length=1)
    """Address of a Ray cluster that runs already; auto finds the one of this machine, local starts one on this machine."""
    memory_gb: float = Field(default=4.0, gt=0)
    """Memory that each task reserves, in GiB."""

    def check(self) -> None:
        """Raise ConfigError when Ray is not installed."""
        if find_spec("ray") is None:
            cure = "pip install '.[ray]' in langext's folder"
            raise ConfigError(f"runtime.executor: ray is not installed; {cure}", at=("runtime", "executor"))


class Runtime(Spec):
    """Where and how fast a stage runs. Never part of its identity: change it and nothing runs again."""

    gpus: int = Field(default=0, ge=0)
    """Processes to launch on each node, one per GPU. 0 runs on the CPU."""
    cpu_processes: int = Field(default=1, ge=1)
    """Processes on each node when `gpus` is 0. More than one only helps when there are cores to spare."""
    nodes: int = Field(default=1, ge=1)
    """Machines to train on. More than one needs `hostfile` or `launcher: srun`; without `gpus` they compute on their CPUs, to
    try it out."""
    launcher: Literal["deepspeed", "srun"] = "deepspeed"
    """What starts the processes: DeepSpeed's launcher, on other machines by pdsh and ssh, or srun, as tasks of a step of the
    Slurm job that langext runs in, which needs neither."""
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
    prefix_cache: Literal["auto", "off"] = "auto"
    """auto keeps the states that enter the first layer that learns beside the token files, and reads them instead of computing
    the layers below, when text is read again: in a later epoch, after a resume, or by another run of a sweep. Results stay the
    same; `langext plan` tells the disk it takes."""
    monitor: list[Literal["tensorboard", "wandb"]] = []
    """Where DeepSpeed's monitor sends the figures of training besides metrics.jsonl. wandb asks for a login of its own."""
    workers: int = Field(default=1, ge=1)
    """Tasks that read and filter text at the same time, each a process. Text stays the same, to the byte."""
    executor: Literal["local", "slurm", "ray"] = "local"
    """Where these tasks run: as processes of this machine, as Slurm jobs, or on a Ray cluster. For stage filter alone."""
    slurm: Slurm | None = None
    """What to ask Slurm for, if it is the executor."""
    ray: Ray | None = None
    """Which Ray cluster to ask, if it is the executor."""

    @model_validator(mode="after")
    def _of_the_executor(self) -> "Runtime":
        for name in ("slurm", "ray"):
            if self.executor != name and getattr(self, name) is not None:
                raise ValueError(f"{name}: is for executor: {name}, and the executor is {self.executor}")
        return self

    def check(self) -> None:
        """Raise ConfigError for machines, GPUs or programs that are not there."""
        if self.executor == "slurm":
            (self.slurm or Slurm()).check()
        elif self.executor == "ray":
            (self.ray or Ray()).check()
        if self.launcher == "srun":
            self._check_srun()
        elif self.nodes > 1:
            self._check_nodes()
        elif self.hostfile and not user_path(self.hostfile, "runtime.hostfile").is_file():
            raise ConfigError(f"runtime.hostfile: {self.hostfile}: no such file", at=("runtime", "hostfile"))
        for name in self.monitor:
            if find_spec(name) is None:
                raise ConfigError(f"runtime.monitor: {name} is not installed; pip install {name}", at=("runtime", "monitor"))
        if self.attention == "flash_attention_2" and (not self.gpus or find_spec("flash_attn") is None):
            raise ConfigError(
                "runtime.attention: flash_attention_2 needs a GPU and the package flash-attn", at=("runtime", "attention")
            )
        if self.compile and not self.gpus and compiler() is None:
            raise ConfigError(
                "runtime.compile: a CPU needs a C++ compiler for it, and there is none (g++ or clang++); install one, or "
                "leave it out",
                at=("runtime", "compile"),
            )
        if self.gpus and self.nodes == 1 and self.launcher != "srun":  # a Slurm job is sent to where the GPUs are
            if self.gpus > (here := devices.gpus()):
                why = f"; {found}" if (found := devices.unused_gpus()) else ""
                raise ConfigError(f"runtime.gpus: {self.gpus} asked for, {here} on this machine{why}", at=("runtime", "gpus"))
            given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            if self.gpus > 1 and (odd := next((one for one in given if one and not one.strip().isdigit()), "")):
                raise ConfigError(
                    f"CUDA_VISIBLE_DEVICES has {odd}, and what starts several processes knows GPUs by their numbers "
                    "alone; write those that nvidia-smi -L shows",
                    at=("runtime", "gpus"),
                )

    def _check_srun(self) -> None:
        """Raise ConfigError unless srun can start processes, as far as it can be seen before there is a job."""
        if shutil.which("srun") is None:
            problem = "runtime.launcher: srun is not here; is this a machine of a Slurm cluster?"
            raise ConfigError(problem, at=("runtime", "launcher"))
        if self.hostfile is not None:
            raise ConfigError(
                "runtime.hostfile: is for DeepSpeed's launcher; srun takes the machines of its job", at=("runtime", "hostfile")
            )

    def _check_nodes(self) -> None:
        """Raise ConfigError unless DeepSpeed can start processes on all nodes: what it needs, and what the host file says."""
        if self.hostfile is None:
            raise ConfigError("runtime.nodes > 1 needs runtime.hostfile, or launcher: srun", at=("runtime", "nodes"))
        listed, at = hosts(self.hostfile), ("runtime", "hostfile")
        if len(listed) < self.nodes:
            raise ConfigError(
                f"runtime.nodes: {self.nodes} asked for, and {self.hostfile} lists {len(listed)}", at=("runtime", "nodes")
            )
        for name, slots in list(listed.items())[: self.nodes]:  # DeepSpeed takes the first ones
            if slots < self.each:
                key = "gpus" if self.gpus else "cpu_processes"
                raise ConfigError(f"runtime.{key}: {self.each} asked for, and {self.hostfile} gives {name} {slots}", at=at)
        for program in ("pdsh", "ssh"):
            if shutil.which(program) is None:
                raise ConfigError(
                    f"runtime.nodes > 1 needs the program {program}, with which DeepSpeed starts processes on other machines; "
                    f"install it (apt install {program if program == 'pdsh' else 'openssh-client'})",
                    at=("runtime", "nodes"),
                )

    @property
    def each(self) -> int:
        """Processes on each node."""
        return self.gpus or self.cpu_processes

    @property
    def processes(self) -> int:
        """Processes in all, over every node."""
        return self.each * self.nodes

    @property
    def apart(self) -> bool:
        """Whether processes of a stage are not children of the `langext run` that has started them."""
        return self.nodes > 1 or self.in_step

    @property
    def in_step(self) -> bool:
        """Whether processes are tasks of a step of the Slurm job."""
        return self.launcher == "srun" and self.processes > 1


@dataclass(frozen=True)
class Context:
    """What a stage may know and touch besides its own fields and inputs."""

    out: Path
    """The stage's own folder, the only place it writes to; but for `tokens`, and stage certify for the export it measured."""
    seed: int
    language: str
    """The new language, FLORES style."""
    original_languages: tuple[str, ...]
    """The languages that the model must not lose."""
    tokens: Path = Path()
    """Folder of text as token ids, which every stage of the run, and of other runs, may share."""
    benchmarks: tuple[Benchmarks, ...] = ()
    """What stages evaluate of the pipeline measure, which must not be trained on; empty while planning."""
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
