"""A pipeline is a list of stages. This module plans the wiring and runs what is not done."""

import fcntl
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langext.artifacts import (
    BASE,
    CHECKPOINTS,
    JOB,
    LOCK,
    WORKERS_LOCK,
    write_json,
)
from langext.console import duration, say
from langext.models import bases
from langext.pipeline import reuse
from langext.pipeline.launcher import launch
from langext.pipeline.plan import Pipeline, Step, check, plan
from langext.pipeline.worker import EXIT_CONFIG
from langext.spec import ConfigError, RunFailed, near


def run(pipeline: Pipeline, root: Path, *, redo: Collection[str] = (), others: Sequence[Path] = ()) -> list[Step]:
    """Run each unfinished step in order; refuse when a finished or interrupted step has another recipe. Returns the steps.

    Steps that one of the runs `others` has finished by the same recipe are taken from there.
    """
    reuse.check(others)
    steps = plan(pipeline, root)
    names = [step.name for step in steps]
    if unknown := next((name for name in redo if name not in names), None):
        raise ConfigError(f"--redo {unknown}: no such stage.{near(unknown, names)} Stages: {', '.join(names)}.")
    with hold(root) as held:
        bases.check_same(root / BASE, pipeline.base_model, pipeline.revision)
        stray = sorted(set(root.glob("[0-9][0-9]-*")) - {step.out for step in steps})
        if stray:
            raise ConfigError(f"{stray[0]}: not a stage of this pipeline. Remove it, or choose another --out.")
        redone: set[Path] = set()
        todo: list[Step] = []
        for step in steps:
            if step.name in redo or any(path in redone for _, path, _ in step.inputs.values()):
                redone.add(step.out)
                todo.append(step)
                continue
            before = step.recorded or step.begun
            if step.state == "failed" and step.stage.salvages:
                todo.append(step)
                continue
            if step.state == "failed" and not (step.out / CHECKPOINTS).exists():
                redone.add(step.out)  # it ended with an error, mended in the recipe or in its sources: nothing to keep
            elif before and before["fingerprint"] != step.fingerprint:
                raise ConfigError(_changed(step, before))
            if not step.recorded:
                todo.append(step)
            elif drift := step.stage.drift(step.recorded):
                raise ConfigError(f"stage {step.name!r}: {drift}. Use --redo {step.name} to do it again.")
        reuse.base(root / BASE, pipeline.base_model, pipeline.revision, others)
        taken = _taken(todo, redone, others)
        todo = [step for step in todo if step.out not in taken]
        if todo:
            check(pipeline, steps, todo)
        for path in redone:
            _discard(path)
        bases.prepare(pipeline.base_model, pipeline.revision, root / BASE)
        for number, step in enumerate(steps, 1):
            label = f"[{number}/{len(steps)}] {step.name}"
            if step.out in taken:
                say(f"{label}: taken from {taken[step.out]}")
                continue
            if step not in todo:
                say(f"{label}: done already ({duration(step.recorded['seconds'])})")  # type: ignore[index]
                continue
            say(f"{label}: " + ("going on" if step.begun else "started"))
            _start(step, pipeline, held)
            say(f"{label}: finished in {duration(step.recorded['seconds'])}")  # type: ignore[index]
    return steps


def _taken(todo: Sequence[Step], redone: Collection[Path], others: Sequence[Path]) -> dict[Path, Path]:
    """The steps that are taken from other runs, and from which: never begun here, finished there, and of inputs that are not
    made anew.
    """
    taken: dict[Path, Path] = {}
    anew = {step.out for step in todo}
    for step in todo:
        if step.out in redone or step.begun or any(path in anew for _, path, _ in step.inputs.values()):
            continue
        if home := reuse.stage(step, others):
            taken[step.out] = home
            anew.discard(step.out)
    return taken


def _discard(path: Path) -> None:
    """Remove a stage folder so that no half of it can ever count: it loses its name first, in one step."""
    if path.exists():
        aside = path.with_name(f".{path.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside)


def _start(step: Step, pipeline: Pipeline, held: int) -> None:
    step.out.mkdir(parents=True, exist_ok=True)
    job = {
        "stage": step.stage.model_dump(mode="json"),
        "inputs": {arg: {"stage": n, "path": str(p), "fingerprint": f} for arg, (n, p, f) in step.inputs.items()},
        "language": pipeline.language,
        "original_languages": pipeline.original_languages,
        "seed": pipeline.seed,
        "fingerprint": step.fingerprint,
        "identity": step.identity,
    }
    write_json(step.out / JOB, job)
    code = launch(step.out, step.stage.runtime, held)
    if code == EXIT_CONFIG:
        write_json(step.out / JOB, job | {"failed": True})
        raise SystemExit(EXIT_CONFIG)  # the worker has said what is wrong
    if code != 0:
        how = (
            f"was stopped by signal {-code if code < 0 else code - 128}"
            if code < 0 or code > 128
            else f"failed (exit code {code})"
        )
        raise RunFailed(f"stage {step.name!r} {how}. Nothing half-done counts as done; run the same command again to go on.")


def _changed(step: Step, before: dict[str, Any]) -> str:
    old, new = before["identity"], step.identity
    keys = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    lines = [f"  {k}: {_short(old.get(k))} -> {_short(new.get(k))}" for k in keys]
    what = "finished" if step.recorded else "was interrupted"
    return (
        f"stage {step.name!r} already {what} at {step.out} with another recipe:\n" + "\n".join(lines)
        + f"\nDo it again, and what depends on it, with --redo {step.name}, or choose another --out."
    )  # fmt: skip


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."


@contextmanager
def hold(root: Path) -> Iterator[int]:
    """Hold the run folder, so that two runs never write into it at once: neither another `langext run` nor workers that
    outlived theirs, for those share a lock of their own, whose file descriptor is yielded.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / LOCK).open("w") as lock, (root / WORKERS_LOCK).open("w") as workers:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(workers, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{root}: another langext run is working here; wait for it or choose another --out") from None
        fcntl.flock(workers, fcntl.LOCK_SH)
        yield workers.fileno()
