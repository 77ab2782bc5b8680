"""metrics.jsonl, the one interface between training and whatever reads it: sums over processes, lines on disk."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        self.last[kind] = figures | (more if kind == "train" else {})
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
    """Sums of a step's losses by language, over micro-batches and processes."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}
        self.penalties: dict[str, float] = {}

    def add(self, batch: "Batch", losses_BT: Any, penalties: dict[str, Any]) -> None:
        """Count one micro-batch."""
        for row, name in enumerate(batch.languages):
            total = self.sums.setdefault(name, [0.0, 0.0])
            total[0] += float(losses_BT[row].sum())
            total[1] += int((batch.labels[row] >= 0).sum())
        for name, value in penalties.items():
            self.penalties[name] = self.penalties.get(name, 0.0) + float(value.detach())

    def figures(self) -> dict[str, float]:
        """Mean loss per token (nats) by language and the weighted penalties, over all processes."""
        from torch import distributed

        everyone: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(everyone, (self.sums, self.penalties))
        losses: dict[str, list[float]] = {}
        penalties: dict[str, float] = {}
        for sums, theirs in everyone:
            for name, (total, count) in sums.items():
                mine = losses.setdefault(name, [0.0, 0.0])
                mine[0], mine[1] = mine[0] + total, mine[1] + count
            for name, value in theirs.items():
                penalties[name] = penalties.get(name, 0.0) + value
        return {f"loss/{n}": total / max(1, count) for n, (total, count) in sorted(losses.items())} | penalties
