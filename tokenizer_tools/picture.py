"""The picture of vocabularies of different sizes: what they save, and what they disturb."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizer_tools.audit import Point

DASHED = "unprotected"
"""Curves whose names end with this word are dashed, in the colour of the one without it."""


def draw(path: Path, curves: Mapping[str, Sequence[Point]]) -> None:
    """Write a picture of named curves: bytes per token of the new language, and documents that are encoded as before.

    The format is that of the suffix of `path` (.svg, .png). Raises ValueError for a suffix that matplotlib does not know.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "tokenizer_tools", "axes.spines.top": False, "axes.spines.right": False}):
        figure, (gain, harm) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
        names = list(dict.fromkeys(name.removesuffix(DASHED).strip() for name in curves))
        for name, points in curves.items():
            colour = f"C{names.index(name.removesuffix(DASHED).strip())}"
            style = "--" if name.endswith(DASHED) else "-"
            x = [point.new_tokens for point in points]
            gain.plot(x, [point.bytes_per_token for point in points], style, color=colour, marker="o", markersize=3, label=name)
            harm.plot(x, [100 * point.identical for point in points], style, color=colour, marker="o", markersize=3, label=name)
        gain.set(title="New language", xlabel="new tokens", ylabel="bytes per token")
        harm.set(title="Original language, unseen text", xlabel="new tokens", ylabel="documents encoded as before (%)")
        for axes in (gain, harm):
            axes.grid(alpha=0.3)
            axes.legend(frameon=False, fontsize="small")
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        finally:
            pyplot.close(figure)
