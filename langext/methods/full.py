"""Full fine-tuning: every parameter learns. It is the baseline that learns most and forgets most."""

from typing import ClassVar, Literal

from langext.methods.base import Method


class Full(Method):
    """Continued pretraining of all weights."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2004.10964"
    name: Literal["full"]
