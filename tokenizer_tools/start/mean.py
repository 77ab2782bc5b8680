"""Start `mean`: a new row is the mean of the rows of the base tokens that make up the new token."""

from collections.abc import Sequence

from torch import Tensor, stack

from tokenizer_tools.start.material import Material, Rows


def subtoken_mean(weight_VD: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """(len(pieces), D) rows for new tokens: each is the mean of the rows of the base tokens that make up the new token.

    `pieces` has the ids of these base tokens for each new token. The mean is computed in float32 and returned in the precision
    of `weight_VD`. Source of the idea: Yao et al. 2021, https://arxiv.org/abs/2106.13474, section 3.1.
    """
    return stack([weight_VD[list(ids)].float().mean(0) for ids in pieces]).to(weight_VD.dtype)


def rows(material: Material) -> Rows:
    """The same mean in both matrices."""
    return material.each(lambda weight_VD: subtoken_mean(weight_VD.float(), material.pieces))
