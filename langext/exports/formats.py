"""The names of the export formats, and the settings of a GGUF export. Plain data: this file imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

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


@dataclass(frozen=True)
class Order:
    """What the writer of an export is given."""

    model: Any
    """The `Model` artifact."""
    live: Any
    """The trained model in float32, a `LiveModel`."""
    stock: Any
    """Its `Stock` form; None for formats that do not fold."""
    expected: Any
    """What the rounded weights compute, a `verify.Expected`: what was written must compute the same."""
    out: Path
    """The empty folder to write into."""
    scratch: Path
    """A folder for files that are no part of the export."""
    whole: bool
    """True when memory holds all weights in float32 at once; else one block at a time is."""
    own_code: bool
    """True when the export contains modeling code."""
    gguf: GGUF
    title: str
    """Of the model card."""
