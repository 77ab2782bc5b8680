"""Copies finished stages from other runs when their recipe is the same, so that they do not run again.

The one rule: the copy is made of hard links where possible. It then takes no disk, and this run stays complete when the other
one is deleted, moved or run again.
"""

import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from langext.artifacts import BASE, CHECKPOINTS, MANIFEST, STOP, TOKENS, Artifact, link_or_copy, read_base
from langext.data.tokens import DONE
from langext.errors import ConfigError
from langext.models import bases
from langext.pipeline.plan import Step


def check(others: Sequence[Path]) -> None:
    """Raise ConfigError for a folder that is not a run folder."""
    for root in others:
        if not (root / BASE / MANIFEST).is_file():
            raise ConfigError(f"--reuse {root}: no run folder")


def stage(step: Step, others: Sequence[Path], measured: Callable[[], Collection[str]] = tuple) -> Path | None:
    """Copy the stage from the first of the runs `others` that finished it by the same recipe. Returns that run, or None.

    The stage must have the same folder name there, and the same source files and inputs (names and bytes) as here. `measured`
    gives the names of the lm-eval tasks that this run measures.
    """
    ours = {arg: (path.name, _hashes(path)) for arg, (_, path, _) in step.inputs.items()}
    if not all(hashes for _, hashes in ours.values()):
        return None  # an input is not there yet

    def same(folder: Path) -> bool:
        manifest = Artifact(folder).manifest
        names = {arg: Path(entry.path).name for arg, entry in manifest.inputs.items()}
        theirs = {arg: (name, _hashes(folder.parent / name)) for arg, name in names.items()}
        return manifest.fingerprint == step.fingerprint and theirs == ours and step.stage.same_sources(manifest, measured)

    for other in others:
        if _take(other / step.out.name, step.out, same):
            return other
    return None


def base(root: Path, model: str, revision: str | None, others: Sequence[Path]) -> None:
    """Copy the prepared base from one of the runs `others` if it is the same, unchanged base and `root` has no base yet."""

    def same(_: Path) -> bool:
        try:
            bases.check_same(other, model, revision)
        except ConfigError:
            return False
        manifest = read_base(other)
        return manifest is not None and bases.same_place(manifest, model)

    for other in others:
        if (root / BASE / MANIFEST).exists() or _take(other / BASE, root / BASE, same):
            return


def whole(run: Path, names: Sequence[str], out: Path) -> None:
    """Copy the base and the stage folders `names` of a finished run into the run folder `out`, which may have some of them.

    Raises ConfigError when one cannot be copied, and when `out` has it as it was before `run` made it again.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in (BASE, *names):
        here, there = out / name / MANIFEST, run / name / MANIFEST
        if here.exists():
            if there.exists() and here.read_bytes() != there.read_bytes():
                raise ConfigError(f"{out / name}: {run} has made this stage again since; remove {out}, or choose another --out")
        elif not _take(run / name, out / name, lambda _: True):
            raise ConfigError(f"{run / name}: cannot be copied to {out}: it is not finished, or was changed meanwhile")


def tokens(root: Path, others: Sequence[Path]) -> None:
    """Take the finished token files of the runs `others`, so that the same text is not tokenised again."""
    for folder in [mark.parent for other in others for mark in sorted((other / TOKENS).rglob(DONE))]:
        target = root / TOKENS / folder.relative_to(next(path for path in folder.parents if path.name == TOKENS))
        temporary = target.with_name(f".{target.name}.taken")
        if not target.exists():
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                shutil.copytree(folder, temporary, copy_function=link_or_copy)
            except (FileNotFoundError, shutil.Error):  # deleted meanwhile; this run makes its own
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.rename(target)


def _hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a finished stage or base, by file name; {} if the folder is not finished."""
    if not (folder / MANIFEST).exists():
        return {}
    if folder.name == BASE:
        manifest = read_base(folder.parent)
        return {file.name: file.sha256 for file in manifest.files} if manifest else {}
    return Artifact(folder).manifest.hashes


def _take(source: Path, out: Path, same: Callable[[Path], bool]) -> bool:
    """Copy a finished folder if `same` accepts it; True when copied. Copies all or nothing, even if it is deleted meanwhile."""
    if source == out or not (source / MANIFEST).exists():
        return False
    beside = out.with_name(f".{out.name}.taken")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        manifest = (source / MANIFEST).read_bytes()
        if not same(source):
            return False
        left_out = shutil.ignore_patterns(CHECKPOINTS, STOP, "*.tmp")
        shutil.copytree(source, beside, copy_function=link_or_copy, ignore=left_out)
        if {(folder / MANIFEST).read_bytes() for folder in (source, beside)} != {manifest}:
            return False  # it was made again while it was copied
    except (ConfigError, FileNotFoundError, shutil.Error):  # unreadable, of another version, or gone meanwhile
        return False
    else:
        shutil.rmtree(out, ignore_errors=True)  # what a killed process has left; no stage started here
        beside.rename(out)
        return True
    finally:
        shutil.rmtree(beside, ignore_errors=True)
