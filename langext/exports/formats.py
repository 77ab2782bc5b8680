"""The names of the export formats, and the settings of a GGUF export. Plain data: this file imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal, get_args

Format = Literal["auto", "native", "dense", "remote", "gguf", "delta"]
FORMATS = get_args(Format)

Precision = Literal["f32", "f16", "bf16", "q8_0"]
"""How the matrices in a GGUF file are stored."""


@dataclass(frozen=True)
class GGUF:
    """The settings of a GGUF export."""

    precisions: tuple[Precision, ...] = ("bf16",)
    """One file is written for each precision."""
    pre: str | None = None
    """llama.cpp's name of the pre-tokenizer, for a base whose pre-tokenizer langext does not recognise."""
