"""Rows of new tokens before any training: what starts need of a model, and how it does with their rows.

The one rule: the base is read and never changed. New rows are given to each forward pass, and no module keeps them.
Shapes: N new tokens, V ids of the base, D model width, B sequences, T tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from langext.architectures import cross_entropy, families, vocabulary
from tokenizer_tools.start import Material, Rows
from tokenizer_tools.start.softmax import log_sums

STEP_SIZE = 0.002
"""Step size of Adam in `learnt`, as a share of the root mean square of the base's rows. With ten times as much, 30 steps of 256
tokens made 5 kB of held-out French worse, from 2.14 to 2.28 bits per byte (SmolLM2-135M, 1,000 tokens, start mean)."""


class Blank:
    """A model with places for the rows of new tokens."""

    def __init__(self, net: Any):
        """`net` is one to which `vocabulary.extend` has added rows."""
        self.net = net.requires_grad_(False).eval()
        self.embedding, self.head = net.get_input_embeddings(), net.get_output_embeddings()
        self.first: int = self.embedding.first_new
        self.tied = self.head.weight is self.embedding.weight
        self.cap = families.softcap(net.config)
        self.device = self.embedding.weight.device

    @property
    def input_VD(self) -> Tensor:
        """The base's input embeddings, in float32, without padding."""
        return self.embedding.weight.detach()[: self.first].float().cpu()

    @property
    def output_VD(self) -> Tensor | None:
        """The base's head in float32, without padding; None if it is tied."""
        return None if self.tied else self.head.weight.detach()[: self.first].float().cpu()

    @property
    def head_VD(self) -> Tensor:
        """The rows that the head reads, in float32."""
        return self.input_VD if self.output_VD is None else self.output_VD

    def hidden(self, ids_BT: Tensor, rows_ND: Tensor) -> Tensor:
        """(B, T, D) last hidden states of a text with new tokens, whose input rows these are; with gradients for them."""
        name = f"embed_tokens.{vocabulary.NEW_ROWS}"
        given = {name: rows_ND.to(self.device, self.embedding.weight.dtype)}
        told = {"input_ids": ids_BT.to(self.device), "use_cache": False}
        return functional_call(self.net.base_model, given, kwargs=told).last_hidden_state

    def states(self, ids_BT: Tensor, rows_ND: Tensor) -> Tensor:
        """The same in float32 and on the CPU."""
        return self.hidden(ids_BT, rows_ND).float().cpu()

    def loss(self, rows: Rows, windows: Sequence[Sequence[int]]) -> Tensor:
        """Cross-entropy in nats per token, a scalar with gradients for the rows. `windows` are ids of the same length."""
        ids_BT = torch.tensor(windows)
        hidden_BTD = self.hidden(ids_BT, rows.input_ND)[:, :-1]
        head, rows_ND = self.head, rows.head_ND.to(self.device)
        weight_VD = vocabulary.placed(head.weight, rows_ND, self.first, head.slots, head.num_rows)
        labels_N = ids_BT[:, 1:].flatten().to(self.device)
        flat_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
        new = (rows_ND, torch.tensor(head.new_ids, device=self.device))
        return cross_entropy.cross_entropy(flat_ND, weight_VD, labels_N, 1 / len(labels_N), self.cap, new)[0]


@dataclass(frozen=True)
class Seen:
    """Last hidden states of some text of base tokens."""

    hidden_TD: Tensor
    """In float32, one for each token."""
    base_T: Tensor
    """Logarithms of the sums over the exponentials of the base's logits."""


@torch.no_grad()
def states_of(blank: Blank, texts: Sequence[Sequence[int]], rows: Rows) -> Tensor:
    """(T, D) last hidden states of texts, each given as ids, one text at a time. New tokens have these input rows."""
    return torch.cat([blank.states(torch.tensor([ids]), rows.input_ND)[0] for ids in texts])


def seen(blank: Blank, texts: Sequence[Sequence[int]]) -> Seen:
    """The states of texts that hold no new token."""
    hidden_TD = states_of(blank, texts, Rows(blank.input_VD[:1], None))
    return Seen(hidden_TD, log_sums(hidden_TD, blank.head_VD, blank.cap))


@torch.no_grad()
def mean_loss(blank: Blank, rows: Rows, windows: Sequence[Sequence[int]]) -> float:
    """Mean cross-entropy of windows of the same length, in nats per token."""
    return sum(float(blank.loss(rows, [window])) for window in windows) / len(windows)


def learnt(blank: Blank, rows: Rows, windows: Iterable[Sequence[int]], steps: int, batch: int) -> Rows:
    """The rows after `steps` steps of Adam on `batch` windows each, which are used again when they end; nothing else learns."""
    learning = rows.map(lambda part: part.clone().requires_grad_())
    adam = torch.optim.Adam(learning.named.values(), lr=STEP_SIZE * float(blank.head_VD.square().mean().sqrt()))
    left = cycle(windows)
    for _ in range(steps):
        adam.zero_grad()
        blank.loss(learning, list(islice(left, batch))).backward()
        adam.step()
    return learning.map(Tensor.detach)


def material(
    blank: Blank, spelt: Mapping[int, Sequence[int]], tokenizer: Any, seed: int, text: Callable[[], Iterable[Sequence[int]]]
) -> Material:
    """What starts are computed from. `tokenizer` is the extended one, `spelt` has the base ids of each new token, by its id.

    Starts count new tokens from V on, whatever ids they have in the model and in `text`.
    """
    named, new_ids = {i: name for name, i in tokenizer.get_vocab().items()}, blank.embedding.new_ids
    # A vocabulary can have holes, and the names of reserved tokens that became new ones are theirs.
    names = ["" if i in spelt else named.get(i, "") for i in range(blank.first)] + [named[i] for i in new_ids]
    lengths = [max(1, len(tokenizer.decode([i]))) for i in range(blank.first)]
    counted = {i: blank.first + k for k, i in enumerate(new_ids)}
    ids_of = torch.tensor([*range(blank.first), *new_ids])

    def documents() -> Iterator[list[int]]:
        return ([counted.get(i, i) for i in document] for document in text())

    def states(ids_BT: Tensor, rows_ND: Tensor) -> Tensor:
        return blank.states(ids_of[ids_BT], rows_ND)

    pieces = [spelt[i] for i in new_ids]
    return Material(blank.input_VD, blank.output_VD, pieces, lengths, seed, names, documents, states)
