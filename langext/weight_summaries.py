"""What stages report that work on finished weights without training them on text: rescale, regate and merge."""

from typing import Any, Literal

from langext.spec import Summary


class RescaleSummary(Summary):
    """Of stage rescale."""

    of: Literal["rescale"] = "rescale"
    alpha: float | None
    """None when layers were reverted instead."""
    curve: list[dict[str, Any]]
    """For each alpha that was tried: bits per byte, learning, retention and score."""
    reverted: list[int] = []
    """Numbers, from 0, of the layers that have their weights from before the training."""


class RegateSummary(Summary):
    """Of stage regate."""

    of: Literal["regate"] = "regate"
    bits_per_byte: dict[str, dict[str, float]]
    """trained (with the old gate), fitted, distilled -> bits per byte by `<language>/<domain>`."""
    kept: str
    """fitted or distilled."""
    kl_per_token: list[float]
    """Of each step of the distillation, in nats."""


class MergeSummary(Summary):
    """Of stage merge."""

    of: Literal["merge"] = "merge"
    models: list[str]
    """Folders of the models."""
    contents: list[str] = []
    """What each of them was, by its bytes."""
    rule: str
    lines: bool
    scale: float
    alpha: float | None
    """Factor of the first layer, where the layers are scaled."""
    curve: list[dict[str, Any]]
