"""The learning rate in each step, as a factor of its peak."""

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["cosine", "wsd", "constant"]


@dataclass(frozen=True)
class Schedule:
    """Linear warmup over `warmup_steps`, then one of three shapes.

    cosine: falls to `floor` at the last step. wsd (warmup, stable, decay): stays at the peak until the last `decay_frac` of the
    steps, then floor + (1 - floor)(1 - sqrt(x)), the decay of https://arxiv.org/abs/2405.18392. constant: stays at the peak.
    """

    kind: Kind
    steps: int
    warmup_steps: int
    floor: float
    decay_frac: float

    def factor(self, step: int) -> float:
        """The factor at `step`, which counts from 0; between 0 and 1."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        first = self.warmup_steps if self.kind == "cosine" else self.steps - round(self.decay_frac * self.steps)
        first = max(first, self.warmup_steps)
        done = min(1.0, max(0.0, (step - first) / max(1, self.steps - 1 - first)))
        shape = (1 + math.cos(math.pi * done)) / 2 if self.kind == "cosine" else 1 - math.sqrt(done)
        return self.floor + (1 - self.floor) * shape
