"""How far a model has moved from its base: KL(base || model) per token of original-language text.

The base's last hidden states are kept (N tokens x D), not its logits (N x V), and multiplied by its head again chunk by chunk.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from langext.architectures import cross_entropy, families, vocabulary
from langext.data import documents


class BaseKL:
    """Set up with the base, then asked about the model as often as wanted."""

    def __init__(self, base: Any, tokenizer: Any, texts: Sequence[str], window: int = 512):
        """`base` computes as the base does right now; `tokenizer` is the base's. Of each text `window` tokens count."""
        self.rows = [row[:window] for row in documents.encode(tokenizer, texts)]
        head = base.get_output_embeddings()
        self.num_ids = head.first_new if isinstance(head, vocabulary.ExtendedHead) else len(head.weight)
        weight = head.weight.detach()
        self.weight = weight.clone() if head.weight.requires_grad else weight
        self.hidden = [hidden.cpu() for hidden in self._hidden(base)]

    def measure(self, net: Any) -> float:
        """Nats per token, over the base's vocabulary; probability that the model gives to new tokens counts as moved."""
        return sum(self.each(net)) / sum(map(len, self.rows))

    @torch.no_grad()
    def each(self, net: Any) -> list[float]:
        """The same for each text, in nats, summed over its tokens."""
        head, cap = net.get_output_embeddings(), families.softcap(net.config)
        weight, num_ids = vocabulary.head_weight(head), self.num_ids
        if isinstance(head, vocabulary.ExtendedHead):  # its new rows stand where the base may have unused ones
            num_ids = min(num_ids, head.first_new)
        base_weight = self.weight[:num_ids].to(weight.device)  # ZeRO 3 moves the model after this was set up
        size, found = cross_entropy.CHUNK_TOKENS.get(weight.device.type, 4096), []
        for before, after in zip(self.hidden, self._hidden(net), strict=True):
            total = 0.0
            for at in range(0, len(before), size):
                log_p = _log_probs(before[at : at + size].to(weight.device) @ base_weight.T, cap)
                log_q = _log_probs(after[at : at + size] @ weight.T, cap)[:, :num_ids]
                total += float((log_p.exp() * (log_p - log_q)).sum())
            found.append(total)
        return found

    @torch.no_grad()
    def _hidden(self, net: Any) -> list[Tensor]:
        """(tokens, D) last hidden states of each text."""
        net.eval()
        device = net.get_input_embeddings().weight.device
        found = []
        for row in self.rows:
            ids_BT = torch.tensor([row], device=device)
            found.append(net.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state[0])
        return found


def _log_probs(logits: Tensor, cap: float | None) -> Tensor:
    logits = logits.float()
    return (cap * torch.tanh(logits / cap) if cap else logits).log_softmax(-1)
