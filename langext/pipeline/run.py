"""Runs the unfinished stages of a pipeline in order, each in separate processes.

The one rule: a finished stage never runs again, unless the user asks for it or a stage that it reads runs again.
"""

import fcntl
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from langext.artifacts import BASE, CHECKPOINTS, JOB, LOCK, TOKENS, InputRecord, Job, Manifest, write_json
from langext.console import duration, say
from langext.context import Runtime
from langext.errors import EXIT_BUG, EXIT_CONFIG, EXIT_RUN_FAILED, ConfigError, RunFailed
from langext.models import bases
from langext.pipeline import live, reuse, slurm_step, worker
from langext.pipeline.launcher import check_alone, launch
from langext.pipeline.plan import Pipeline, Step, check, check_inputs, plan
from langext.spec import near
from langext.stages.base import Stage
from langext.stages.train import Train


def run(
    pipeline: Pipeline, root: Path, *, redo: Collection[str] = (), others: Sequence[Path] = (), tokens: Path | None = None,
    until: str | None = None,
) -> list[Step]:  # fmt: skip
    """Run every unfinished step in order, up to the one called `until` if that is given. Returns all steps.

    `redo` names stages that run again, with all stages that depend on them. Steps that one of the runs `others` finished by the
    same recipe are copied from there. `tokens` is the folder for text as token ids, which several runs can share; by default it
    is in the run folder. Raises ConfigError when a finished or interrupted step has another recipe, and RunFailed when a stage
    fails.
    """
    check_alone()
    reuse.check(others)
    steps = plan(pipeline, root)
    names = [step.name for step in steps]
    for name in redo:
        _check_named("--redo", name, names)
    if until is not None:
        _check_named("--until", until, names)
    wanted = steps[: names.index(until) + 1] if until else steps
    with hold(root) as held:
        bases.check_same(root, pipeline.base_model, pipeline.revision)
        stray = sorted(set(root.glob("[0-9][0-9]-*")) - {step.out for step in steps})
        if stray:
            raise ConfigError(f"{stray[0]}: not a stage of this pipeline. Remove it, or choose another --out.")
        todo, redone = _unfinished(steps, redo)
        reuse.base(root, pipeline.base_model, pipeline.revision, others)
        if tokens is None:
            reuse.tokens(root, others)
        taken = _taken(todo, redone, others, pipeline.tasks)
        todo = [step for step in todo if step.out not in taken and step in wanted]
        known = bases.place_if_here(pipeline.base_model, pipeline.revision) is not None
        if todo:
            check(pipeline, steps, todo)
        for step in todo:
            if step.stage.runtime.in_step:
                slurm_step.hosts(step.stage.runtime)  # before hours of other stages
        for path in reversed(redone):  # what depends on others first, so that nothing ever stands without what it has read
            _discard(path)
        bases.prepare(pipeline.base_model, pipeline.revision, root / BASE)
        if todo and not known:  # only now, when it is here, a base from the hub can be compared with the settings
            check(pipeline, steps, todo)
        for number, step in enumerate(wanted, 1):
            label = f"[{number}/{len(steps)}] {step.name}"
            if step.out in taken:
                say(f"{label}: taken from {taken[step.out]}")
                continue
            if step not in todo:
                say(f"{label}: done already ({duration(step.finished().seconds)})")
                continue
            say(f"{label}: " + ("going on" if step.job else "started"))
            _do(step, pipeline, (tokens or root / TOKENS).resolve(), held)
            say(f"{label}: finished in {duration(step.finished().seconds)}")
    return steps


def _check_named(option: str, name: str, names: Sequence[str]) -> None:
    """Raise ConfigError when the stage that an option names is not in the pipeline."""
    if name not in names:
        raise ConfigError(f"{option} {name}: no such stage.{near(name, names)} Stages: {', '.join(names)}.")


def _unfinished(steps: Sequence[Step], redo: Collection[str]) -> tuple[list[Step], list[Path]]:
    """The steps to do, and the folders of those that start from the beginning.

    Raises ConfigError for a step that was finished or interrupted with another recipe, whose sources have changed, or that has
    read what is not there.
    """
    todo: list[Step] = []
    redone: list[Path] = []
    for step in steps:
        if step.name in redo or any(path in redone for _, path, _ in step.inputs.values()):
            redone.append(step.out)
            todo.append(step)
            continue
        if step.state == "failed" and step.stage.salvages:
            todo.append(step)
            continue
        earlier = step.manifest or step.job
        changed = earlier is not None and earlier.fingerprint != step.fingerprint
        if step.state == "failed" and not (step.out / CHECKPOINTS).exists() and (changed or step.job_failure == "config"):
            # nothing of it holds: no checkpoint, and what it has is of another recipe or of wrong input
            redone.append(step.out)
        elif earlier and changed:
            raise ConfigError(_changed(step, earlier))
        if not step.manifest:
            todo.append(step)
        elif reason := step.stage.outdated(step.manifest):
            raise ConfigError(f"stage {step.name!r}: {reason}. Use --redo {step.name} to do it again.")
    check_inputs(steps, redone)
    return todo, redone


