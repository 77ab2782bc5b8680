"""Merge several task vectors of one model into one. A task vector is the trained weights minus the initial weights.

- task arithmetic: the sum of the vectors. https://arxiv.org/abs/2212.04089
- TIES: keep the largest entries of each vector, then average those with the elected sign. https://arxiv.org/abs/2306.01708
- consensus: the sum, but only entries that at least two tasks need. https://arxiv.org/abs/2405.07813

A task vector is a dict from parameter name to tensor. A parameter that one vector lacks counts as zero in it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Vector = Mapping[str, Tensor]


def task_arithmetic(vectors: Sequence[Vector]) -> dict[str, Tensor]:
    """The sum of the vectors."""
    return {name: torch.stack(tensors).sum(0) for name, tensors in _by_name(vectors)}


def ties(vectors: Sequence[Vector], keep: float) -> dict[str, Tensor]:
    """Trim each vector to its largest entries, elect a sign for each entry, and average the values that have this sign.

    `keep` is the share of entries that stay (0 to 1), by magnitude over the whole vector. The elected sign is that of the sum;
    where the sum is zero, it is the more frequent sign in the whole model.
    """
    floors = [_floor(vector, keep) for vector in vectors]
    trimmed = [
        (name, torch.stack([t * (t.abs() >= floor) for t, floor in zip(tensors, floors, strict=True)]))
        for name, tensors in _by_name(vectors)
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
    """The sum where at least `agree` tasks have |tau_t| >= mask_lambda |sum - tau_t|, and zero elsewhere."""
    merged = {}
    for name, tensors in _by_name(vectors):
        stack = torch.stack(tensors)
        total = stack.sum(0)
        needed = (stack.abs() >= mask_lambda * (total - stack).abs()) & (stack != 0)
        merged[name] = total * (needed.sum(0) >= agree)
    return merged


def norm_ratio(vectors: Sequence[Vector], merged: Vector) -> float:
    """The alpha of LiNeS for N merged tasks: (||sum of tau_t||_1 / ||tau_merged||_1) / N, https://arxiv.org/abs/2410.17146."""
    total = sum(float(t.abs().sum()) for t in task_arithmetic(vectors).values())
    size = sum(float(t.abs().sum()) for t in merged.values())
    return total / max(size, 1e-12) / len(vectors)


def _floor(vector: Vector, keep: float) -> float:
    """The magnitude of the smallest entry that is kept; `keep` is the share of entries that stay."""
    sizes = torch.cat([t.abs().flatten() for t in vector.values()])
    kept = max(1, int(len(sizes) * keep))
    return float(sizes.kthvalue(len(sizes) - kept + 1).values)


def _by_name(vectors: Sequence[Vector]) -> list[tuple[str, list[Tensor]]]:
    """Each parameter name with its tensor in every vector, zeros where a vector lacks it."""
    like = {name: tensor for vector in vectors for name, tensor in vector.items()}
    return [(name, [v.get(name, torch.zeros_like(tensor)) for v in vectors]) for name, tensor in sorted(like.items())]
