"""metrics.jsonl, the one interface between training and whatever reads it: sums over processes, lines on disk."""

import json
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from langext.artifacts import METRICS, read_metrics
from langext.console import say
from langext.context import Context
from langext.training.selection import Evaluation

if TYPE_CHECKING:
    from langext.data.mixture import Batch


class Log:
    """metrics.jsonl of rank 0. After a resume the lines beyond the checkpoint are dropped: their steps happen again."""

    def __init__(self, ctx: Context, step: int):
        self.rank, self.path = ctx.rank, ctx.out / METRICS
        self.last: dict[str, dict[str, Any]] = {"train": {}, "eval": {}}
        """The newest line of each kind."""
        if self.rank == 0:
            kept = [
                row for row in read_metrics(self.path) if row["step"] < step or (row["step"] == step and row["kind"] == "train")
            ]
            beside = self.path.with_suffix(".tmp")
            beside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            os.replace(beside, self.path)

    def training(self, step: int, losses: dict[str, float], **more: Any) -> None:
        """Append a line of training: mean losses since the last one, and whatever else there is."""
        self._append({"step": step, "kind": "train", **more, "losses": losses})

    def evaluation(self, step: int, tokens: int, found: Evaluation) -> None:
        """Append a line of an evaluation."""
        plain = found.model_dump(mode="json", exclude_none=True)
        self._append({"step": step, "kind": "eval", "tokens": tokens, **plain})

    def _append(self, row: dict[str, Any]) -> None:
        self.last[row["kind"]] = row
        if self.rank == 0:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row | {"time": time.time()}) + "\n")

    def say(self, text: str) -> None:
        """One line on the terminal, from rank 0."""
        if self.rank == 0:
            say(text)


class Tally:
    """Sums of the losses by language since the last line of the log, over micro-batches, steps and processes.

    They stay on the device until they are asked for, so that nothing waits for it in between.
    """

    def __init__(self, languages: Sequence[str], device: torch.device, state: dict[str, Any] | None = None, share: float = 1.0):
        """Goes on with the counts of `state`, of which this process takes a `share`: 1 on rank 0, 0 on the others."""
        self.languages = list(languages)
        self.sums_L2 = torch.zeros(len(self.languages), 2, dtype=torch.float64, device=device)
        """Sum of losses, and number of labels, by language."""
        self.penalties: dict[str, torch.Tensor] = {}
        self.steps = 0
        """Optimizer steps that were counted; the loop counts them."""
        if state:
            self.steps = state["steps"]
            self.sums_L2 += share * torch.tensor(state["sums"], dtype=torch.float64, device=device)
            self.penalties = {
                name: share * torch.tensor(value, dtype=torch.float64, device=device)
                for name, value in state["penalties"].items()
            }

    def add(self, batch: "Batch", losses_BT: torch.Tensor, penalties: dict[str, torch.Tensor]) -> None:
        """Count one micro-batch."""
        owners_B = torch.tensor([self.languages.index(name) for name in batch.languages], device=losses_BT.device)
        counts_B = (batch.labels >= 0).sum(1).to(losses_BT.device)
        self.sums_L2.index_add_(0, owners_B, torch.stack([losses_BT.sum(1).double(), counts_B.double()], 1))
        for name, value in penalties.items():
            self.penalties[name] = self.penalties.get(name, 0) + value.detach().double()

    def state(self) -> dict[str, Any]:
        """What all processes have counted so far, as plain numbers."""
        sums_L2, penalties = self._everywhere()
        return {"sums": sums_L2, "penalties": penalties, "steps": self.steps}

    def _everywhere(self) -> tuple[list[list[float]], dict[str, float]]:
        everything = torch.cat([self.sums_L2.flatten(), *(p.reshape(1) for p in self.penalties.values())])
        distributed.all_reduce(everything)
        totals, size = everything.tolist(), self.sums_L2.numel()
        pairs = [totals[at : at + 2] for at in range(0, size, 2)]
        return pairs, dict(zip(self.penalties, totals[size:], strict=True))

    def take(self) -> dict[str, float]:
        """Mean loss per token (nats) by language and mean weighted penalty per step, over all processes; then all is zero."""
        sums_L2, penalties = self._everywhere()
        named = sorted(zip(self.languages, sums_L2, strict=True))
        figures = {f"loss/{name}": total / count for name, (total, count) in named if count}
        figures |= {name: total / max(1, self.steps) for name, total in penalties.items()}
        self.__init__(self.languages, self.sums_L2.device)
        return figures
