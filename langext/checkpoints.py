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

from langext.artifacts import list_files, read_json, sha256_file, write_json
from langext.console import warn
from langext.spec import ConfigError

GiB = 2**30
RECORD = "files.json"
STATE = "state"
"""The folder, inside a checkpoint, that DeepSpeed writes."""
UNIVERSAL = "universal"


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

        Rank 0 looks, all processes get the same answer. Damaged ones are named in a warning and passed over. Raises ConfigError
        when every checkpoint is damaged.
        """
        found: list[Any] = [None, ""]
        if distributed.get_rank() == 0:
            found = list(self._intact())
        distributed.broadcast_object_list(found)
        step, error = found
        if error:
            raise ConfigError(error)
        return None if step is None else self.folder / f"step-{step}"

    def _intact(self) -> tuple[int | None, str]:
        damaged = ""
        for step in reversed(self.steps()):
            damaged = damage(self.folder / f"step-{step}")
            if not damaged:
                return step, ""
            warn(f"checkpoint of step {step}: {damaged}; going back to the one before")
        return None, f"{self.folder}: no checkpoint is intact ({damaged}); start the stage over with --redo" if damaged else ""

    def write(self, step: int, fill: Callable[[Path], None], zero_stage: int, needs_bytes: int) -> None:
        """Let every process `fill` a folder, then make it the checkpoint of `step` and drop the oldest ones.

        Raises ConfigError when less than `needs_bytes` of disk are free; the checkpoints there are stay as they are.
        """
        target, beside = self.folder / f"step-{step}", self.folder / f"step-{step}.tmp"
        if target.is_dir():  # after a resume this very state is on disk already
            return
        rank = distributed.get_rank()
        if rank == 0:
            for left in self.folder.glob("*.tmp"):
                shutil.rmtree(left)
            beside.mkdir(parents=True)
        room(self.folder, needs_bytes)
        distributed.barrier()
        fill(beside)
        distributed.barrier()
        if rank == 0:
            files = list_files(beside)
            record = {"world_size": distributed.get_world_size(), "zero_stage": zero_stage, "files": files}
            for file in files:
                _to_disk(beside / file["name"])
            write_json(beside / RECORD, record)
            os.replace(beside, target)
            for old in self.steps()[: -self.keep]:
                # Renamed first: a process killed while it deletes must not leave half a folder that looks whole.
                gone = self.folder / f"gone-{old}.tmp"
                os.replace(self.folder / f"step-{old}", gone)
                shutil.rmtree(gone)
        distributed.barrier()


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files, or an empty string."""
    if not (checkpoint / RECORD).is_file():
        return f"{RECORD} is missing"
    try:
        files = read_json(checkpoint / RECORD)["files"]
    except (ValueError, KeyError):
        return f"{RECORD} cannot be read"
    for file in files:
        path = checkpoint / file["name"]
        if not path.is_file():
            return f"{file['name']} is missing"
        if sha256_file(path) != file["sha256"]:
            return f"{file['name']} is damaged"
    return ""


def room(folder: Path, needs_bytes: int) -> None:
    """Raises ConfigError when less than `needs_bytes` are free where `folder` is, on any process's machine alike."""
    here = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(here).free
    if free < needs_bytes:
        raise ConfigError(
            f"{here}: a checkpoint takes {needs_bytes / GiB:.2f} GiB and {free / GiB:.2f} GiB are free; make room and run the "
            "same command again"
        )


def fits(checkpoint: Path, world_size: int, zero_stage: int) -> bool:
    """Was it written by as many processes under the same ZeRO stage? Then it loads as it is.

    Raises ConfigError for a change of stage that DeepSpeed cannot convert: all but those between 1 and 2.
    """
    record = read_json(checkpoint / RECORD)
    had = record["zero_stage"]
    if had != zero_stage and {had, zero_stage} != {1, 2}:
        raise ConfigError(
            f"{checkpoint}: written under ZeRO stage {had}, and runtime.deepspeed says {zero_stage} now. DeepSpeed converts "
            f"between stages 1 and 2 alone; go on with stage {had}"
        )
    return had == zero_stage and (record["world_size"] == world_size or zero_stage == 0)


def universal(checkpoint: Path) -> Path:
    """The checkpoint in DeepSpeed's universal form, which any number of processes and ZeRO 1, 2 or 3 can load.

    Made by rank 0 with DeepSpeed's own converter, beside the checkpoint. Raises ConfigError when that fails.
    """
    made = checkpoint.with_name(f"{checkpoint.name}-{UNIVERSAL}.tmp")  # dropped with the next checkpoint
    failed: list[Any] = [""]
    if distributed.get_rank() == 0:
        shutil.rmtree(made, ignore_errors=True)
        command = [
            "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state",
            "--input_folder", str(checkpoint / STATE), "--output_folder", str(made / STATE),
        ]  # fmt: skip
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=_alone())
        if done.returncode:
            failed = [f"{checkpoint}: cannot be converted for another number of processes:\n{done.stderr[-2000:]}"]
    distributed.broadcast_object_list(failed)
    if failed[0]:
        raise ConfigError(failed[0])
    return made


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
