"""Start `sample`: new rows are drawn from the normal distribution that has the mean and the covariance of the base's rows.

Source: Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html. It knows nothing of the tokens, so it shows what
the other starts are worth.
"""

import torch
from torch import Tensor

from tokenizer_tools.start.material import Material, Rows


def normal_rows(weight_VD: Tensor, count: int, seed: int) -> Tensor:
    """(count, D) rows m + c^T z / sqrt(V), with m the mean of the V rows, c the rows minus m, and z normal numbers (V, count).

    Their covariance is c^T c / V, that of the rows, without a matrix of D x D. The same seed gives the same rows.
    """
    mean_D = weight_VD.float().mean(0)
    centred_VD = weight_VD.float() - mean_D
    dice = torch.Generator().manual_seed(seed)
    z_NV = torch.randn(count, len(weight_VD), generator=dice)
    return mean_D + z_NV @ centred_VD / len(weight_VD) ** 0.5


def rows(material: Material) -> Rows:
    """Rows of both matrices, drawn independently."""
    count, other = len(material.pieces), material.output_VD
    drawn_ND = normal_rows(material.input_VD, count, material.seed)
    return Rows(drawn_ND, None if other is None else normal_rows(other, count, material.seed + 1))
