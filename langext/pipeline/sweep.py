"""Makes many runs that differ in a few settings, at the same time if there are enough devices.

The one rule: a stage that several runs have in common is done once. Each run is a separate `langext run` in its own process. If
a running one has to finish a stage that another run needs as well, the other run waits for it and copies the stage.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from langext import devices
from langext.artifacts import BASE, MANIFEST, TOKENS, Scores
from langext.console import duration, say
from langext.errors import ConfigError, RunFailed, Stopped
from langext.pipeline import launcher, lifeline, plan
from langext.pipeline.plan import Pipeline, Step
from langext.spec import load, located, parse
from langext.stages import makes

LOG = "sweep.log"


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """Name of its folder, made from the settings that differ between the runs."""
    file: Path
    overrides: tuple[str, ...]
    spec: Pipeline
    root: Path
    steps: list[Step]

    @property
    def done(self) -> bool:
        """True when every stage is finished."""
        return all(step.state == "done" for step in self.steps)

    def command(self, others: Sequence[Path]) -> list[str]:
        """Arguments of the `langext run` that makes this run and may reuse stages of the runs `others`."""
        more = [part for item in self.overrides for part in ("--set", item)]
        more += [part for other in others for part in ("--reuse", str(other))]
        return ["run", str(self.file), "--out", str(self.root), "--tokens", str(self.root.parent / TOKENS), *more]


def axis(text: str) -> tuple[str, list[Any]]:
    """`train.lr=1e-4,3e-4` -> the key and its values, each parsed as YAML. Raises ConfigError for any other form."""
    key, equals, values = text.partition("=")
    where = f"--over {text}"
    if not (equals and key and values.strip()):
        raise ConfigError(f"{where}: expected key=value,value, for example train.lr=1e-4,3e-4")
    choices = parse(f"[{values}]", where, "safe")
    if len(choices) == 1 and isinstance(choices[0], list) and choices[0]:  # written with brackets of its own: key=[a,b]
        choices = choices[0]
    if len({json.dumps(value, sort_keys=True, default=str) for value in choices}) < len(choices):
        raise ConfigError(f"{where}: a value is there twice")
    return key, choices


def name_of(file: Path, overrides: Sequence[str], over: Sequence[str]) -> str:
    """The name of the pipeline in `file`, with the settings of the first run of the sweep."""
    first = {key: values[0] for key, values in map(axis, over)}
    with _blaming(first):
        return load(file, Pipeline, [*overrides, *_settings(first)]).name


def points(files: Sequence[Path], over: Sequence[str], overrides: Sequence[str], out: Path) -> list[Point]:
    """The runs of a sweep: every pipeline file with every combination of the values in `over`, in order.

    Raises ConfigError for a pipeline that is not valid, for two runs with the same name, and for runs that cannot be compared.
    """
    axes = [axis(text) for text in over]
    keys = [key for key, _ in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ConfigError(f"--over {twice}: given twice; put all its values into one")
    for item in overrides:
        name = item.partition("=")[0]
        same = next((key for key in keys if name == key or name.startswith(f"{key}.")), None)
        if same:
            raise ConfigError(f"--set {item}: --over {same} would replace it; write it into the values of --over")
    runs: list[Point] = []
    for file in files:
        for values in product(*(values for _, values in axes)):
            chosen = {key: value for (key, _), value in zip(axes, values, strict=True)}
            given = (*overrides, *_settings(chosen))
            with _blaming(chosen):
                spec = load(file, Pipeline, given)
            parts = [spec.name] if len(files) > 1 or not chosen else []
            name = "-".join([*parts, *(_shown(key, value) for key, value in chosen.items())])
            root = out / re.sub(r"[^\w.=+-]+", "-", name)
            if len(root.name.encode()) > 200:
                raise ConfigError(
                    f"--over: {root.name[:60]}... is too long for a folder; put these settings into a pipeline file"
                )
            try:
                steps = plan.plan(spec, root)
            except ConfigError as error:
                with _blaming(chosen):
                    raise ConfigError(located(error, file, given)) from None
            runs.append(Point(root.name, file, given, spec, root, steps))
    if twice := next((name for name, count in Counter(point.name for point in runs).items() if count > 1), None):
        raise ConfigError(
            f"two runs of this sweep would both be called {twice}; give the pipelines names that "
            "differ, and values that differ in their first six digits"
        )
    pairs = {(point.spec.language, *sorted(point.spec.original_languages)) for point in runs}
    if len(pairs) > 1:
        raise ConfigError("the runs of a sweep must add one language and keep the same ones, or they do not compare")
    return runs


def _settings(chosen: Mapping[str, Any]) -> list[str]:
    """Values of `--over` as they are given to `--set`."""
    return [f"{key}={json.dumps(value, default=str)}" for key, value in chosen.items()]


@contextmanager
def _blaming(chosen: Mapping[str, Any]) -> Iterator[None]:
    """Say `--over` of mistakes in these values."""
    try:
        yield
    except ConfigError as error:
        told = str(error)
        for item in _settings(chosen):
            told = told.replace(f"--set {item}", f"--over {item}")
        raise ConfigError(told) from None


def _shown(key: str, value: Any) -> str:
    """A setting as part of a folder name. A value that has a name, such as a method, is shown by this name."""
    if isinstance(value, dict) and "name" in value:
        rest = [_shown(k, v) for k, v in value.items() if k != "name"]
        return "-".join([str(value["name"]), *rest])
    if isinstance(value, str) and key.endswith("method"):
        return value
    return f"{key.split('.')[-1]}={value:g}" if isinstance(value, float) else f"{key.split('.')[-1]}={value}"


def check(found: Sequence[Point]) -> None:
    """Raise ConfigError for every mistake that shows before the runs start. Stages in common are checked once."""
    seen: set[str] = set()
    for point in found:
        measured = [step.inputs["model"][0] for step in point.steps if makes(step.stage) is Scores]
        if BASE not in measured or not set(measured) - {BASE}:
            raise ConfigError(
                f"{point.file}: a sweep compares its runs, so each needs a stage evaluate of the base "
                "(inputs: {model: base}) and one of the model that it makes"
            )
        for step in point.steps:
            earlier = step.manifest or step.job
            if earlier and earlier.fingerprint != step.fingerprint and step.state != "failed":
                raise ConfigError(
                    f"{step.out} was done with another recipe than this sweep's; name another --out, or remove {point.root}"
                )
            if step.manifest and (reason := step.stage.outdated(step.manifest)):
                raise ConfigError(f"{step.out}: {reason}; name another --out, or remove {point.root}")
        todo = [step for step in point.steps if step.state != "done" and step.fingerprint not in seen]
        seen |= {step.fingerprint for step in point.steps}
        try:
            plan.check(point.spec, point.steps, todo)
        except ConfigError as error:
            raise ConfigError(f"{point.name}: {located(error, point.file, point.overrides)}") from None


def slots(found: Sequence[Point], jobs: int | None) -> list[dict[str, str]]:
    """Environment variables that give a run its own devices, one entry for each run that can run at the same time.

    `jobs` is the wanted number of runs at the same time; None takes as many as the GPUs allow, and 1 on CPUs. With more than
    that, runs share GPUs. Raises ConfigError when runs on several machines are to run at the same time.
    """
    runtimes = [step.stage.runtime for point in found for step in point.steps]
    gpus = max(runtime.gpus for runtime in runtimes)
    if any(runtime.nodes > 1 for runtime in runtimes):
        fits, each = 1, [{}]  # such a run takes all nodes of its hostfile
    elif gpus:
        here = _visible()
        own = max(1, len(here) // gpus)
        fits = jobs or own
        each = [{"CUDA_VISIBLE_DEVICES": ",".join(here[k % own * gpus : (k % own + 1) * gpus])} for k in range(fits)]
    else:
        fits = jobs or 1
        # Otherwise each process would start a thread on every core, and the runs would slow one another down.
        threads = max(1, launcher.cores() // fits // max(runtime.processes for runtime in runtimes))
        each = [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))} if fits > 1 else {}] * fits
    if jobs and jobs > fits:
        raise ConfigError(f"--jobs {jobs}: runs on several machines run one at a time")
    return each[: jobs or fits]


def _visible() -> list[str]:
    """Identifiers of the GPUs that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(k) for k in range(devices.gpus())]


