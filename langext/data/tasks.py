"""What all executors of datatrove steps have in common: how the failure of a task is told, and what is shown."""

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from langext.errors import RunFailed, disk_problem

READS = "begins to read "
"""What the log of a task has before the name of each file."""


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """What the disk does not take or give becomes a RunFailed."""
    try:
        yield
    except OSError as error:
        problem = disk_problem(error) or f"{error.strerror or error}; run the same command again to go on"
        raise RunFailed(f"writing filtered text: {problem}") from None


def killed(advice: str, number: int = signal.SIGKILL, files: Sequence[str] = ()) -> RunFailed:
    """The error when a process of a task ended without a word, by the signal `number`, while tasks read `files`.

    `advice` says what to change where memory was short, before the same command is run.
    """
    at = f" while {' and '.join(files)} {'was' if len(files) == 1 else 'were'} read" if files else ""
    if number != signal.SIGKILL:
        return RunFailed(
            f"a process that reads text crashed (signal {number}){at}: a library cannot bear what stands there. Leave that "
            "out, or mend it, and run the same command again to go on"
        )
    return RunFailed(
        f"a process that reads text was killed{at}, as happens when there is not enough memory; "
        f"{advice}, and run the same command again to go on"
    )


def reading(log: Path, since: float = 0.0) -> list[str]:
    """The file that each task was at which is not finished: the last that its log below the folder `log` names.

    Logs that were last written before the time `since` do not count.
    """
    found = []
    for path in sorted(log.glob("**/logs/task_*.log")):
        finished = path.parent.parent / "completions" / path.stem.removeprefix("task_")
        if not finished.exists() and path.stat().st_mtime >= since:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [line.partition(READS)[2] for line in lines if READS in line][-1:]
    return found


@contextlib.contextmanager
def silenced() -> Iterator[Callable[[], str]]:
    """Nothing comes to standard error, also not from processes that are started meanwhile: the task logs have all of it.

    The function that it gives returns what would have come.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as aside, contextlib.redirect_stderr(aside):
            os.dup2(aside.fileno(), 2)
            yield lambda: os.pread(2, 100_000, 0).decode(errors="replace")
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A SIGTERM is an interruption as Ctrl-C is, so that what runs on other machines can be cancelled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
