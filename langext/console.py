"""Output for people at a terminal: lines, tables and progress. Only this module imports rich.

The one rule: what is printed can come from a model or from a stranger's file, so nothing in it steers the terminal.
"""

import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO, TextIOWrapper
from math import isfinite
from statistics import fmean
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import Progress as Live
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from langext.errors import printable

T = TypeVar("T")


def print_anything() -> None:
    """Make standard output print letters that its encoding does not have as escapes, in place of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print one plain line on standard output and flush it at once."""
    print(printable(text), flush=True)


def warn(text: str) -> None:
    """Print one plain line, marked as a warning, on standard error."""
    print(f"warning: {printable(text)}", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. Every cell is a string, numbers too."""
    grid = Table(*columns, title=title, title_justify="left", title_style="bold")
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))  # Text: a name with [brackets] is not markup
    Console(width=None if sys.stdout.isatty() else 140).print(grid)


def columns(texts: dict[str, str]) -> None:
    """Print texts side by side, each under its name. Brackets in a text are printed, not read as rich markup."""
    grid = Table(*texts, expand=True)
    grid.add_row(*(Text(printable(text)) for text in texts.values()))
    Console(width=None if sys.stdout.isatty() else 140).print(grid)


def duration(seconds: float) -> str:
    """A time in seconds as people read it: 7 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
"""Heights of a sparkline; and those for a terminal that knows only ASCII."""


def spark(values: Sequence[float], width: int = 40) -> str:
    """A curve as a line of text, at most `width` letters long: the mean of each part of the values, low to high.

    What is not finite leaves a gap. The heights lie between the least and the largest of these means.
    """
    parts = min(width, len(values))
    means = [fmean(values[i * len(values) // parts : (i + 1) * len(values) // parts]) for i in range(parts)]
    finite = [mean for mean in means if isfinite(mean)]
    bars = BARS if _prints(BARS) else PLAIN_BARS
    if not finite:
        return " " * parts
    low, spread = min(finite), (max(finite) - min(finite)) or 1.0
    heights = [round((mean - low) / spread * (len(bars) - 1)) if isfinite(mean) else None for mean in means]
    return "".join(" " if height is None else bars[height] for height in heights)


def _prints(text: str) -> bool:
    """Whether standard output has these letters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


class Bar:
    """A progress bar below the printed lines. Shows nothing when standard output is not a terminal."""

    def __init__(self, label: str, total: int, *, shown: bool = True):
        self._live: Live | None = None
        if shown and sys.stdout.isatty():
            self._live = Live(transient=True)
            self._task = self._live.add_task(label, total=total)
            self._live.start()

    def at(self, done: int) -> None:
        """Show that `done` of `total` is reached."""
        if self._live:
            self._live.update(self._task, completed=done)

    def close(self) -> None:
        """Remove the bar from the screen."""
        if self._live:
            self._live.stop()


class Progress:
    """Prints a progress line with the estimated time left, at most once every `every` seconds."""

    def __init__(self, label: str, total: float, every: float = 5.0):
        self.label, self.total, self.every = label, total, every
        self.started = self.said = time.monotonic()

    def at(self, done: float, text: str = "", *, force: bool = False) -> None:
        """Report that `done` of `total` is reached, with `text` after it. `force` prints even if the last line is recent."""
        now = time.monotonic()
        if not force and now - self.said < self.every:
            return
        self.said = now
        say(f"  {self.label}: {min(1.0, done / self.total):4.0%}{', ' + text if text else ''}, ETA {self.eta(done)}")

    def eta(self, done: float) -> str:
        """Estimated time left, from the average speed so far; ? before anything is done."""
        spent = time.monotonic() - self.started
        return duration(spent / done * max(0.0, self.total - done)) if done > 0 else "?"


SILENCE_SECONDS = 30.0
"""Longest time without a line in what `told`, `Lines` and `waiting` watch."""


def told(label: str, parts: Collection[T]) -> Iterator[T]:
    """The parts, one by one. Prints a line of progress whenever they have taken `SILENCE_SECONDS` more, and else nothing."""
    progress = Progress(label, max(1, len(parts)), SILENCE_SECONDS)
    for done, part in enumerate(parts):
        progress.at(done)
        yield part


class Lines(tqdm):
    """Stands in for a bar of tqdm in a library: draws nothing, and prints what `told` prints, on `file` if that is given.

    `label` comes before what the library says that it does.
    """

    def __init__(self, *given: Any, label: str = "", file: TextIO | None = None, **options: Any):
        self.terminal = file or sys.stdout
        self.progress = Progress(label + (options.get("desc") or "").lower(), 1.0, SILENCE_SECONDS)
        super().__init__(*given, **options | {"file": StringIO(), "disable": False, "mininterval": 1.0, "miniters": 0})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Called by tqdm at most once a second. Prints a line when the last one is old, and something has been counted."""
        if self.n and self.total:
            self.progress.total = self.total
            with redirect_stdout(self.terminal):
                self.progress.at(self.n)


def bars() -> type[Any] | None:
    """The class of bars for a library that downloads: its own at a terminal, which is None, and lines elsewhere."""
    return None if sys.stderr.isatty() else Lines


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """A context in which a line is printed every `SILENCE_SECONDS`, for what gives no sign of how far it is."""
    over, started, terminal = threading.Event(), time.monotonic(), sys.stdout

    def tell() -> None:
        while not over.wait(SILENCE_SECONDS):
            print(printable(f"  {label}: {duration(time.monotonic() - started)} so far"), file=terminal, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
