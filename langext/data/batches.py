"""Rows of tokens of unlike lengths, as batches that a model reads in one forward pass.

The one rule: rows are padded on the right, where the attention of a causal model does not look, so that no mask is needed.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

TOKENS = 4096
"""About how many tokens one forward pass has where text is measured."""


def by_length(rows: Sequence[Sequence[int]], most_tokens: int) -> Iterator[list[int]]:
    """The numbers of all rows in batches of at most `most_tokens` with their padding, or of one row.

    Rows of like lengths are together, to waste little on padding; the longest come first, so that memory runs out at once.
    """
    waiting = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    while waiting:
        take = max(1, most_tokens // max(1, len(rows[waiting[0]])))
        yield waiting[:take]
        waiting = waiting[take:]


def padded(rows: Sequence[Sequence[int]], filling: int = 0) -> Tensor:
    """The rows as one (B, T) tensor of integers, with `filling` behind each that is shorter than the longest."""
    ids_BT = torch.full((len(rows), max(map(len, rows))), filling)
    for number, row in enumerate(rows):
        ids_BT[number, : len(row)] = torch.tensor(row)
    return ids_BT
