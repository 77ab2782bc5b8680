"""Adds the language-model loss and named penalties to one total, and returns the parts for logging.

Shapes: B sequences, T tokens in each, N = B T, D model width, V vocabulary, C tokens in a chunk.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from langext.architectures import families, vocabulary
from langext.architectures.cross_entropy import cross_entropy
from langext.methods.base import Method
from langext.methods.penalties.base import MicroBatch, Term
from langext.training.prefix import skipped


class Objective(nn.Module):
    """A model with its method. Its forward pass goes from token ids to the loss, so that DeepSpeed handles all of it."""

    def __init__(self, net: Any, method: Method, terms: Mapping[str, tuple[float, Term]], first: int = 0):
        super().__init__()
        self.first = first
        """The layer that `states_BTD` of the forward pass enter."""
        self.net, self.method, self.terms = net, method, dict(terms)
        """Penalties in addition to the method's own ones: name -> (weight, term)."""

    def forward(
        self,
        input_ids_BT: Tensor,
        labels_BT: Tensor,
        position_ids_BT: Tensor,
        micro_batch: MicroBatch,
        states_BTD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch, each token's cross-entropy (B, T) in nats, and the weighted penalties.

        The losses of all micro-batches of a step add up to the mean cross-entropy per token plus the penalties. The last token
        of a document counts as a token but has no loss. Positions start again at 0 for each packed document; from them
        transformers builds a block-diagonal attention mask, so that documents do not see each other. With `states_BTD`, the
        states that enter layer `first`, the layers below it are not computed.
        """
        start = {"input_ids": input_ids_BT} if states_BTD is None else {"inputs_embeds": states_BTD}
        with skipped(self.net, range(0 if states_BTD is None else self.first)):
            hidden_BTD = self.net.base_model(**start, position_ids=position_ids_BT, use_cache=False).last_hidden_state
        head = self.net.get_output_embeddings()
        total, losses_N = cross_entropy(
            hidden_BTD.flatten(0, 1),
            vocabulary.head_weight(head),
            labels_BT.flatten(),
            1 / micro_batch.num_tokens,
            families.softcap(self.net.config),
            vocabulary.learning_rows(head),
        )
        penalties = self.method.penalty(self.net, micro_batch)
        for name, (weight, term) in self.terms.items():
            assert name not in penalties, "refused when planning"
            penalties[name] = weight * term(micro_batch, input_ids_BT, position_ids_BT)
        return total + sum(penalties.values()), losses_N.view_as(labels_BT), penalties
