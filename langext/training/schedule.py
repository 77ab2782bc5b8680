"""How the learning rate moves over a training, as a factor of its peak."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["cosine", "wsd", "constant"]


@dataclass(frozen=True)
class Shape:
    """The way down after the warmup."""

    height: Callable[[float], float]
    """Share of the decay that is done, 0 to 1 -> how much is left of the way from the peak to the floor, 1 to 0."""
    late: bool = False
    """True if it begins with the last `decay_frac` of the steps, False if it begins after the warmup."""


SHAPES: dict[Kind, Shape] = {
    "cosine": Shape(lambda done: (1 + math.cos(math.pi * done)) / 2),
    "wsd": Shape(lambda done: 1 - math.sqrt(done), late=True),  # https://arxiv.org/abs/2405.18392
    "constant": Shape(lambda done: 1.0),
}
"""cosine falls to the floor, wsd (warmup, stable, decay) stays at the peak first, constant stays there to the end."""


@dataclass(frozen=True)
class Schedule:
    """Linear warmup, then floor + (1 - floor) * height."""

    kind: Kind
    steps: int
    warmup_steps: int
    floor: float
    decay_frac: float

    def factor(self, step: int) -> float:
        """The factor at the 0-based `step`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        shape = SHAPES[self.kind]
        first = self.steps - round(self.decay_frac * self.steps) if shape.late else self.warmup_steps
        first = max(first, self.warmup_steps)
        done = min(1.0, max(0.0, (step - first) / max(1, self.steps - 1 - first)))
        return self.floor + (1 - self.floor) * shape.height(done)
