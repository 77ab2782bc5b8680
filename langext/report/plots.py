"""Figures of the report as SVG text, readable on a light and on a dark page."""

import io
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from langext.evaluation.significance import Mean, unbeaten

# Okabe and Ito's palette, told apart with every kind of colour vision: https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#808080"


def _figure(width: float, height: float, count: int) -> tuple[Figure, list[Any]]:
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": 10,
            "svg.hashsalt": "langext",
            "text.parse_math": False,
        }
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
    alt = escape(alt)
    svg = re.sub(r"<metadata>.*?</metadata>", f"<title>{alt}</title>", svg, count=1, flags=re.S)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{alt}"', svg, count=1)
    own = f"f{zlib.crc32(alt.encode()):08x}-"  # ids are of the whole page, and a page has several figures
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{own}", svg)
    return svg.replace(INK, "currentColor")


def _label(axis: Any, title: str, x: str) -> None:
    axis.set_title(title, color=INK, fontsize=10, loc="left")
    axis.set_xlabel(x, color=INK)


def _legend(axis: Any) -> None:
    legend = axis.legend(frameon=False, labelcolor=INK, fontsize=9)
    legend.set_zorder(5)


def curves(metrics: list[dict[str, Any]], new: str) -> str:
    """Held-out bits per byte by domain, relative to where training began, and training loss by language."""
    figure, (left, right) = _figure(9.5, 3.3, 2)
    evals = [row for row in metrics if row["kind"] == "eval"]
    names = sorted(evals[0]["sets"], key=lambda n: not n.startswith(new)) if evals else []
    for colour, name in zip(cycle(COLOURS), names, strict=False):
        start = evals[0]["sets"][name]["bits_per_byte"]
        change = [100 * (row["sets"][name]["bits_per_byte"] / start - 1) for row in evals]
        style = "-" if name.startswith(new) else "--"
        left.plot([row["tokens"] / 1e3 for row in evals], change, style, color=colour, marker="o", markersize=3, label=name)
    left.axhline(0, color=INK, linewidth=0.8)
    _label(left, "Held-out bits per byte, change since training began in %", "thousand tokens")
    if names:
        _legend(left)
    trains = [row for row in metrics if row["kind"] == "train"]
    losses = sorted({key for row in trains for key in row["losses"] if key.startswith("loss/")})
    for colour, key in zip(cycle(COLOURS), sorted(losses, key=lambda k: not k.endswith(new)), strict=False):
        points = [(row["step"], row["losses"][key]) for row in trains if key in row["losses"]]
        right.plot(*zip(*points, strict=True), color=colour, label=key.removeprefix("loss/"))
    _label(right, "Training loss, nats per token", "step")
    if losses:
        _legend(right)
    return _svg(figure, "Learning curves: held-out bits per byte and training loss")


def gates(rows: dict[str, list[float]], close: bool) -> str:
    """Share of open tokens by layer, for each set, or the mean value of gates that do not close; empty text without gates."""
    if not rows:
        return ""
    figure, (axis,) = _figure(9.5, 0.9 + 0.35 * len(rows), 1)
    values = [value for row in rows.values() for value in row]
    most = max(1.0, *map(abs, values))
    scale = (
        {"cmap": "viridis", "vmin": 0, "vmax": most} if min(values) >= 0 else {"cmap": "coolwarm", "vmin": -most, "vmax": most}
    )
    shown = axis.imshow(list(rows.values()), aspect="auto", **scale)
    axis.grid(False)
    axis.set_yticks(range(len(rows)), list(rows))
    what = "Share of tokens whose gate is open" if close else "Mean value of the gate"
    _label(axis, what, "layer")
    bar = figure.colorbar(shown, ax=axis, pad=0.01)
    bar.ax.tick_params(colors=INK)
    return _svg(figure, f"{what}, by layer and text")


MARKERS = "osD^vP*X<>hp"


@dataclass(frozen=True)
class Point:
    """One run in the plane, and what to write beside it."""

    learned: Mean
    forgot: Mean
    label: str
    alike: bool
    """Was it measured as the others were? Only then can it be unbeaten."""


def plane(curves: Mapping[str, Sequence[Point]], reference: Collection[str], title: str, x: str, y: str) -> str:
    """Learning to the right and forgetting upwards, in percent with 95 % intervals; one line for each entry of `curves`, one
    through the runs that no other one beats, and the base in the origin. The curves that are a `reference` are grey.
    """
    figure, (axis,) = _figure(9.5, 5.2, 1)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.plot(0, 0, marker="+", markersize=12, color=INK, linestyle="none", label="the base")
    colours = cycle(COLOURS)
    for number, (name, points) in enumerate(curves.items()):
        (gained, gained_bars), (lost, lost_bars) = _percents([p.learned for p in points]), _percents([p.forgot for p in points])
        axis.errorbar(
            gained, lost, xerr=gained_bars, yerr=lost_bars, color=INK if name in reference else next(colours), label=name,
            marker=MARKERS[number % len(MARKERS)], markersize=6, linewidth=1.2, elinewidth=0.7,
        )  # fmt: skip
        for p, *at in zip(points, gained, lost, strict=True):
            axis.annotate(p.label, at, xytext=(5, 4), textcoords="offset points", fontsize=8, color=INK)
    every = [(p.learned.value, p.forgot.value) for points in curves.values() for p in points if p.alike]
    best = sorted(every[k] for k in unbeaten(every))
    gained, lost = ([100 * pair[side] for pair in best] for side in (0, 1))
    axis.step(gained, lost, where="pre", color=INK, linewidth=4, marker="o", markersize=12, markeredgewidth=0, alpha=0.2,
              zorder=0, label="unbeaten")  # fmt: skip
    _label(axis, title, x)
    axis.set_ylabel(y, color=INK)
    legend = axis.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1))
    legend.set_zorder(5)
    return _svg(figure, f"Each run by {x} and {y}; the table below has the figures")


def _percents(means: Sequence[Mean]) -> tuple[list[float], list[list[float]]]:
    """Values and the two lengths of their error bars; none where it is not known."""
    bars = [
        [max(0.0, 100 * way) for way in ways]
        for ways in zip(*((m.value - m.low, m.high - m.value) for m in means), strict=True)
    ]
    return [100 * m.value for m in means], bars
