"""Measure how far a model has moved from its base: KL(base || model) per token of original-language text.

To save memory, the base's last hidden states (N tokens x D) are kept instead of its logits (N x V, V vocabulary size). The
logits are computed again from them, chunk by chunk.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from langext.architectures import cross_entropy, families, vocabulary
from langext.console import told
from langext.data import batches, documents

ROWS = 16_384
"""Rows of the output matrix that are widened to float32 at once."""


class BaseKL:
    """Runs the base once, then measures any number of models against it."""

    def __init__(self, base: Any, tokenizer: Any, texts: Sequence[str], label: str = "", *, own_rows: bool = True):
        """Run `base` on each text, or as much of it as it has positions for. `tokenizer` is the base's.

        With a `label`, lines of progress are printed where it takes long.

        `base` may be an extended model whose extension is switched off during this call. New rows of its vocabulary are its
        own, left by an earlier language; without `own_rows` they came with the extension, and are none of the base's.
        """
        self.label = label
        self.rows = [row[: families.positions(base.config)] for row in documents.encode(tokenizer, texts)]
        head = base.get_output_embeddings()
        self.whole = own_rows and isinstance(head, vocabulary.ExtendedHead)
        weight = vocabulary.head_weight(head).detach() if self.whole else head.weight.detach()
        # A head that learns changes later, so it is copied. A frozen head needs no second copy in memory.
        self.weight = weight.clone() if head.weight.requires_grad else weight
        self.hidden = [hidden.cpu() for hidden in self._hidden(base)]

    def measure(self, net: Any) -> float:
        """KL(base || model) in nats per token, over the base's vocabulary. Probability on new tokens increases it."""
        return sum(self.each(net)) / sum(map(len, self.rows))

    @torch.no_grad()
    def each(self, net: Any) -> list[float]:
        """KL(base || model) of each text in nats, summed over its tokens."""
        head, cap = net.get_output_embeddings(), families.softcap(net.config)
        weight = vocabulary.head_weight(head)
        shared = min(len(self.weight), len(weight))
        parts = [slice(0, shared)] if self.whole else _shared(head, shared)
        # ZeRO 3 moves the model to another device after __init__.
        base_weight = self.weight[: parts[-1].stop].to(weight.device)
        size, kl_each = cross_entropy.CHUNK_TOKENS.get(weight.device.type, 4096), []
        for before, after in zip(self.hidden, self._hidden(net), strict=True):
            total = 0.0
            for at in range(0, len(before), size):
                log_p = _log_probs(_logits(before[at : at + size].to(weight.device), base_weight), cap)
                if len(parts) > 1:  # the ids between are none of p's
                    log_p -= torch.stack([log_p[:, part].logsumexp(-1) for part in parts]).logsumexp(0)[:, None]
                # Normalised over all tokens before the cut, so that probability on new tokens is missing from q.
                log_q = _log_probs(_logits(after[at : at + size], weight), cap)
                total += sum(float((log_p[:, part].exp() * (log_p[:, part] - log_q[:, part])).sum()) for part in parts)
            kl_each.append(total)
        return kl_each

    @torch.no_grad()
    def _hidden(self, net: Any) -> list[Tensor]:
        """Last hidden states of each text, (tokens, D), on the device of the model."""
        net.eval()
        device = net.get_input_embeddings().weight.device
        hidden: list[Tensor] = [torch.empty(0)] * len(self.rows)
        chosen = list(batches.by_length(self.rows, batches.TOKENS))
        for numbers in told(self.label, chosen) if self.label else chosen:
            ids_BT = batches.padded([self.rows[number] for number in numbers])
            hidden_BTD = net.base_model(input_ids=ids_BT.to(device), use_cache=False).last_hidden_state
            for k, number in enumerate(numbers):
                hidden[number] = hidden_BTD[k, : len(self.rows[number])]
        return hidden


def _shared(head: Any, end: int) -> list[slice]:
    """The ids below `end` that a model has from its base, as slices: logits are large, and slices are no copies of them.

    New rows replace rows of padding that the base may have; those behind them stay.
    """
    if not isinstance(head, vocabulary.ExtendedHead):
        return [slice(0, end)]
    behind = head.first_new + len(head.new_weight) - len(head.slots)
    parts = [slice(0, min(head.first_new, end)), slice(behind, end)]
    return [part for part in parts if part.start < part.stop]


def _logits(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """(N, V) in float32, whatever states and weights are in: logits that are rounded to bf16 alone give a KL of 0.001."""
    logits_NV = torch.empty(len(hidden_ND), len(weight_VD), device=weight_VD.device)
    for rows_VD, out_NV in zip(weight_VD.split(ROWS), logits_NV.split(ROWS, dim=1), strict=True):
        out_NV.copy_(hidden_ND.float() @ rows_VD.float().T)
    return logits_NV


def _log_probs(logits: Tensor, cap: float | None) -> Tensor:
    """Log probabilities; `cap` is the final soft cap of the logits in Gemma 2, None in other families."""
    return (cap * torch.tanh(logits / cap) if cap else logits).log_softmax(-1)
