"""Calibrate gates: a row w and a threshold t for each layer, so that 1[w . x > t] tells the new language from the original.

x is the normed input of a layer's feed-forward network in the model without the blocks. While the gates are closed on the
original language, its x stay what they are, so rows and thresholds that are fitted before the training hold after it.

The row is Fisher's linear discriminant, https://doi.org/10.1111/j.1469-1809.1936.tb02137.x,

    w = (v S_o + (1 - v) S_n + r I)^-1 (m_n - m_o)

with the means m and covariances S of x over original (o) and new (n) tokens. v is the weight of the original language: the
threshold lies in the tail of its scores, so its spread matters more.

Of all such rows it is the best one that gives the start token, the same before every text, the score of the mean original
token. An open gate there would reach every later token; and its x, an outlier that attention makes of it
(https://arxiv.org/abs/2309.17453), would otherwise score near the thresholds in some layers, where the precision of an export
decides. The thresholds are the q-quantiles of w . x over original tokens, with one q for all layers, such that the wanted
share of tokens has the gates of all layers closed.

Every token is computed once. Kept are one D x D matrix a layer (float32: 40 MB for 30 layers of width 576, 2.1 GB for 32 of
4096), then one score for each layer and token. Shapes: L layers, N tokens, B sequences, T tokens of a sequence, D model width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from langext.architectures import families
from langext.console import Progress
from langext.data import batches
from langext.errors import RunFailed

ORIGINAL_WEIGHT = 0.9
"""v above. Of 0.1, 0.5, 0.9 and 0.99, 0.9 opened most of the new language for the same share of closed original tokens."""
RIDGE = 1e-4
"""r above, as a share of the mean variance. Values from 1e-6 to 1e-2 gave the same gates."""

Rows = Sequence[Sequence[int]]
"""Token ids of pieces of text, each with the start token first."""


@dataclass(frozen=True)
class Scores:
    """w . x for every token of some text, (L, N) float32 on the CPU, one row for each of the given layers."""

    z_LN: Tensor

    def open(self, t_L: Tensor) -> list[float]:
        """For each layer the share of tokens whose gate is open with these thresholds."""
        return (self.z_LN > t_L[:, None]).float().mean(1).tolist()

    def closed(self, t_L: Tensor) -> float:
        """Share of tokens for which all gates are closed with these thresholds."""
        return 1 - (self.z_LN > t_L[:, None]).any(0).float().mean().item()

    def only(self, layers: Sequence[int]) -> "Scores":
        """The scores of these rows of `z_LN`, counted from 0."""
        return Scores(self.z_LN[list(layers)])


@torch.no_grad()
def fit(net: Any, layers: Sequence[int], original: Rows, new: Rows) -> Tensor:
    """(L, D) rows for these layers, in float32, each number exact in bf16. The scores w . x have a spread of about 1.

    The first token of a text, the start token, is left out of both classes: it gets the score of the mean original token.
    """
    start: dict[int, Tensor] = {}
    _run(net, layers, [original[0][:1]], lambda at, x_ND: start.update({at: x_ND[0]}), skip=0, label="start token")
    moments = _Moments(len(layers), net.config.hidden_size, net.get_input_embeddings().weight.device)
    for rows, weight in ((original, ORIGINAL_WEIGHT), (new, 1 - ORIGINAL_WEIGHT)):
        moments.begin(weight, sum(len(row) - 1 for row in rows))
        _run(net, layers, rows, moments.add, skip=1, label="fitting the gates")
    return torch.stack([moments.discriminant(at, start[at]) for at in range(len(layers))]).cpu()


class _Moments:
    """For each layer the means of two classes of tokens, and the weighted sum of their covariances, added up as they come."""

    def __init__(self, num_layers: int, width: int, device: torch.device):
        self.second_LDD = torch.zeros(num_layers, width, width, device=device)
        self.shift_LD = torch.zeros(num_layers, width, device=device)
        """Subtracted from every x. It is near the mean, so that the products lose no digits to it."""
        self.begun = [False] * num_layers
        self.classes: list[tuple[float, int, Tensor]] = []
        """(weight, number of tokens, (L, D) sum of x) of each class so far."""

    def begin(self, weight: float, count: int) -> None:
        """The tokens from now on are `count` of the next class."""
        self.classes.append((weight, count, torch.zeros_like(self.shift_LD)))

    def add(self, at: int, x_ND: Tensor) -> None:
        """Add tokens to layer number `at`."""
        weight, count, total_LD = self.classes[-1]
        if not self.begun[at]:
            self.shift_LD[at], self.begun[at] = x_ND.mean(0), True
        x_ND = x_ND - self.shift_LD[at]
        total_LD[at] += x_ND.sum(0)
        self.second_LDD[at].addmm_(x_ND.T, x_ND, alpha=weight / count)

    def discriminant(self, at: int, start_D: Tensor) -> Tensor:
        """(D,) w of layer number `at`, scaled so that the scores within a class have a spread of about 1, rounded to bf16.

        `start_D` is the x of the start token, which gets the score of the mean of the first class.
        """
        spread_DD = self.second_LDD[at].double()
        means = []
        for weight, count, total_LD in self.classes:
            mean_D = total_LD[at].double() / count
            spread_DD -= weight * torch.outer(mean_D, mean_D)
            means.append(mean_D)
        spread_DD.diagonal().add_(RIDGE * spread_DD.diagonal().mean())
        aside_D = (start_D - self.shift_LD[at]).double() - means[0]
        w_D, away_D = torch.linalg.solve(spread_DD, torch.stack([means[1] - means[0], aside_D], 1)).unbind(1)
        w_D = w_D - away_D * (aside_D @ w_D) / (aside_D @ away_D).clamp(min=1e-12)
        w_D = (w_D / (w_D @ spread_DD @ w_D).sqrt().clamp(min=1e-12)).to(torch.bfloat16).float()
        if not w_D.isfinite().all():
            raise RunFailed("the base computes numbers that are not finite, or too large, so its gates cannot be calibrated")
        return w_D


@torch.no_grad()
def score(net: Any, layers: Sequence[int], row_LD: Tensor, rows: Rows) -> Scores:
    """The scores of every token of `rows`, in their order, in the model as it is; switch off blocks that it has."""
    device = net.get_input_embeddings().weight.device
    row_LD = row_LD.to(device)
    found: list[list[Tensor]] = [[] for _ in layers]

    def add(at: int, x_ND: Tensor) -> None:
        found[at].append((x_ND @ row_LD[at]).cpu())

    _run(net, layers, rows, add, skip=0, label="scoring text")
    z_LN = torch.stack([torch.cat(parts) for parts in found])
    if not z_LN.isfinite().all():
        raise RunFailed("the base computes numbers that are not finite on this text, so its gates cannot be calibrated")
    return Scores(z_LN)


def thresholds(original: Scores, closed: float) -> Tensor:
    """(L,) thresholds with which at least the share `closed` of the tokens has all gates closed, in float32, exact in bf16.

    The same quantile in each layer, and the lowest one that is enough.
    """
    sorted_LN = original.z_LN.sort(1).values
    low, high = 0, sorted_LN.shape[1] - 1
    while low < high:  # `closed` grows with the quantile, and at the highest score all is closed
        middle = (low + high) // 2
        if original.closed(_up(sorted_LN[:, middle])) >= closed:
            high = middle
        else:
            low = middle + 1
    return _up(sorted_LN[:, low])


def separating(original: Scores, new: Scores, closed: float, min_open: float) -> list[int]:
    """The rows of the scores whose gate opens for at least the share `min_open` of the new language.

    Without a layer the thresholds of the others are lower, so one is left out at a time, the one that opens least.
    """
    kept = list(range(len(original.z_LN)))
    while kept:
        shares = new.only(kept).open(thresholds(original.only(kept), closed))
        if min(shares) >= min_open:
            break
        del kept[shares.index(min(shares))]
    return kept


def _up(t_L: Tensor) -> Tensor:
    """The smallest numbers of bf16 that are not below t, as float32."""
    near = t_L.to(torch.bfloat16)
    above = torch.nextafter(near, torch.full_like(near, torch.inf))
    return torch.where(near.float() < t_L, above.float(), near.float())


def _run(net: Any, layers: Sequence[int], rows: Rows, see: Callable[[int, Tensor], None], *, skip: int, label: str) -> None:
    """Run the model over all rows, and call `see` with each layer's position in `layers` and its (N, D) inputs in float32.

    The tokens are those of the rows in their order, without the first `skip` of each.
    """
    device = net.get_input_embeddings().weight.device
    progress, done = Progress(label, sum(map(len, rows))), 0
    for batch in _batches(rows):
        ids_BT = batches.padded(batch)
        counts_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        for i, row in enumerate(batch):
            counts_BT[i, skip : len(row)] = True
        counts_BT = counts_BT.to(device)
        with _watched(net, layers, lambda at, x_BTD, counts_BT=counts_BT: see(at, x_BTD[counts_BT].float())):
            net.base_model(input_ids=ids_BT.to(device), use_cache=False)
        done += sum(map(len, batch))
        progress.at(done)


def _batches(rows: Rows) -> Iterator[Rows]:
    """Neighbouring rows, together at most batches.TOKENS with their padding (or one row)."""
    batch: list[Sequence[int]] = []
    for row in rows:
        if batch and (len(batch) + 1) * max(map(len, [*batch, row])) > batches.TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@contextmanager
def _watched(net: Any, layers: Sequence[int], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    ffns = families.ffns(net)
    handles = [
        ffns[layer].register_forward_pre_hook(lambda _, given, at=at: see(at, given[0])) for at, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
