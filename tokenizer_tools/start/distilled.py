"""Start `distilled`: input rows with which the model has the hidden states that it had after the pieces of each token.

Source: token distillation, https://arxiv.org/abs/2505.20133. The start is `composition`; then a few steps lower the mean
squared difference between two hidden states at the end of every token: of the text as the base's tokens, and of the same text
as tokens of the extended vocabulary. Output rows stay as they are; a tied row is both, and moves.
"""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from tokenizer_tools.start import composition
from tokenizer_tools.start.material import Material, Rows, packed

STEPS, BATCH, LENGTH = 30, 2, 128
"""The cost: in each step the base reads BATCH x LENGTH tokens of the extended vocabulary as its own tokens, and the extended
model reads them forward and backward. That is about five times BATCH x LENGTH x STEPS tokens of forward passes, 40,000."""
STEP_SIZE = 0.005
"""Most that one step changes a number of a row, as a share of the root mean square of the base's rows; falls to 0."""


def windows(material: Material, length: int) -> Iterator[list[int]]:
    """Runs of `length` ids of the training text that hold a new token, over and over. Documents follow on one another.

    Raises ValueError when the text has no such run.
    """
    first = len(material.input_VD)
    while True:
        found = False
        for window in packed(material.text(), length):
            if max(window) >= first:
                found = True
                yield window
        if not found:
            raise ValueError(f"the text of the new language has no {length} tokens on end that hold a new one")


def difference(material: Material, ids: list[list[int]], rows_ND: Tensor) -> Tensor:
    """Mean squared difference of the hidden states at the ends of tokens, as a share of their mean square; a scalar.

    `ids` are windows of the same length. The states compared are those from the first new token on: before it both are equal.
    """
    assert material.states is not None, "this start needs a model"
    first, ours = len(material.input_VD), material.states(torch.tensor(ids), rows_ND)
    total, size = ours.new_zeros(()), 0.0
    for row, window in enumerate(ids):
        pieces = list(material.spelt(window))
        ends = torch.tensor([len(part) for part in pieces]).cumsum(0) - 1
        with torch.no_grad():
            theirs_TD = material.states(torch.tensor([[i for part in pieces for i in part]]), rows_ND)[0, ends]
        begin = next(at for at, i in enumerate(window) if i >= first)
        total = total + (ours[row, begin:] - theirs_TD[begin:]).float().square().sum()
        size += float(theirs_TD[begin:].float().square().sum())
    return total / size


def rows(material: Material, steps: int = STEPS) -> Rows:
    """Rows after `steps` steps of Adam."""
    begun = composition.rows(material)
    learnt_ND = begun.input_ND.clone().requires_grad_()
    size = STEP_SIZE * float(material.input_VD.float().square().mean().sqrt())
    adam = torch.optim.Adam([learnt_ND], lr=size)
    found = windows(material, LENGTH)
    for step in range(steps):
        adam.param_groups[0]["lr"] = size * (1 - step / steps)
        adam.zero_grad()
        difference(material, list(islice(found, BATCH)), learnt_ND).backward()
        adam.step()
    return Rows(learnt_ND.detach(), begun.output_ND)
