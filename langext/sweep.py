"""Many runs that differ in a few settings: what they have in common is done once, the rest side by side where devices allow."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from langext import pipeline
from langext.console import duration, say
from langext.pipeline import Pipeline, Step
from langext.spec import ConfigError, RunFailed, load, located, parse

LOG = "sweep.log"


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """Of its folder: what sets it apart."""
    file: Path
    overrides: tuple[str, ...]
    spec: Pipeline
    root: Path
    steps: list[Step]

    @property
    def done(self) -> bool:
        """Is every stage finished?"""
        return all(step.state == "done" for step in self.steps)

    def command(self, others: Sequence["Point"]) -> list[str]:
        """Arguments of the `langext run` that makes it."""
        more = [part for item in self.overrides for part in ("--set", item)]
        more += [part for other in others for part in ("--reuse", str(other.root))]
        return ["run", str(self.file), "--out", str(self.root), *more]


def axis(text: str) -> tuple[str, list[Any]]:
    """`train.lr=1e-4,3e-4` -> the key and its values, each of them YAML. Raises ConfigError for what is no list."""
    key, equals, values = text.partition("=")
    where = f"--over {text}"
    if not (equals and key and values.strip()):
        raise ConfigError(f"{where}: expected key=value,value, for example train.lr=1e-4,3e-4")
    found = parse(f"[{values}]", where, "safe")
    if len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    if len({json.dumps(value, sort_keys=True) for value in found}) < len(found):
        raise ConfigError(f"{where}: a value is there twice")
    return key, found


def name_of(file: Path) -> str:
    """The name of a pipeline."""
    return load(file, Pipeline).name


def points(files: Sequence[Path], over: Sequence[str], overrides: Sequence[str], out: Path) -> list[Point]:
    """Every pipeline with every combination of values, in order. Raises ConfigError for one that is not valid."""
    axes = [axis(text) for text in over]
    found = []
    for file in files:
        for values in product(*(values for _, values in axes)):
            chosen = {key: value for (key, _), value in zip(axes, values, strict=True)}
            given = (*overrides, *(f"{key}={json.dumps(value)}" for key, value in chosen.items()))
            spec = load(file, Pipeline, given)
            parts = [spec.name] if len(files) > 1 or not chosen else []
            name = "-".join([*parts, *(_shown(key, value) for key, value in chosen.items())])
            root = out / re.sub(r"[^\w.=+-]+", "-", name)
            try:
                steps = pipeline.plan(spec, root)
            except ConfigError as error:
                raise ConfigError(located(error, file, given)) from None
            found.append(Point(root.name, file, given, spec, root, steps))
    twice = [name for name, count in Counter(point.name for point in found).items() if count > 1]
    if twice:
        raise ConfigError(f"two runs of this sweep would both be called {twice[0]}; give the pipelines names that differ")
    return found


def _shown(key: str, value: Any) -> str:
    """A setting in a folder's name: what has a name goes by it."""
    if isinstance(value, dict) and "name" in value:
        rest = [_shown(k, v) for k, v in value.items() if k != "name"]
        return "-".join([str(value["name"]), *rest])
    if isinstance(value, str) and key.endswith("method"):
        return value
    return f"{key.split('.')[-1]}={value:g}" if isinstance(value, float) else f"{key.split('.')[-1]}={value}"


def check(found: Sequence[Point]) -> None:
    """Raise ConfigError for whatever can be seen to be wrong with any of the runs; what is common, once."""
    seen: set[str] = set()
    for point in found:
        todo = [step for step in point.steps if step.state != "done" and step.fingerprint not in seen]
        seen |= {step.fingerprint for step in point.steps}
        try:
            pipeline.check(point.spec, point.steps, todo)
        except ConfigError as error:
            raise ConfigError(f"{point.name}: {located(error, point.file, point.overrides)}") from None


