"""The rows of new tokens are a small parameter of their own, so that they can learn while all base rows stay frozen.

The base matrices keep their names and values; the parameter `new_weight` holds the new rows. Heads may be tied or untied. A
base may have more rows than its tokenizer has tokens: new ids begin right after the tokenizer's last id, in place of these rows
of padding; those behind the last new id stay, so that a model never has fewer rows than its base. (Models of langext 0.1.0 end
with the last new id, and stay so.) A new token can also take the id of a reserved one (a slot): then the base's row of it is no
longer used.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer_tools.start import subtoken_mean

NEW_ROWS = "new_weight"


class ExtendedEmbedding(nn.Module):
    """An embedding that reads new ids in `new_weight` (num_new, D), and all others in the base's rows.

    New are the `slots`, in this order, and then the ids from `first_new` on. Its output is scaled if the base's embedding
    scales its own (Gemma).
    """

    def __init__(self, base: Any, first_new: int, new: nn.Parameter, slots: Sequence[int] = ()):
        super().__init__()
        self.weight, self.first_new, self.slots = base.weight, first_new, tuple(slots)
        self.new_weight = new
        self.new_ids = ids_of(new, first_new, slots)
        # The row of each id among the new ones; -1 for those of the base. No buffer: models are also built without memory.
        rows = max(base.num_embeddings, first_new + len(new) - len(slots))
        self.place = torch.full((rows,), -1, device="cpu")
        self.last_old = base.num_embeddings - 1
        self.place[self.new_ids] = torch.arange(len(new), device="cpu")
        self.stock = (base,)  # in a tuple, because a module would be registered, and its weight counted twice

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, D) embeddings."""
        # Both tables are read for every id, with clamped indices: selecting the new ids would need a wait for the device.
        old = F.embedding(ids.clamp(max=self.last_old), self.weight)
        self.place = self.place.to(ids.device)
        at = self.place[ids]
        new = F.embedding(at.clamp(min=0), self.new_weight)
        rows = torch.where((at >= 0)[..., None], new, old)
        scale = getattr(self.stock[0], "scalar_embed_scale", None)
        return rows if scale is None else rows * torch.tensor(scale, device=rows.device, dtype=rows.dtype)


class ExtendedHead(nn.Module):
    """A language-model head whose matrix is that of the base, with `new_weight` (num_new, D) from row `first_new` on.

    The first new rows stand in the places of the `slots`. It has `num_rows` rows.
    """

    def __init__(self, base: nn.Linear, first_new: int, new: nn.Parameter, slots: Sequence[int], num_rows: int):
        super().__init__()
        self.weight, self.first_new, self.slots, self.num_rows = base.weight, first_new, tuple(slots), num_rows
        self.new_weight = new
        self.new_ids = ids_of(new, first_new, slots)
        self.bias = None  # for code that expects the attributes of nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V) logits."""
        return F.linear(x, head_weight(self))


def ids_of(new_ND: Tensor, first_new: int, slots: Sequence[int]) -> list[int]:
    """The id of each new row: the slots, and then those from `first_new` on."""
    return [*slots, *range(first_new, first_new + len(new_ND) - len(slots))]


def head_weight(head: Any) -> Tensor:
    """The (V, D) matrix of a head, including new rows."""
    if isinstance(head, ExtendedHead):
        return placed(head.weight, head.new_weight, head.first_new, head.slots, head.num_rows)
    return head.weight


def learning_rows(head: Any) -> tuple[Tensor, Tensor] | None:
    """(new rows, their ids) of a head of which these rows alone learn; None for any other."""
    if not isinstance(head, ExtendedHead) or head.weight.requires_grad or not head.new_weight.requires_grad:
        return None
    return head.new_weight, torch.tensor(head.new_ids, device=head.new_weight.device)


def placed(weight_VD: Tensor, new_ND: Tensor, first_new: int, slots: Sequence[int], num_rows: int) -> Tensor:
    """The matrix of `num_rows` ids: new rows in the places of the `slots` and from `first_new` on, else those of the base."""
    reused = len(slots)
    behind_VD = weight_VD[first_new + len(new_ND) - reused : num_rows]
    whole = torch.cat([weight_VD[:first_new], new_ND[reused:].to(weight_VD.dtype), behind_VD])
    if not reused:
        return whole
    return whole.index_copy(0, torch.tensor(slots, device=whole.device), new_ND[:reused].to(weight_VD.dtype))


def places(new_ids: Iterable[int], end: int) -> tuple[int, list[int]]:
    """(the first id of those that follow the base's, the slots), for new ids of a tokenizer whose largest id is `end` - 1."""
    slots, first = sorted(new_ids), end
    while slots and slots[-1] == first - 1:
        first = slots.pop()
    return first, slots


def extend(model: Any, first_new: int, num_new: int, slots: Sequence[int] = (), *, padded: bool = True) -> None:
    """Add rows for `num_new` tokens to embeddings and head, in place. They are zero until `fill` or a delta sets them.

    The first of them have the ids `slots`, in this order, and the others those from `first_new` on. The base's rows of padding
    behind them stay if `padded`, else the last new row is the last one. A head with a bias is not supported.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert head.bias is None, "heads with a bias are not supported"
    assert first_new <= len(embedding.weight), "refused when planning: ids of the base without a row"
    tied = head.weight is embedding.weight
    rows = nn.Parameter(embedding.weight.new_zeros(num_new, embedding.weight.shape[1]))
    head_rows = rows if tied else nn.Parameter(torch.zeros_like(rows))
    model.set_input_embeddings(ExtendedEmbedding(embedding, first_new, rows, slots))
    end = first_new + num_new - len(slots)
    num_rows = max(embedding.num_embeddings, end) if padded else end
    model.set_output_embeddings(ExtendedHead(head, first_new, head_rows, slots, num_rows))
    model.config.vocab_size = num_rows


def fill(model: Any, spelt: Mapping[int, list[int]]) -> None:
    """Set each new row, in place, to the mean of the rows of the base tokens that make up the same text.

    `spelt` maps each new id to these base ids.
    """
    pieces = [spelt[i] for i in sorted(spelt)]
    for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
        module.new_weight.data.copy_(subtoken_mean(module.weight.data, pieces))


def new_rows(model: Any) -> dict[str, Tensor]:
    """The (N, D) rows of new tokens: `input`, and `output` unless it is tied."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = {"input": embedding.new_weight.data}
    return rows if head.new_weight is embedding.new_weight else rows | {"output": head.new_weight.data}


def put(model: Any, rows: Mapping[str, Tensor]) -> None:
    """Give the new rows these values, in place. The names are those of `new_rows`."""
    places = new_rows(model)
    assert places.keys() == rows.keys(), "one matrix of new rows where the base has one"
    for name, place in places.items():
        place.copy_(rows[name])


def head_parameters(model: Any) -> list[Any]:
    """The parameters that `head_weight` reads."""
    head = model.get_output_embeddings()
    return [head.weight, head.new_weight] if isinstance(head, ExtendedHead) else [head.weight]


def matrices(model: Any) -> tuple[Tensor, Tensor | None]:
    """(V, D) embeddings and (V, D) head, including new rows, without gradients. The head is None if it is tied."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight

    def whole(module: Any) -> Tensor:
        if isinstance(head, ExtendedHead):
            return placed(module.weight, module.new_weight, head.first_new, head.slots, head.num_rows).detach()
        return module.weight.detach()

    return whole(embedding), None if tied else whole(head)
