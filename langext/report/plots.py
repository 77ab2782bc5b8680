"""Figures of the report as SVG text, readable on a light and on a dark page."""

import io
import re
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with every kind of colour vision: https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#808080"


def _figure(width: float, height: float, count: int) -> tuple[Figure, list[Any]]:
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "langext"}
    )
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.set_facecolor("none")
        axis.tick_params(colors=INK)
        axis.grid(color=INK, alpha=0.25, linewidth=0.6)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(INK)
    return figure, list(axes)


def _svg(figure: Figure, alt: str) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"^.*?(<svg)", r"\1", out.getvalue(), count=1, flags=re.S)
    svg = re.sub(r"<metadata>.*?</metadata>", f"<title>{alt}</title>", svg, count=1, flags=re.S)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{alt}"', svg, count=1)
    return svg.replace(INK, "currentColor")


def _label(axis: Any, title: str, x: str) -> None:
    axis.set_title(title, color=INK, fontsize=10, loc="left")
    axis.set_xlabel(x, color=INK)


def _legend(axis: Any) -> None:
    legend = axis.legend(frameon=False, labelcolor=INK, fontsize=9)
    legend.set_zorder(5)


def curves(metrics: list[dict[str, Any]], new: str) -> str:
    """Held-out bits per byte relative to the base by domain, and training loss by language, over tokens or steps."""
    figure, (left, right) = _figure(9.5, 3.3, 2)
    evals = [row for row in metrics if row["kind"] == "eval"]
    names = sorted(evals[0]["figures"], key=lambda n: not n.startswith(new)) if evals else []
    for colour, name in zip(COLOURS, names, strict=False):
        start = evals[0]["figures"][name]["bits_per_byte"]
        change = [100 * (row["figures"][name]["bits_per_byte"] / start - 1) for row in evals]
        style = "-" if name.startswith(new) else "--"
        left.plot([row["tokens"] / 1e3 for row in evals], change, style, color=colour, marker="o", markersize=3, label=name)
    left.axhline(0, color=INK, linewidth=0.8)
    _label(left, "Held-out bits per byte, change from the base in %", "thousand tokens")
    if names:
        _legend(left)
    trains = [row for row in metrics if row["kind"] == "train"]
    losses = sorted({key for row in trains for key in row["figures"] if key.startswith("loss/")})
    for colour, key in zip(COLOURS, sorted(losses, key=lambda k: not k.endswith(new)), strict=False):
        points = [(row["step"], row["figures"][key]) for row in trains if key in row["figures"]]
        right.plot(*zip(*points, strict=True), color=colour, label=key.removeprefix("loss/"))
    _label(right, "Training loss, nats per token", "step")
    if losses:
        _legend(right)
    return _svg(figure, "Learning curves: held-out bits per byte and training loss")


def gates(rows: dict[str, list[float]]) -> str:
    """Share of open tokens by layer, for each set; empty text when the method has no gates."""
    if not rows:
        return ""
    figure, (axis,) = _figure(9.5, 0.9 + 0.35 * len(rows), 1)
    shown = axis.imshow(list(rows.values()), aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axis.grid(False)
    axis.set_yticks(range(len(rows)), list(rows))
    _label(axis, "Share of tokens whose gate is open", "layer")
    bar = figure.colorbar(shown, ax=axis, pad=0.01)
    bar.ax.tick_params(colors=INK)
    return _svg(figure, "Share of tokens whose gate is open, by layer and text")
