"""Starting values for the embedding rows of new tokens."""

from collections.abc import Sequence

from torch import Tensor, stack


def subtoken_mean(weight_VD: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """For each new token the mean of the rows of the base tokens that spelt it before: (len(pieces), D).

    Averaged in float32. Source of the idea: Yao et al. 2021, https://arxiv.org/abs/2106.13474, section 3.1.
    """
    return stack([weight_VD[list(ids)].float().mean(0) for ids in pieces]).to(weight_VD.dtype)
