"""Start `composition`: input and output rows of a new token are composed of the same pieces in two ways.

Source: asymmetric subword composition, https://arxiv.org/abs/2608.03494. An input row is read by the layers, which expect a
certain norm; an output row is compared with hidden states, and the longer piece says more about the word.
"""

from collections.abc import Sequence

from torch import Tensor, stack, tensor

from tokenizer_tools.start.material import Material, Rows
from tokenizer_tools.start.mean import subtoken_mean


def input_rows(weight_VD: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """(N, D) means of the pieces, each rescaled to the median norm of the rows of `weight_VD`."""
    mean_ND = subtoken_mean(weight_VD.float(), pieces)
    return mean_ND / mean_ND.norm(dim=1, keepdim=True).clamp(min=1e-12) * weight_VD.float().norm(dim=1).median()


def output_rows(weight_VD: Tensor, pieces: Sequence[Sequence[int]], lengths: Sequence[int]) -> Tensor:
    """(N, D) means of the pieces, each piece weighted by its `lengths` (characters, by id)."""
    weights = [tensor([float(lengths[i]) for i in ids]) for ids in pieces]
    return stack([w @ weight_VD[list(ids)].float() / w.sum() for w, ids in zip(weights, pieces, strict=True)])


def rows(material: Material) -> Rows:
    """Both rows. A tied matrix has one row for both uses, which is the output row.

    Of the two uses the output is what the original languages see, and a longer row has larger logits everywhere: with the norm
    of the input row, 1,000 French tokens cost SmolLM2-135M, whose head is tied, 4.2 nats per token of English, with the output
    row 0.005.
    """
    output_ND = output_rows(material.head_VD, material.pieces, material.lengths)
    if material.output_VD is None:
        return Rows(output_ND, None)
    return Rows(input_rows(material.input_VD, material.pieces), output_ND)
