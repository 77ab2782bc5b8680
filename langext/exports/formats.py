"""The formats of exports and what can be asked of them."""

from dataclasses import dataclass
from typing import Literal, get_args

Format = Literal["auto", "native", "dense", "remote", "gguf", "delta"]


FORMATS = get_args(Format)


Precision = Literal["f32", "f16", "bf16", "q8_0"]
"""Of the matrices in a GGUF file."""


@dataclass(frozen=True)
class GGUF:
    """What a GGUF export is asked for."""

    precisions: tuple[Precision, ...] = ("bf16",)
    """One file is written for each of them."""
    pre: str | None = None
    """llama.cpp's name of the pre-tokenizer, where it is not recognised."""
