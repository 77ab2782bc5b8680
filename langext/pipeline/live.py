"""Keeps the report of a run up to date while its training goes on: it is written anew after every evaluation.

The one rule: what goes wrong here is said once and ends the writing, never the run.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from langext.artifacts import METRICS, read_metrics
from langext.console import warn
from langext.errors import ConfigError, RunFailed

EVERY_SECONDS = 10.0
"""How often the lines that a training writes are looked at."""


@contextmanager
def page(out: Path, every: float = EVERY_SECONDS) -> Iterator[None]:
    """A context in which the report follows the training in the stage folder `out`."""
    ended = threading.Event()
    writer = threading.Thread(target=_follow, args=(out, every, ended), name="report", daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()  # the report of the whole run is written next, by the same name


def _follow(out: Path, every: float, ended: threading.Event) -> None:
    written = 0
    while not ended.wait(every):
        try:
            evaluations = sum(row["kind"] == "eval" for row in read_metrics(out / METRICS))
            if evaluations != written:
                from langext.report import page  # plots take seconds to import, and not before there is something to show

                page.build(out.parent)
                written = evaluations
        except (ConfigError, RunFailed, OSError) as error:
            warn(f"report.html is not brought up to date while the training goes on: {error}")
            return
