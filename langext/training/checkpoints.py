"""The checkpoints of one training: write them, check them, keep the newest few, and skip damaged ones.

`step-<n>/` holds the files of DeepSpeed and of the engine, and `files.json`: the size and sha256 of each file, the number of
processes and the layout. The one rule: a folder named `step-<n>` is complete. A checkpoint is written into `step-<n>.tmp` and
renamed at the end, so a killed process leaves only a `.tmp` folder, which is never read. On several nodes the run folder must
be on a disk that all nodes share.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors import SafetensorError
from torch import distributed

from langext.architectures.precision import Precision
from langext.artifacts import FileRecord, list_files, read_as, sha256_file, to_disk, write_json
from langext.console import warn
from langext.context import without_launcher
from langext.errors import ConfigError, RunFailed, disk_problem
from langext.spec import Spec
from langext.training import pickles

GiB = 2**30
FILES = "files.json"
"""Name of the file with the size and sha256 of each file of a checkpoint, and how the checkpoint was written."""
STATE = "state"
"""Folder inside a checkpoint that DeepSpeed writes."""
UNIVERSAL = "universal"
WRITER = ("inline_container.cc", "iostream error", "PytorchStreamWriter", "PyTorchFileWriter")
"""What torch.save names in the RuntimeError for a file that cannot be written. It does not say why."""
AVERAGE = "average.safetensors"
"""File with the running average of the trainable weights; exists only when the training keeps one (`ema`)."""


def bytes_each(bf16: bool, ema: object) -> int:
    """Bytes of a checkpoint for a parameter that learns: weight, float32 master, AdamW's moments, and a running average."""
    return (2 if bf16 else 4) + 12 + 4 * bool(ema)


class CheckpointRecord(Spec):
    """Content of the files.json of a checkpoint."""

    world_size: int = Field(ge=1)
    layout: str = Field(pattern=r"^zero[0-3](-fp32-sums|-fp32)?$")
    """`zero<stage>`, then `-fp32` for a training in float32, or `-fp32-sums` for one in bf16 that sums the gradients of several
    micro-batches in float32: DeepSpeed then uses another optimizer."""
    files: list[FileRecord]


