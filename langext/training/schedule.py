"""How the learning rate moves over a training, as a factor of its peak."""

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["cosine", "wsd", "constant"]


@dataclass(frozen=True)
class Schedule:
    """Linear warmup, then one of three ways down.

    cosine: to `floor` at the last step. wsd (warmup, stable, decay): the peak until the last `decay_frac` of the steps, then
    floor + (1 - floor)(1 - sqrt(x)), the decay of https://arxiv.org/abs/2405.18392. constant: the peak to the end.
    """

    kind: Kind
    steps: int
    warmup_steps: int
    floor: float
    decay_frac: float

    def factor(self, step: int) -> float:
        """The factor at the 0-based `step`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        first = self.warmup_steps if self.kind == "cosine" else self.steps - round(self.decay_frac * self.steps)
        first = max(first, self.warmup_steps)
        done = min(1.0, max(0.0, (step - first) / max(1, self.steps - 1 - first)))
        shape = (1 + math.cos(math.pi * done)) / 2 if self.kind == "cosine" else 1 - math.sqrt(done)
        return self.floor + (1 - self.floor) * shape
