"""The command `langext watch`: what a run does now, from the files that it writes.

The one rule: it only reads, so that it can be started, stopped and started twice on any run.
"""

import fcntl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from langext.cli import edge

LATEST = 10
"""Lines of a training that are shown of what was written before."""


def watch(
    root: edge.RunFolder,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
) -> None:
    """Print the newest lines of a run until it ends, with curves of the loss and of held-out bits per byte.

    Ctrl-C ends the watching, not the run.
    """
    with edge.clean():
        from langext.console import say
        from langext.errors import ConfigError

        if not root.is_dir():
            raise ConfigError(f"{root}: no such folder")
        seen = Seen(root)
        try:
            while working(root):
                for line in seen.news():
                    say(line)
                time.sleep(every)
        except KeyboardInterrupt:
            say("no longer watching; the run goes on")
            return
        for line in seen.news():  # what was written since the last look
            say(line)
        say(f"{root}: no run works here now")


def working(root: Path) -> bool:
    """Whether a `langext run` works in this folder: it holds the lock then."""
    from langext.artifacts import LOCK

    path = root / LOCK
    if not path.is_file():
        return False
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@dataclass
class Seen:
    """What of a run has been told."""

    root: Path
    states: dict[str, str] = field(default_factory=dict)
    """Folder of a stage -> its state."""
    until: dict[str, float] = field(default_factory=dict)
    """Folder of a training -> when its newest line that was told was written. After a resume steps are made again."""

    def news(self) -> Iterator[str]:
        """Lines about what has happened since the last call."""
        from langext.artifacts import METRICS, read_metrics

        for stage in sorted(self.root.glob("[0-9][0-9]-*")):
            rows = read_metrics(stage / METRICS)
            now, before = _state(stage), self.states.get(stage.name)
            self.states[stage.name] = now
            if before is None and now:
                yield f"{stage.name}: {now}"
            first = stage.name not in self.until
            new = [row for row in rows if row["time"] > self.until.get(stage.name, 0.0)]
            if new:
                self.until[stage.name] = new[-1]["time"]
                yield from map(_line, new[-LATEST:] if first else new)
                if first or any(row["kind"] == "eval" for row in new):
                    yield from curves(rows)
            if before is not None and now != before:
                yield f"{stage.name}: {now}"


def _state(stage: Path) -> str:
    """How far a stage is, in words; empty before it is started."""
    from langext.artifacts import JOB, MANIFEST, Job, Manifest, read_as
    from langext.console import duration

    if (stage / MANIFEST).is_file():
        return f"finished in {duration(read_as(stage / MANIFEST, Manifest).seconds)}"
    if not (stage / JOB).is_file():
        return ""
    return "failed" if read_as(stage / JOB, Job).failure else "begun"


def _line(row: dict[str, Any]) -> str:
    """A line of metrics.jsonl as the training printed it."""
    from langext.console import duration

    if row["kind"] == "eval":
        bits = "  ".join(f"{name} {of['bits_per_byte']:.4f}" for name, of in row["sets"].items())
        kl = f"  KL to the base {row['kl_to_base']:.4f}" if row.get("kl_to_base") is not None else ""
        return f"  step {row['step']}  held-out bits per byte: {bits}{kl}"
    losses = "  ".join(f"{name} {value:.3f}" for name, value in row["losses"].items())
    return f"  step {row['step']}  {losses}  {row['tokens_per_second']:.0f} tokens/s  ETA {duration(row['eta_seconds'])}"


def _bits(row: dict[str, Any]) -> dict[str, float]:
    return {f"{name}, bits per byte": measured["bits_per_byte"] for name, measured in row["sets"].items()}


def curves(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A sparkline of each loss and of the bits per byte of each held-out text, with the first and the last value."""
    from langext.console import spark

    found: dict[str, list[float]] = {}
    for row in rows:
        named = row["losses"] if row["kind"] == "train" else _bits(row)
        for name, value in named.items():
            found.setdefault(name, []).append(value)
    wide = max(map(len, found), default=0)
    for name, values in found.items():
        if len(values) > 1:
            yield f"    {name:<{wide}}  {spark(values)}  {values[0]:.3f} -> {values[-1]:.3f}"