def _taken(
    todo: Sequence[Step],
    redone: Collection[Path],
    others: Sequence[Path],
    measured: Callable[[], Collection[str]] = tuple,
) -> dict[Path, Path]:
    """Folder of each step that is copied from another run -> that run.

    Such a step was never started here and is finished there, and none of its inputs is made again here. `measured` gives the
    names of the lm-eval tasks of this run.
    """
    taken: dict[Path, Path] = {}
    anew = {step.out for step in todo}
    for step in todo:
        if step.out in redone or step.job or any(path in anew for _, path, _ in step.inputs.values()):
            continue
        if home := reuse.stage(step, others, measured):
            taken[step.out] = home
            anew.discard(step.out)
    return taken


def _discard(path: Path) -> None:
    """Remove a stage folder. It is renamed first, so that a half-deleted folder never counts as a stage."""
    if path.exists():
        aside = path.with_name(f".{path.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside)


def _do(step: Step, pipeline: Pipeline, tokens: Path, held: int) -> None:
    """Prepare one step in a single process, then run it in its own processes. Raises RunFailed when it does not succeed."""
    step.out.mkdir(parents=True, exist_ok=True)
    job = Job(
        stage=step.stage.model_dump(mode="json"),
        inputs={arg: InputRecord(stage=n, path=str(p), fingerprint=f) for arg, (n, p, f) in step.inputs.items()},
        language=pipeline.language,
        original_languages=pipeline.original_languages,
        seed=pipeline.seed,
        fingerprint=step.fingerprint,
        identity=step.identity,
        tokens=str(tokens),
        benchmarks=pipeline.benchmarks(),
    )
    write_json(step.out / JOB, job)
    code = 0
    # A worker without other processes prepares by itself.
    if step.stage.runtime.processes > 1 and type(step.stage).prepare is not Stage.prepare:
        began = time.monotonic()
        code = launch(step.out, Runtime(), held, only_prepare=True)
        job = job.model_copy(update={"prepare_seconds": time.monotonic() - began})
        write_json(step.out / JOB, job)
    with live.page(step.out) if isinstance(step.stage, Train) else nullcontext():
        code = code or launch(step.out, step.stage.runtime, held)
    if code == EXIT_BUG:
        raise SystemExit(code)  # nothing is known about the stage: the next run goes on with it
    if code in (EXIT_CONFIG, EXIT_RUN_FAILED):
        write_json(step.out / JOB, job.model_copy(update={"failure": "config" if code == EXIT_CONFIG else "run"}))
        raise SystemExit(code)  # the worker has printed the error already
    if code != 0:
        signalled = -code if code < 0 else code - 128
        from langext.data.tasks import reading  # it imports a library for logs

        files = reading(step.out / "log")
        at = f" while {' and '.join(files)} was read" if files and signalled > 0 else ""
        how = f"was stopped by signal {signalled}{at}" if signalled > 0 else f"failed (exit code {code})"
        raise RunFailed(f"stage {step.name!r} {how}. Nothing half-done counts as done; run the same command again to go on.")


def _changed(step: Step, earlier: Manifest | Job) -> str:
    old, new = earlier.identity, step.identity
    keys = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    lines = [f"  {k}: {_short(old.get(k))} -> {_short(new.get(k))}" for k in keys]
    what = "finished" if step.manifest else "was interrupted"
    return (
        f"stage {step.name!r} already {what} at {step.out} with another recipe:\n" + "\n".join(lines)
        + f"\nDo it again, and what depends on it, with --redo {step.name}, or choose another --out."
    )  # fmt: skip


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."


@contextmanager
def hold(root: Path) -> Iterator[int]:
    """Lock the run folder, so that two runs never write into it at once. Yields the file descriptor of the workers' lock.

    Workers share a second lock, because they can live longer than the `langext run` that started them. Raises ConfigError while
    another run, or its workers, hold a lock.
    """
    root.mkdir(parents=True, exist_ok=True)
    if link := next((path for path in [*root.glob("*"), *root.glob("*/*")] if path.is_symlink() and not path.is_dir()), None):
        raise ConfigError(f"{link}: a link to a file, through which langext would write; remove it, or choose another --out")
    with (root / LOCK).open("w") as lock, (root / worker.LOCK).open("w") as workers:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(workers, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{root}: another langext run is working here; wait for it or choose another --out") from None
        # The exclusive lock only tested that no worker is left; the new workers need to share it.
        fcntl.flock(workers, fcntl.LOCK_SH)
        yield workers.fileno()
