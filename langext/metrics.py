"""metrics.jsonl, the one interface between training and whatever reads it: sums over processes, lines on disk."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import distributed

from langext.console import say
from langext.stage import Context

if TYPE_CHECKING:
    from langext.mixture import Batch

METRICS = "metrics.jsonl"


class Log:
    """metrics.jsonl of rank 0. After a resume the lines beyond the checkpoint are dropped: their steps happen again."""

    def __init__(self, ctx: Context, step: int):
        self.rank, self.path = ctx.rank, ctx.out / METRICS
        self.last: dict[str, dict[str, Any]] = {"train": {}, "eval": {}}
        if self.rank == 0:
            kept = [row for row in read(self.path) if row["step"] < step or (row["step"] == step and row["kind"] == "train")]
            self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def write(self, step: int, kind: str, figures: dict[str, Any], **more: Any) -> None:
        """Append one line."""
        self.last[kind] = {"figures": figures, **more}
        if self.rank == 0:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "kind": kind, "time": time.time(), **more, "figures": figures}) + "\n")

    def say(self, text: str) -> None:
        """One line on the terminal, from rank 0."""
        if self.rank == 0:
            say(text)


def read(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file; [] when there is none."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may have cut the last one


class Tally:
    """Sums of the losses by language since the last line of the log, over micro-batches, steps and processes."""

    def __init__(self) -> None:
        self.losses: dict[str, list[float]] = {}
        self.penalties: dict[str, float] = {}
        self.steps = 0
        """Optimizer steps that were counted; the loop counts them."""

    def add(self, batch: "Batch", losses_BT: Any, penalties: dict[str, Any]) -> None:
        """Count one micro-batch."""
        for row, name in enumerate(batch.languages):
            _count(self.losses, name, float(losses_BT[row].sum()), int((batch.labels[row] >= 0).sum()))
        for name, value in penalties.items():
            self.penalties[name] = self.penalties.get(name, 0.0) + float(value.detach())

    def take(self) -> dict[str, float]:
        """Mean loss per token (nats) by language and mean weighted penalty per step, over all processes; then all is zero."""
        everyone: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(everyone, (self.losses, self.penalties))
        losses: dict[str, list[float]] = {}
        penalties: dict[str, float] = {}
        for their_losses, their_penalties in everyone:
            for name, (total, count) in their_losses.items():
                _count(losses, name, total, count)
            for name, total in their_penalties.items():
                penalties[name] = penalties.get(name, 0.0) + total / max(1, self.steps)
        self.__init__()
        return {f"loss/{n}": t / max(1, c) for n, (t, c) in sorted(losses.items())} | penalties


def _count(sums: dict[str, list[float]], name: str, total: float, count: int) -> None:
    so_far = sums.setdefault(name, [0.0, 0])
    so_far[0] += total
    so_far[1] += count
