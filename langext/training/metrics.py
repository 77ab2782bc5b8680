"""metrics.jsonl and the sums behind its lines. The one rule: all that others read of a training is in this file."""

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
    """Writes metrics.jsonl, on rank 0 only.

    After a resume at `step` the lines after the checkpoint are removed, because their steps are made again.
    """

    def __init__(self, ctx: Context, step: int):
        self.rank, self.path = ctx.rank, ctx.out / METRICS
        self.tokens_per_second: float | None = None
        """Speed in the newest training line."""
        if self.rank == 0:
            # The training line of the checkpoint's own step stays; the evaluation of that step is made again.
            kept = [
                row for row in read_metrics(self.path) if row["step"] < step or (row["step"] == step and row["kind"] == "train")
            ]
            beside = self.path.with_suffix(".tmp")
            beside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            os.replace(beside, self.path)

    def training(self, step: int, losses: dict[str, float], **more: Any) -> None:
        """Append a training line: mean losses since the last line (nats per token), and the values in `more`."""
        self.tokens_per_second = more.get("tokens_per_second")
        self._append({"step": step, "kind": "train", **more, "losses": losses})

    def evaluation(self, step: int, tokens: int, measured: Evaluation) -> None:
        """Append an evaluation line. `tokens` is the number of tokens trained on so far."""
        plain = measured.model_dump(mode="json", exclude_none=True)
        self._append({"step": step, "kind": "eval", "tokens": tokens, **plain})

    def _append(self, row: dict[str, Any]) -> None:
        if self.rank == 0:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row | {"time": time.time()}) + "\n")

    def say(self, text: str) -> None:
        """Print one line on the terminal, on rank 0 only."""
        if self.rank == 0:
            say(text)


class Tally:
    """Sums of the losses by language since the last line of the log, over micro-batches, steps and processes.

    The sums stay on the device until they are read, so that the CPU does not wait for the device in between.
    """

    def __init__(self, languages: Sequence[str], device: torch.device, state: dict[str, Any] | None = None, share: float = 1.0):
        """Start from the sums in `state`, if given. `share` is this process's part of them: 1 on rank 0, 0 on the others."""
        self.languages = list(languages)
        self.sums_L2 = torch.zeros(len(self.languages), 2, dtype=torch.float64, device=device)
        """For each of L languages: sum of losses in nats, and number of labels."""
        self.penalties: dict[str, torch.Tensor] = {}
        self.steps = 0
        """Number of optimizer steps in the sums; the loop raises it."""
        if state:
            self.steps = state["steps"]
            self.sums_L2 += share * torch.tensor(state["sums"], dtype=torch.float64, device=device)
            self.penalties = {
                name: share * torch.tensor(value, dtype=torch.float64, device=device)
                for name, value in state["penalties"].items()
            }

    def add(self, batch: "Batch", losses_BT: torch.Tensor, penalties: dict[str, torch.Tensor]) -> None:
        """Add one micro-batch of B sequences and T tokens: its losses in nats (B, T) and its weighted penalties."""
        owners_B = torch.tensor([self.languages.index(name) for name in batch.languages], device=losses_BT.device)
        counts_B = (batch.labels >= 0).sum(1).to(losses_BT.device)
        self.sums_L2.index_add_(0, owners_B, torch.stack([losses_BT.sum(1).double(), counts_B.double()], 1))
        for name, value in penalties.items():
            self.penalties[name] = self.penalties.get(name, 0) + value.detach().double()

    def state(self) -> dict[str, Any]:
        """The sums over all processes, as plain numbers for a checkpoint. Every process must call this."""
        sums_L2, penalties = self._everywhere()
        return {"sums": sums_L2, "penalties": penalties, "steps": self.steps}

    def _everywhere(self) -> tuple[list[list[float]], dict[str, float]]:
        # One tensor and one all_reduce, because each all_reduce makes all processes wait.
        everything = torch.cat([self.sums_L2.flatten(), *(p.reshape(1) for p in self.penalties.values())])
        distributed.all_reduce(everything)
        totals, size = everything.tolist(), self.sums_L2.numel()
        pairs = [totals[at : at + 2] for at in range(0, size, 2)]
        return pairs, dict(zip(self.penalties, totals[size:], strict=True))

    def take(self) -> dict[str, float]:
        """Mean loss per token (nats) by language and mean weighted penalty per step, over all processes. Resets the sums."""
        sums_L2, penalties = self._everywhere()
        named = sorted(zip(self.languages, sums_L2, strict=True))
        means = {f"loss/{name}": total / count for name, (total, count) in named if count}
        means |= {name: total / max(1, self.steps) for name, total in penalties.items()}
        self.__init__(self.languages, self.sums_L2.device)
        return means