@dataclass(frozen=True)
class Checkpoints:
    """All checkpoints of a training stage."""

    folder: Path
    keep: int
    """Number of checkpoints that stay on disk, the newest ones."""

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, in ascending order."""
        names = [path.name.removeprefix("step-") for path in self.folder.glob("step-*")]
        return sorted(int(name) for name in names if re.fullmatch("[0-9]{1,12}", name))

    def newest(self) -> Path | None:
        """Folder of the newest checkpoint whose files are all unchanged; None when there is no checkpoint at all.

        Rank 0 checks the files and all processes get its answer. Damaged checkpoints are named in a warning and skipped.
        Raises RunFailed when every checkpoint is damaged, and for one that holds more than `pickles` allows.
        """
        step = on_first(self._intact)
        return None if step is None else self.folder / f"step-{step}"

    def _intact(self) -> int | None:
        damaged = ""
        for step in reversed(self.steps()):
            folder = self.folder / f"step-{step}"
            damaged = damage(folder)
            if not damaged:
                pickles.check(folder / STATE)
                return step
            warn(f"checkpoint of step {step}: {damaged}; going back to the one before")
            shutil.rmtree(folder.with_suffix(".damaged.tmp"), ignore_errors=True)
            # `write` skips a step whose folder exists, so the damaged folder must not keep the name of this step.
            os.replace(folder, folder.with_suffix(".damaged.tmp"))
        if damaged:
            raise RunFailed(f"{self.folder}: no checkpoint is intact ({damaged}); start the stage over with --redo")
        return None

    def write(self, step: int, fill: Callable[[Path], None], layout: str, needs_bytes: int) -> None:
        """Call `fill` with a new folder in every process, make it the checkpoint of `step`, and delete the oldest checkpoints.

        Raises RunFailed when less than `needs_bytes` of disk are free, or when it cannot be written; existing checkpoints then
        stay as they are.
        """
        target, beside = self.folder / f"step-{step}", self.folder / f"step-{step}.tmp"
        # Asked of rank 0 alone: on a shared disk the processes can see different things for a while.
        if on_first(target.is_dir):  # after a resume, the state of this step is already on disk
            return

        def clear() -> None:
            for left in self.folder.glob("*.tmp"):
                shutil.rmtree(left)
            room(self.folder, needs_bytes)
            beside.mkdir(parents=True)

        on_first(clear)
        try:
            fill(beside)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save tells of a full disk with a RuntimeError
            if not (problem := write_problem(error, beside)):
                raise
            shutil.rmtree(beside, ignore_errors=True)  # half a checkpoint would keep the disk full
            raise RunFailed(problem) from None
        # Rank 0 lists and hashes the folder, so all processes must have written their parts before.
        distributed.barrier()

        def complete() -> None:
            record = CheckpointRecord(world_size=distributed.get_world_size(), layout=layout, files=list_files(beside))
            # After a power cut a renamed folder could otherwise hold empty files: rename does not force data to disk.
            for file in record.files:
                to_disk(beside / file.name)
            write_json(beside / FILES, record)
            os.replace(beside, target)
            for old in self.steps()[: -self.keep]:
                # Rename before deleting: a process that is killed while it deletes must not leave half a folder that looks
                # complete.
                gone = self.folder / f"gone-{old}.tmp"
                os.replace(self.folder / f"step-{old}", gone)
                shutil.rmtree(gone)

        on_first(complete)  # a full disk is then known to all processes, so that none waits for the others


def on_first(work: Callable[[], Any]) -> Any:
    """Run `work` on rank 0 only and return its result in every process.

    A ConfigError or RunFailed is raised in every process; an OSError becomes a RunFailed in every process. All decisions about
    files on a shared disk are taken so: processes that decide for themselves could decide differently, and wait for each other.
    """
    result: Any = None
    failure: tuple[type[Exception], str] | None = None
    if distributed.get_rank() == 0:
        try:
            result = work()
        except (ConfigError, RunFailed) as error:
            failure = type(error), str(error)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            failure = RunFailed, disk_problem(error) or f"{where}{error.strerror or error}"
    # The failure is shared too: if rank 0 just raised it, the other processes would wait in the broadcast until the timeout.
    shared = [result, failure]
    distributed.broadcast_object_list(shared)
    result, failure = shared
    if failure:
        kind, message = failure
        raise kind(message)
    return result


def write_problem(error: Exception, folder: Path) -> str:
    """What is wrong with the disk of `folder`, and what to do; empty when the error is of another kind."""
    if isinstance(error, RuntimeError) and any(name in str(error) for name in WRITER):
        free = shutil.disk_usage(folder.parent).free / GiB
        return f"{folder}: cannot be written ({free:.2f} GiB are free); make room and run the same command again to go on"
    return disk_problem(error)


def damage(checkpoint: Path) -> str:
    """What is wrong with the files of a checkpoint, in words; an empty string when they are intact."""
    if not (checkpoint / FILES).is_file():
        return f"{FILES} is missing"
    try:
        record = read_as(checkpoint / FILES, CheckpointRecord)
    except ConfigError:
        return f"{FILES} cannot be read"
    for file in record.files:
        path = checkpoint / file.name
        if not path.is_file():
            return f"{file.name} is missing"
        if sha256_file(path) != file.sha256:
            return f"{file.name} is damaged"
    known = {FILES, *(file.name for file in record.files)}
    files = (str(path.relative_to(checkpoint)) for path in sorted(checkpoint.rglob("*")) if not path.is_dir())
    if strange := next((name for name in files if name not in known), None):
        return f"{strange} is not one of its files"
    return ""


def room(folder: Path, needs_bytes: int) -> None:
    """Raise RunFailed when less than `needs_bytes` are free on the disk of `folder`, which does not need to exist yet."""
    here = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(here).free
    if free < needs_bytes:
        raise RunFailed(
            f"{here}: a checkpoint takes {needs_bytes / GiB:.2f} GiB and {free / GiB:.2f} GiB are free; make room and run the "
            "same command again"
        )


def began_in(checkpoint: Path) -> Precision:
    """The precision of the training that wrote the checkpoint."""
    return "fp32" if read_as(checkpoint / FILES, CheckpointRecord).layout.endswith("-fp32") else "bf16"


def fits(checkpoint: Path, world_size: int, layout: str) -> bool:
    """True when the checkpoint can be loaded as it is; False when it must be converted to the universal form first.

    It loads as it is when its layout is `layout` and it was written by `world_size` processes (under ZeRO 0 by any number). For
    layouts see `CheckpointRecord.layout`. Raises ConfigError for a change of the ZeRO stage, except between stages 1 and 2,
    because DeepSpeed cannot convert it.
    """
    record = read_as(checkpoint / FILES, CheckpointRecord)
    had, now = (int(name.removeprefix("zero")[0]) for name in (record.layout, layout))
    if had != now and {had, now} != {1, 2}:
        raise ConfigError(
            f"{checkpoint}: written under ZeRO stage {had}, and runtime.deepspeed says {now} now. DeepSpeed converts "
            f"between stages 1 and 2 alone; go on with stage {had}"
        )
    # Under ZeRO 0 every process has the same full state, so the number of processes does not matter.
    return record.layout == layout and (record.world_size == world_size or now == 0)


def universal(checkpoint: Path) -> Path:
    """Folder of the checkpoint in DeepSpeed's universal form, which any number of processes can load.

    Rank 0 writes it beside the checkpoint, with DeepSpeed's own converter. Raises RunFailed when the conversion fails.
    """
    made = checkpoint.with_name(f"{checkpoint.name}-{UNIVERSAL}.tmp")  # deleted when the next checkpoint is written

    def anew() -> None:
        shutil.rmtree(made, ignore_errors=True)
        convert(checkpoint, made)

    on_first(anew)
    return made


def convert(checkpoint: Path, out: Path) -> None:
    """Write the universal form of a checkpoint into the folder `out`. Raises RunFailed when the conversion fails."""
    command = [
        "-m", "langext.training.universal", "--inject_missing_state",
        "--input_folder", str(checkpoint / STATE), "--output_folder", str(out / STATE),
    ]  # fmt: skip
    # A process of its own, because DeepSpeed offers the converter as a command. It must not join the group of this training.
    env = without_launcher(os.environ)
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, errors="replace", env=env)
    if done.returncode:
        free = shutil.disk_usage(out.parent).free / GiB
        stopped = f"stopped by signal {-done.returncode}, as happens when memory is used up"
        raise RunFailed(
            f"{checkpoint}: cannot be converted to DeepSpeed's universal form ({free:.2f} GiB of disk are free): "
            f"{stopped if done.returncode < 0 else pickles.reason(done.stderr)}. Run the same command again to go on"
        )
