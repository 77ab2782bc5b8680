"""Finished stages of other runs, taken instead of done again where their recipe is the same.

What is taken is a copy of hard links: it costs no disk, and the run stays whole when the other one is deleted, moved or redone.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langext.artifacts import BASE, MANIFEST, place, read_json
from langext.spec import ConfigError

if TYPE_CHECKING:
    from langext.pipeline import Step


def check(others: Sequence[Path]) -> None:
    """Raise ConfigError for a folder that is no run."""
    for root in others:
        if not (root / BASE / MANIFEST).is_file():
            raise ConfigError(f"--reuse {root}: no run folder")


def stage(step: "Step", others: Sequence[Path]) -> Path | None:
    """Copy the stage from the first of the runs `others` that has finished it, in a folder of the same name and from inputs of
    the same names, for these are in its files. Returns where it was; None when it is nowhere.
    """
    names = {arg: path.name for arg, (_, path, _) in step.inputs.items()}

    def same(manifest: dict[str, Any]) -> bool:
        given = {arg: Path(entry["path"]).name for arg, entry in manifest["inputs"].items()}
        return manifest["fingerprint"] == step.fingerprint and given == names and not step.stage.drift(manifest)

    return next((root for root in others if _take(root / step.out.name, step.out, same)), None)


def base(out: Path, identity: dict[str, Any], others: Sequence[Path]) -> None:
    """Copy the prepared base of one of the runs `others`, if it is the same base and `out` has none yet."""
    if not (out / MANIFEST).exists():
        next((root for root in others if _take(root / BASE, out, lambda manifest: manifest["identity"] == identity)), None)


def _take(source: Path, out: Path, same: Callable[[dict[str, Any]], bool]) -> bool:
    """Copy a finished folder if it is the same, whole or not at all; it may go away meanwhile."""
    if source == out or not (source / MANIFEST).exists():
        return False
    beside = out.with_name(f".{out.name}.taken")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        if not same(read_json(source / MANIFEST)):
            return False
        shutil.copytree(source, beside, copy_function=place)
        if not same(read_json(beside / MANIFEST)):
            return False
    except (FileNotFoundError, shutil.Error):
        return False  # its run does it again
    else:
        shutil.rmtree(out, ignore_errors=True)  # what a kill has left there, without a job
        beside.rename(out)
        return True
    finally:
        shutil.rmtree(beside, ignore_errors=True)
