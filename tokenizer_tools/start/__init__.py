"""The starting values of the rows of new tokens, in the input embeddings and in the head. One file for each start.

To add a start, write its file and add its name here. The rows of the base are read and never written.
"""

from collections.abc import Callable

from tokenizer_tools.start import composition, distilled, focus, mean, sample
from tokenizer_tools.start.material import Material, Rows
from tokenizer_tools.start.mean import subtoken_mean

__all__ = ["STARTS", "Material", "Rows", "subtoken_mean"]

STARTS: dict[str, Callable[[Material], Rows]] = {
    "mean": mean.rows,
    "composition": composition.rows,
    "sample": sample.rows,
    "focus": focus.rows,
    "distilled": distilled.rows,
}
"""Name -> function."""