def places(found: Sequence[Point], jobs: int | None) -> list[dict[str, str]]:
    """For each run that can go on at the same time, the environment that gives it devices of its own.

    Raises ConfigError when `jobs` is more than there are devices for.
    """
    gpus = max(step.stage.runtime.gpus for point in found for step in point.steps)
    if any(step.stage.runtime.nodes > 1 for point in found for step in point.steps):
        fits, each = 1, [{}]
    elif gpus:
        here = _visible()
        fits = max(1, len(here) // gpus)
        each = [{"CUDA_VISIBLE_DEVICES": ",".join(here[k * gpus : (k + 1) * gpus])} for k in range(fits)]
    else:
        fits = jobs or 1
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        each = [{"OMP_NUM_THREADS": str(max(1, cores // fits))} if fits > 1 else {} for _ in range(fits)]
    if jobs and jobs > fits:
        raise ConfigError(f"--jobs {jobs}: there are devices for {fits} at a time")
    return each[: jobs or fits]


def _visible() -> list[str]:
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(k) for k in range(torch.cuda.device_count())]


def common(found: Sequence[Point]) -> set[str]:
    """Fingerprints of the stages that more than one run has. What such a stage reads is common to them as well."""
    counts = Counter(fingerprint for point in found for fingerprint in {step.fingerprint for step in point.steps})
    return {fingerprint for fingerprint, count in counts.items() if count > 1}


def run(found: Sequence[Point], jobs: int | None) -> list[Point]:
    """Do what is missing, common stages first. Returns the runs that failed; the others are finished.

    A first Ctrl-C or SIGTERM goes to the runs that are at work, which save and leave; then this leaves as well.
    """
    check(found)
    room = places(found, jobs)
    shared = common(found)
    known = [point.root for point in found]
    for point in found:
        mine = [step for step in point.steps if step.fingerprint in shared and step.state != "done"]
        if mine:
            say(f"{point.name}: {', '.join(step.name for step in mine)}, in common with other runs")
            pipeline.run(point.spec, point.root, others=[root for root in known if root != point.root], only=shared)
    return _Work(found, room).through()


def report(failed: Sequence[Point]) -> None:
    """Raise RunFailed with the commands that try the failed runs again, if there are some."""
    if failed:
        commands = "\n".join("  langext " + shlex.join(point.command([])) for point in failed)
        raise RunFailed(f"{len(failed)} run(s) failed; see their output. To try one again alone:\n{commands}")


class _Work:
    """The runs that are at work, and those that wait."""

    def __init__(self, found: Sequence[Point], room: Sequence[dict[str, str]]):
        self.all = list(found)
        self.waiting = [point for point in found if not point.done]
        self.free = list(room)
        self.alone = len(room) == 1
        self.at_work: list[tuple[Point, subprocess.Popen[bytes], dict[str, str], float]] = []
        self.failed: list[Point] = []
        self.asked: list[int] = []
        self.seconds: list[float] = []
        self.rooms = len(room)

    def through(self) -> list[Point]:
        done = len(self.all) - len(self.waiting)
        if done:
            say(f"{done} of {len(self.all)} runs are finished already")
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._stop) for number in signals}
        try:
            while self.at_work or (self.waiting and not self.asked):
                while self.waiting and self.free and not self.asked:
                    self._start(self.waiting.pop(0), self.free.pop(0))
                time.sleep(0.1)
                self._look()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.asked:
            raise KeyboardInterrupt
        return self.failed

    def _stop(self, number: int, _frame: Any) -> None:
        self.asked.append(number)
        for _, process, _, _ in self.at_work:
            process.send_signal(number)

    def _start(self, point: Point, place: dict[str, str]) -> None:
        where = f" on GPU {place['CUDA_VISIBLE_DEVICES']}" if "CUDA_VISIBLE_DEVICES" in place else ""
        point.root.mkdir(parents=True, exist_ok=True)
        say(f"{point.name}: started{where}" + ("" if self.alone else f", output in {point.root / LOG}"))
        command = [sys.executable, "-m", "langext.cli", *point.command([other for other in self.all if other is not point])]
        log = None if self.alone else (point.root / LOG).open("ab")
        # In a session of its own: else the terminal's Ctrl-C would reach it twice.
        process = subprocess.Popen(command, env=os.environ | place, stdout=log, stderr=log, start_new_session=True)
        if log:
            log.close()
        self.at_work.append((point, process, place, time.monotonic()))

    def _look(self) -> None:
        for entry in [entry for entry in self.at_work if entry[1].poll() is not None]:
            point, process, place, started = entry
            self.at_work.remove(entry)
            self.free.append(place)
            self.seconds.append(time.monotonic() - started)
            if process.returncode and not self.asked:
                self.failed.append(point)
                say(f"{point.name}: failed (exit code {process.returncode})")
            elif not process.returncode:
                left = len(self.waiting) + len(self.at_work)
                eta = sum(self.seconds) / len(self.seconds) * left / self.rooms
                say(f"{point.name}: finished in {duration(self.seconds[-1])}, {left} to go, ETA {duration(eta)}")
