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
from langext.data import documents


class BaseKL:
    """Runs the base once, then measures any number of models against it."""

    def __init__(self, base: Any, tokenizer: Any, texts: Sequence[str], window: int = 512, label: str = ""):
        """Run `base` on the first `window` tokens of each text, or as many as it has positions. `tokenizer` is the base's.

        With a `label`, lines of progress are printed where it takes long.

        `base` may be an extended model whose extension is switched off during this call.
        """
        window, self.label = min(window, families.positions(base.config) or window), label
        self.rows = [row[:window] for row in documents.encode(tokenizer, texts)]
        head = base.get_output_embeddings()
        weight = head.weight.detach()
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
        weight, ids = vocabulary.head_weight(head), slice(len(self.weight))
        if isinstance(head, vocabulary.ExtendedHead):  # new rows replace padding rows that the base may have
            every = torch.arange(min(len(self.weight), len(weight)))
            behind = head.first_new + len(head.new_weight) - len(head.slots)
            ids = torch.cat([every[: head.first_new], every[behind:]]).to(weight.device)
        base_weight = self.weight.to(weight.device)  # ZeRO 3 moves the model to another device after __init__
        size, kl_each = cross_entropy.CHUNK_TOKENS.get(weight.device.type, 4096), []
        for before, after in zip(self.hidden, self._hidden(net), strict=True):
            total = 0.0
            for at in range(0, len(before), size):
                log_p = _log_probs((before[at : at + size].to(weight.device) @ base_weight.T)[:, ids], cap)
                # Normalised over all tokens before the cut, so that probability on new tokens is missing from q.
                log_q = _log_probs(after[at : at + size] @ weight.T, cap)[:, ids]
                total += float((log_p.exp() * (log_p - log_q)).sum())
            kl_each.append(total)
        return kl_each

    @torch.no_grad()
    def _hidden(self, net: Any) -> list[Tensor]:
        """Last hidden states of each text, (tokens, D), on the device of the model."""
        net.eval()
        device = net.get_input_embeddings().weight.device
        hidden = []
        for row in told(self.label, self.rows) if self.label else self.rows:
            ids_BT = torch.tensor([row], device=device)
            hidden.append(net.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state[0])
        return hidden


def _log_probs(logits: Tensor, cap: float | None) -> Tensor:
    """Log probabilities in float32; `cap` is the final soft cap of the logits in Gemma 2, None in other families."""
    logits = logits.float()
    return (cap * torch.tanh(logits / cap) if cap else logits).log_softmax(-1)