def run(found: Sequence[Point], jobs: int | None) -> list[Point]:
    """Make all unfinished runs. Returns the runs that failed; all others are finished.

    Ctrl-C, SIGTERM and the like are passed on to the active runs, which save and end; then this raises KeyboardInterrupt, or
    Stopped.
    """
    launcher.check_alone()
    check(found)
    return _Work(found, slots(found, jobs)).run()


def report(failed: Sequence[Point]) -> None:
    """Raise RunFailed with the names of the failed runs, if there are any."""
    if failed:
        names = ", ".join(point.name for point in failed)
        raise RunFailed(f"{len(failed)} run(s) failed: {names}. What they printed says why; the same command tries them again")


class _Work:
    """The active runs and the waiting runs of a sweep."""

    def __init__(self, found: Sequence[Point], free: Sequence[dict[str, str]]):
        self.all = list(found)
        self.waiting = [point for point in found if not point.done]
        self.free = list(free)
        self.slots = len(free)
        self.at_work: list[tuple[Point, subprocess.Popen[bytes], dict[str, str], float]] = []
        self.failed: list[Point] = []
        self.asked: list[int] = []
        self.seconds: list[float] = []
        counts = Counter(step.fingerprint for point in found for step in point.steps)
        self.common = {fingerprint for fingerprint, count in counts.items() if count > 1}

    def run(self) -> list[Point]:
        """Start runs and watch them until none is left. Returns the runs that failed."""
        done = len(self.all) - len(self.waiting)
        if done:
            say(f"{done} of {len(self.all)} runs are finished already")
        before = {number: signal.signal(number, self._stop) for number in lifeline.asking()}
        try:
            while self.at_work or (self.waiting and not self.asked):
                while self.free and not self.asked and (point := self._ready()):
                    self.waiting.remove(point)
                    self._start(point, self.free.pop(0))
                time.sleep(0.2)
                self._look()
        finally:
            for _, process, _, _ in self.at_work:  # there is one only after an error in the loop above
                process.terminate()
                process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.asked:
            raise Stopped.by(self.asked, "the sweep")
        return self.failed

    def _ready(self) -> Point | None:
        """The first waiting run that does not need an unfinished stage of an active run; None when there is no such run."""
        if not self.at_work:  # with no active run, nothing can be about to finish a common stage
            return self.waiting[0] if self.waiting else None
        pending = {
            step.fingerprint
            for point, *_ in self.at_work
            for step in point.steps
            if step.fingerprint in self.common and not (step.out / MANIFEST).exists()
        }
        free = (point for point in self.waiting if not pending & {step.fingerprint for step in point.steps})
        return next(free, None)

    def _stop(self, number: int, _frame: Any) -> None:
        self.asked.append(number)
        for _, process, _, _ in self.at_work:
            process.send_signal(number)

    def _start(self, point: Point, slot: dict[str, str]) -> None:
        where = f" on GPU {slot['CUDA_VISIBLE_DEVICES']}" if "CUDA_VISIBLE_DEVICES" in slot else ""
        point.root.mkdir(parents=True, exist_ok=True)
        alone = self.slots == 1
        say(f"{point.name}: started{where}" + ("" if alone else f", output in {point.root / LOG}"))
        # Also runs of an earlier call of the same sweep: their stages may be the same.
        others = [folder.parent.parent for folder in sorted(point.root.parent.glob(f"*/{BASE}/{MANIFEST}"))]
        command = [sys.executable, "-m", "langext.cli", *point.command([root for root in others if root != point.root])]
        with ExitStack() as files:
            log = None if alone else files.enter_context((point.root / LOG).open("ab"))
            # In a separate session: otherwise Ctrl-C in the terminal would reach the run twice, directly and from `_stop`.
            process = subprocess.Popen(command, env=os.environ | slot, stdout=log, stderr=log, start_new_session=True)
        self.at_work.append((point, process, slot, time.monotonic()))
        if self.asked:  # the signal came before the run was in at_work
            process.send_signal(self.asked[-1])

    def _look(self) -> None:
        for entry in [entry for entry in self.at_work if entry[1].poll() is not None]:
            point, process, slot, started = entry
            self.at_work.remove(entry)
            self.free.append(slot)
            self.seconds.append(time.monotonic() - started)
            left = len(self.waiting) + len(self.at_work)
            if not process.returncode:
                eta = sum(self.seconds) / len(self.seconds) * left / self.slots
                say(f"{point.name}: finished in {duration(self.seconds[-1])}, {left} to go, ETA {duration(eta)}")
            elif not self.asked:
                self.failed.append(point)
                say(f"{point.name}: failed (exit code {process.returncode}), {left} to go")
