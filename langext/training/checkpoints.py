"""The checkpoints of one training: written beside and renamed, hashed, the newest few kept, a damaged one passed over.

`step-<n>/` holds what DeepSpeed and the engine wrote and `files.json`: sizes and sha256 of all of it, the number of processes
and the ZeRO stage. A folder of that name is complete; what a killed process leaves is called `step-<n>.tmp` and never read.
On several nodes the run folder must be on a disk that all of them see.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import distributed

from langext.artifacts import FileRecord, list_files, read_as, sha256_file, write_json
from langext.console import warn
from langext.spec import ConfigError, RunFailed, Spec

GiB = 2**30
FILES = "files.json"
"""Sizes and sha256 of all files of a checkpoint, and how it was written."""
STATE = "state"
"""The folder, inside a checkpoint, that DeepSpeed writes."""
UNIVERSAL = "universal"
AVERAGE = "average.safetensors"
"""Running average of what learns, where one is kept."""


class CheckpointRecord(Spec):
    """files.json of a checkpoint."""

    world_size: int
    layout: str
    """`zero<stage>`, with more behind it where DeepSpeed has several layouts for a stage."""
    files: list[FileRecord]


@dataclass(frozen=True)
class Checkpoints:
    """All checkpoints of a training stage."""

    folder: Path
    keep: int
    """How many of the newest stay on disk."""

    def steps(self) -> list[int]:
        """Steps that there are complete checkpoints of, in order."""
        names = [path.name.removeprefix("step-") for path in self.folder.glob("step-*")]
        return sorted(int(name) for name in names if name.isdigit())

    def newest(self) -> Path | None:
        """The newest checkpoint whose files are all as they were written; None when there is none at all.

        Rank 0 looks, all processes get the same answer. Damaged ones are named in a warning and passed over. Raises RunFailed
        when every checkpoint is damaged.
        """
        step = on_first(self._intact)
        return None if step is None else self.folder / f"step-{step}"

    def _intact(self) -> int | None:
        damaged = ""
        for step in reversed(self.steps()):
            folder = self.folder / f"step-{step}"
            damaged = damage(folder)
            if not damaged:
                return step
            warn(f"checkpoint of step {step}: {damaged}; going back to the one before")
            shutil.rmtree(folder.with_suffix(".damaged.tmp"), ignore_errors=True)
            os.replace(folder, folder.with_suffix(".damaged.tmp"))  # it must not stand in the way of the next one of this step
        if damaged:
            raise RunFailed(f"{self.folder}: no checkpoint is intact ({damaged}); start the stage over with --redo")
        return None

    def write(self, step: int, fill: Callable[[Path], None], layout: str, needs_bytes: int) -> None:
        """Let every process `fill` a folder, then make it the checkpoint of `step` and drop the oldest ones.

        Raises RunFailed when less than `needs_bytes` of disk are free; the checkpoints there are stay as they are.
        """
        target, beside = self.folder / f"step-{step}", self.folder / f"step-{step}.tmp"
        if target.is_dir():  # after a resume this very state is on disk already
            return

        def clear() -> None:
            for left in self.folder.glob("*.tmp"):
                shutil.rmtree(left)
            room(self.folder, needs_bytes)
            beside.mkdir(parents=True)

        on_first(clear)
        fill(beside)
        distributed.barrier()
        if distributed.get_rank() == 0:
            record = CheckpointRecord(world_size=distributed.get_world_size(), layout=layout, files=list_files(beside))
            for file in record.files:
                _to_disk(beside / file.name)
            write_json(beside / FILES, record)
            os.replace(beside, target)
            for old in self.steps()[: -self.keep]:
                # Renamed first: a process killed while it deletes must not leave half a folder that looks whole.
                gone = self.folder / f"gone-{old}.tmp"
                os.replace(self.folder / f"step-{old}", gone)
                shutil.rmtree(gone)
        distributed.barrier()


def on_first(work: Callable[[], Any]) -> Any:
    """What `work` returns on rank 0, in every process; a ConfigError, RunFailed or OSError there is raised in all of them."""
    result: Any = None
    failure: tuple[type[Exception], str] | None = None
    if distributed.get_rank() == 0:
        try:
            result = work()
        except (ConfigError, RunFailed) as error:
            failure = type(error), str(error)
        except OSError as error:
            failure = RunFailed, f"{error.filename or ''}: {error.strerror or error}"
    shared = [result, failure]
    distributed.broadcast_object_list(shared)
    result, failure = shared
    if failure:
        kind, message = failure
        raise kind(message)
    return result


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files, or an empty string."""
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
    return ""


def room(folder: Path, needs_bytes: int) -> None:
    """Raises RunFailed when less than `needs_bytes` are free where `folder` is, on any process's machine alike."""
    here = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(here).free
    if free < needs_bytes:
        raise RunFailed(
            f"{here}: a checkpoint takes {needs_bytes / GiB:.2f} GiB and {free / GiB:.2f} GiB are free; make room and run the "
            "same command again"
        )


def fits(checkpoint: Path, world_size: int, layout: str) -> bool:
    """Was it written by as many processes in the same layout? Then it loads as it is.

    A layout is `zero<stage>`, with more behind it where DeepSpeed has several for a stage. Raises ConfigError for a change of
    stage that DeepSpeed cannot convert: all but those between 1 and 2.
    """
    record = read_as(checkpoint / FILES, CheckpointRecord)
    had, now = (int(name.removeprefix("zero")[0]) for name in (record.layout, layout))
    if had != now and {had, now} != {1, 2}:
        raise ConfigError(
            f"{checkpoint}: written under ZeRO stage {had}, and runtime.deepspeed says {now} now. DeepSpeed converts "
            f"between stages 1 and 2 alone; go on with stage {had}"
        )
    return record.layout == layout and (record.world_size == world_size or now == 0)


def universal(checkpoint: Path) -> Path:
    """The checkpoint in DeepSpeed's universal form, which any number of processes and ZeRO 1, 2 or 3 can load.

    Made by rank 0 with DeepSpeed's own converter, beside the checkpoint. Raises RunFailed when that fails.
    """
    made = checkpoint.with_name(f"{checkpoint.name}-{UNIVERSAL}.tmp")  # dropped with the next checkpoint

    def anew() -> None:
        shutil.rmtree(made, ignore_errors=True)
        convert(checkpoint, made)

    on_first(anew)
    return made


def convert(checkpoint: Path, out: Path) -> None:
    """Write the universal form of a checkpoint into the new folder `out`. Raises RunFailed when that fails."""
    command = [
        "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state",
        "--input_folder", str(checkpoint / STATE), "--output_folder", str(out / STATE),
    ]  # fmt: skip
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=_alone())
    if done.returncode:
        raise RunFailed(f"{checkpoint}: cannot be converted to DeepSpeed's universal form:\n{done.stderr[-2000:]}")


def _alone() -> dict[str, str]:
    """The environment of a process that does not belong to this launch."""
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE")
    return {key: value for key, value in os.environ.items() if key not in launched}


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
