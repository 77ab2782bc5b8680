"""The error of a ratio of two sums over passages or items, such as bits per byte, or KL per token.

The one rule: an error that is not known is nan.
"""

from math import nan, sqrt

import numpy as np
from scipy.stats import t as student


def error(parts: np.ndarray, sizes: np.ndarray) -> float:
    """Standard error of sum(parts) / sum(sizes), (N,) each, over the N of them; nan for a single one.

    The linearised variance of a ratio of sums (Cochran, Sampling Techniques, 1977, section 6.4).
    """
    if (count := len(parts)) < 2:
        return nan
    beside = parts - parts.sum() / sizes.sum() * sizes
    return sqrt(count / (count - 1) * float((beside**2).sum())) / float(sizes.sum())


def half(stderr: float, count: int | None) -> float:
    """Half the length of a 95 % interval: by Student's t over `count` passages, by the normal distribution where unknown."""
    return stderr * (1.96 if count is None else float(student.ppf(0.975, count - 1)) if count > 1 else nan)
