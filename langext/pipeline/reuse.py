"""Finished stages of other runs, taken instead of done again where their recipe is the same.

What is taken is a copy of hard links: it costs no disk, and the run stays whole when the other one is deleted, moved or redone.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langext.artifacts import BASE, CHECKPOINTS, MANIFEST, STOP, place, read_json
from langext.models import bases
from langext.spec import ConfigError

if TYPE_CHECKING:
    from langext.pipeline.plan import Step


def check(others: Sequence[Path]) -> None:
    """Raise ConfigError for a folder that is no run."""
    for root in others:
        if not (root / BASE / MANIFEST).is_file():
            raise ConfigError(f"--reuse {root}: no run folder")


def stage(step: "Step", others: Sequence[Path]) -> Path | None:
    """Copy the stage from the first of the runs `others` that has finished it by the same recipe, in a folder of the same name,
    and from sources and inputs of the same names and bytes as ours. Returns the run; None when there is none.
    """
    ours = {arg: (path.name, _bytes(path)) for arg, (_, path, _) in step.inputs.items()}
    if not all(held for _, held in ours.values()):
        return None  # an input is not there yet

    def same(root: Path, manifest: dict[str, Any]) -> bool:
        names = {arg: Path(entry["path"]).name for arg, entry in manifest["inputs"].items()}
        theirs = {arg: (name, _bytes(root / name)) for arg, name in names.items()}
        return manifest["fingerprint"] == step.fingerprint and theirs == ours and step.stage.same_sources(manifest)

    return next((root for root in others if _take(root / step.out.name, step.out, same)), None)


def base(out: Path, model: str, revision: str | None, others: Sequence[Path]) -> None:
    """Copy the prepared base of one of the runs `others`, if it is the same base, unchanged since, and `out` has none yet."""

    def same(root: Path, manifest: dict[str, Any]) -> bool:
        try:
            bases.check_same(root / BASE, model, revision)
        except ConfigError:
            return False
        return bases.same_place(manifest, model)

    if not (out / MANIFEST).exists():
        next((root for root in others if _take(root / BASE, out, same)), None)


def _bytes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a finished stage, or of the base, by name; {} for one that is not finished."""
    return {f["name"]: f["sha256"] for f in read_json(folder / MANIFEST)["files"]} if (folder / MANIFEST).exists() else {}


def _take(source: Path, out: Path, same: Callable[[Path, dict[str, Any]], bool]) -> bool:
    """Copy a finished folder if it is the same, whole or not at all; it may go away meanwhile."""
    if source == out or not (source / MANIFEST).exists():
        return False
    beside = out.with_name(f".{out.name}.taken")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        if not same(source.parent, read_json(source / MANIFEST)):
            return False
        kept = shutil.ignore_patterns(CHECKPOINTS, STOP, "*.tmp")
        shutil.copytree(source, beside, copy_function=place, ignore=kept)
        if not same(source.parent, read_json(beside / MANIFEST)):
            return False
    except (FileNotFoundError, shutil.Error):
        return False  # its run does it again
    else:
        shutil.rmtree(out, ignore_errors=True)  # what a kill has left there, without a job
        beside.rename(out)
        return True
    finally:
        shutil.rmtree(beside, ignore_errors=True)
