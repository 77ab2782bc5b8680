"""What people see in a terminal. The only importer of rich."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress as Live
from rich.table import Table
from rich.text import Text


def say(text: str) -> None:
    """One plain line on standard output, at once."""
    print(text, flush=True)


def warn(text: str) -> None:
    """One plain line on standard error."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; numbers given as strings."""
    grid = Table(*columns, title=title, title_justify="left", title_style="bold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))  # names are taken as they are: nothing in them is markup
    Console(width=None if sys.stdout.isatty() else 140).print(grid)


def columns(texts: dict[str, str]) -> None:
    """Print texts side by side under their names. They are taken as they are: nothing in them is markup."""
    grid = Table(*texts, expand=True)
    grid.add_row(*(Text(text) for text in texts.values()))
    Console(width=None if sys.stdout.isatty() else 140).print(grid)


def duration(seconds: float) -> str:
    """7 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Bar:
    """A live bar below the printed lines, where standard output is a terminal; nothing anywhere else."""

    def __init__(self, label: str, total: int, *, shown: bool = True):
        self._live: Live | None = None
        if shown and sys.stdout.isatty():
            self._live = Live(transient=True)
            self._task = self._live.add_task(label, total=total)
            self._live.start()

    def at(self, done: int) -> None:
        """Report that `done` of `total` is reached."""
        if self._live:
            self._live.update(self._task, completed=done)

    def close(self) -> None:
        """Take it off the screen."""
        if self._live:
            self._live.stop()


class Progress:
    """Prints a line with an ETA at most every `every` seconds."""

    def __init__(self, label: str, total: float, every: float = 5.0):
        self.label, self.total, self.every = label, total, every
        self.started = self.said = time.monotonic()

    def at(self, done: float, text: str = "", *, force: bool = False) -> None:
        """Report that `done` of `total` is reached."""
        now = time.monotonic()
        if not force and now - self.said < self.every:
            return
        self.said = now
        say(f"  {self.label}: {min(1.0, done / self.total):4.0%}{', ' + text if text else ''}, ETA {self.eta(done)}")

    def eta(self, done: float) -> str:
        """Time left at the speed so far."""
        spent = time.monotonic() - self.started
        return duration(spent / done * max(0.0, self.total - done)) if done > 0 else "?"
