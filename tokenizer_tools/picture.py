"""The picture of how languages are written, and of vocabularies of different sizes: what they save, and what they disturb."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizer_tools.audit import Point, Use

DASHED = "unprotected"
"""Curves whose names end with this word are dashed, in the colour of the one without it."""
MARKERS = "osd^v"
"""One for each set of documents of original languages."""


def draw(path: Path, curves: Mapping[str, Sequence[Point]], uses: Mapping[str, Use]) -> None:
    """Write a picture of named curves and of how languages are written now, each where there is one.

    Of curves: bytes per token of the new language, and documents that are encoded as before. Of languages: tokens per word, and
    bytes per token. The format is that of the suffix of `path` (.svg, .png). Raises ValueError for one that matplotlib does not
    know.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    number = 2 * bool(uses) + 2 * bool(curves)
    with pyplot.rc_context({"svg.hashsalt": "tokenizer_tools", "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = pyplot.subplots(1, number, figsize=(5 * number, 4), layout="constrained")
        if uses:
            _bars(axes[0], {code: use.fertility for code, use in uses.items()}, "Tokens per word")
            _bars(axes[1], {code: use.bytes_per_token for code, use in uses.items()}, "Bytes per token")
        if curves:
            _curves(axes[-2], axes[-1], curves)
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        finally:
            pyplot.close(figure)


def _bars(axes: Any, values: Mapping[str, float], title: str) -> None:
    """A bar for each language, with its value."""
    axes.bar_label(axes.bar(list(values), list(values.values()), color="C7"), fmt="%.2f")
    axes.set(title=title)


def _curves(gain: Any, harm: Any, curves: Mapping[str, Sequence[Point]]) -> None:
    """What vocabularies save in the new language, and what they disturb in each set of the original ones."""
    names = list(dict.fromkeys(name.removesuffix(DASHED).strip() for name in curves))
    for name, points in curves.items():
        how: dict[str, Any] = {
            "color": f"C{names.index(name.removesuffix(DASHED).strip())}", "linestyle": "--" if name.endswith(DASHED) else "-",
            "markersize": 3,
        }  # fmt: skip
        x = [point.new_tokens for point in points]
        gain.plot(x, [point.bytes_per_token for point in points], marker="o", label=name, **how)
        sets = list(points[0].kept)
        for number, each in enumerate(sets):
            shares = [100 * share for point in points if (share := point.kept[each].identical) is not None]
            if shares:  # the documents of a set are the same for all points
                label = f"{name}: {Path(each).name}" if len(sets) > 1 else name
                harm.plot(x, shares, marker=MARKERS[number % len(MARKERS)], label=label, **how)
    gain.set(title="New language", xlabel="new tokens", ylabel="bytes per token")
    harm.set(title="Original language, unseen text", xlabel="new tokens", ylabel="documents encoded as before (%)")
    for axes in (gain, harm):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False, fontsize="small")
