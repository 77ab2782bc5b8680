"""Several task vectors (trained minus initial weights) of one model -> one.

- task arithmetic: their sum. https://arxiv.org/abs/2212.04089
- TIES: of each the largest entries, then the mean of those that agree with the elected sign. https://arxiv.org/abs/2306.01708
- consensus: the sum, where at least two tasks need it. https://arxiv.org/abs/2405.07813

A task vector is a dict from parameter name to tensor; a name that one lacks counts as zero there.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Vector = Mapping[str, Tensor]


def task_arithmetic(vectors: Sequence[Vector]) -> dict[str, Tensor]:
    """The sum."""
    return {name: torch.stack(found).sum(0) for name, found in _by_name(vectors)}


def ties(vectors: Sequence[Vector], keep: float) -> dict[str, Tensor]:
    """Trim each vector to its `keep` largest entries by magnitude, elect a sign for each entry, average those that have it.

    The sign is that of the sum; where that is zero, the more frequent one of the whole model.
    """
    floors = [_floor(vector, keep) for vector in vectors]
    trimmed = [
        (name, torch.stack([t * (t.abs() >= floor) for t, floor in zip(found, floors, strict=True)]))
        for name, found in _by_name(vectors)
    ]
    majority = torch.sign(sum((stack.sum(0).sign().sum() for _, stack in trimmed), torch.zeros(())))
    merged = {}
    for name, stack in trimmed:
        elected = stack.sum(0).sign()
        elected = torch.where(elected == 0, majority, elected)
        agree = (stack.sign() == elected) & (stack != 0)
        merged[name] = (stack * agree).sum(0) / agree.sum(0).clamp(min=1)
    return merged


def consensus(vectors: Sequence[Vector], mask_lambda: float, agree: int = 2) -> dict[str, Tensor]:
    """The sum, kept where at least `agree` tasks find |tau_t| >= mask_lambda |sum - tau_t|, and zero elsewhere."""
    merged = {}
    for name, found in _by_name(vectors):
        stack = torch.stack(found)
        total = stack.sum(0)
        needed = (stack.abs() >= mask_lambda * (total - stack).abs()) & (stack != 0)
        merged[name] = total * (needed.sum(0) >= agree)
    return merged


def norm_ratio(vectors: Sequence[Vector], merged: Vector) -> float:
    """LiNeS' alpha for merging N tasks: (||sum of tau_t||_1 / ||tau_merged||_1) / N, https://arxiv.org/abs/2410.17146."""
    total = sum(float(t.abs().sum()) for t in task_arithmetic(vectors).values())
    size = sum(float(t.abs().sum()) for t in merged.values())
    return total / max(size, 1e-12) / len(vectors)


def _floor(vector: Vector, keep: float) -> float:
    """The magnitude of the entry that is just kept."""
    sizes = torch.cat([t.abs().flatten() for t in vector.values()])
    kept = max(1, int(len(sizes) * keep))
    return float(sizes.kthvalue(len(sizes) - kept + 1).values)


def _by_name(vectors: Sequence[Vector]) -> list[tuple[str, list[Tensor]]]:
    like = {name: tensor for vector in vectors for name, tensor in vector.items()}
    return [(name, [v.get(name, torch.zeros_like(tensor)) for v in vectors]) for name, tensor in sorted(like.items())]
