"""The figures of the report pages as SVG text. The one rule: they are readable on a light and on a dark page."""

import io
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle, pairwise
from math import floor, log10
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from langext.evaluation.significance import Mean, unbeaten

# Okabe and Ito's palette, which people with any kind of colour vision can tell apart: https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP*X<>hp"
"""One for each curve, because grey curves and more than six curves cannot be told apart by colour."""
Shares = Mapping[str, Sequence[float]]
"""Set -> a share for each layer."""
LEAST_SHARE = 0.01
"""In percent. Calibrations measure some thousand tokens of a set, so that a smaller share is hardly known."""
MOST_TICKS = 40
"""Layers with their numbers at an axis, at most."""
INK = "#808080"
"""The colour of text and axes while drawing. `_svg` replaces it by the text colour of the page."""


def _figure(width: float, height: float, count: int) -> tuple[Figure, list[Any]]:
    # Text stays text: it can be searched and read aloud. The salt makes ids, and so the whole file, the same each time.
    # Names of runs and sets may contain dollar signs, which are not to be read as formulas.
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
    """The figure as an <svg> element that fits the width of the page, with `alt` as its description for screen readers."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"^.*?(<svg)", r"\1", out.getvalue(), count=1, flags=re.S)
    alt = escape(alt)
    svg = re.sub(r"<metadata>.*?</metadata>", f"<title>{alt}</title>", svg, count=1, flags=re.S)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{alt}"', svg, count=1)
    own = f"f{zlib.crc32(alt.encode()):08x}-"  # ids must be unique in a page, and a page has several figures
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{own}", svg)
    return svg.replace(INK, "currentColor")


def _label(axis: Any, title: str, x: str) -> None:
    axis.set_title(title, color=INK, fontsize=10, loc="left")
    axis.set_xlabel(x, color=INK)


def _legend(axis: Any, below: bool = False) -> None:
    place = {"loc": "upper left", "bbox_to_anchor": (0, -0.16)} if below else {}
    axis.legend(frameon=False, labelcolor=INK, fontsize=9, **place).set_zorder(5)


def curves(metrics: list[dict[str, Any]], new: str) -> str:
    """Two plots of a training: held-out bits per byte by set (change since the start in %), and the loss by language.

    `metrics` are the lines that training wrote. `new` is the code of the new language, which is drawn solid and first.
    """
    evals = [row for row in metrics if row["kind"] == "eval"]
    names = sorted(evals[0]["sets"], key=lambda n: not n.startswith(new)) if evals else []
    many = len(names) > len(COLOURS)  # their names would cover the curves
    figure, (left, right) = _figure(9.5, 3.3 + 0.22 * len(names) * many, 2)
    for number, (colour, name) in enumerate(zip(cycle(COLOURS), names, strict=False)):
        start = evals[0]["sets"][name]["bits_per_byte"]
        change = [100 * (row["sets"][name]["bits_per_byte"] / start - 1) for row in evals]
        style = "-" if name.startswith(new) else "--"
        look = {"color": colour, "marker": MARKERS[number // len(COLOURS) % len(MARKERS)], "markersize": 3}
        left.plot([row["tokens"] / 1e3 for row in evals], change, style, label=name, **look)
    left.axhline(0, color=INK, linewidth=0.8)
    _label(left, "Held-out bits per byte, change since training began in %", "thousand tokens")
    if names:
        _legend(left, below=many)
    trains = [row for row in metrics if row["kind"] == "train"]
    losses = sorted({key for row in trains for key in row["losses"] if key.startswith("loss/")})
    for colour, key in zip(cycle(COLOURS), sorted(losses, key=lambda k: not k.endswith(new)), strict=False):
        points = [(row["step"], row["losses"][key]) for row in trains if key in row["losses"]]
        right.plot(*zip(*points, strict=True), color=colour, label=key.removeprefix("loss/"))
    _label(right, "Training loss, nats per token", "step")
    if losses:
        _legend(right)
    return _svg(figure, "Learning curves: held-out bits per byte and training loss")


def gates(rows: dict[str, list[float]], close: bool, layers: Sequence[int]) -> str:
    """A heat map of gates: one row for each set, one column for each of `layers`; empty text when `rows` is empty.

    The values are shares of tokens with an open gate if the gates can `close`, otherwise mean values of the gate.
    """
    if not rows:
        return ""
    figure, (axis,) = _figure(9.5, 0.9 + 0.35 * len(rows), 1)
    values = [value for row in rows.values() for value in row]
    top = max(1.0, *map(abs, values))
    # Gates below zero (elu) need colours on both sides of a neutral zero.
    scale = {"cmap": "viridis", "vmin": 0, "vmax": top} if min(values) >= 0 else {"cmap": "coolwarm", "vmin": -top, "vmax": top}
    shown = axis.imshow(list(rows.values()), aspect="auto", **scale)
    axis.grid(False)
    axis.set_yticks(range(len(rows)), list(rows))
    every = -(-len(layers) // MOST_TICKS)
    axis.set_xticks(range(0, len(layers), every), list(layers[::every]))
    title = "Share of tokens whose gate is open" if close else "Mean value of the gate"
    _label(axis, title, "layer")
    bar = figure.colorbar(shown, ax=axis, pad=0.01)
    bar.ax.tick_params(colors=INK)
    return _svg(figure, f"{title}, by layer and text")


def open_shares(layers: Sequence[int], new: Shares, kept: Shares, left_out: Mapping[int, float]) -> str:
    """Two plots of the share of tokens whose gate is open, by layer: of the new language, and of text that is to stay.

    `new` and `kept` have for each set one share for each of `layers`. `left_out`: layers without a block -> share of the new
    language that would have opened the gate. Shares of text to be kept are small, so their axis is logarithmic above
    `LEAST_SHARE`, and goes on to 0 below it.
    """
    figure, (left, right) = _figure(9.5, 3.3 + 0.22 * max(len(new) + bool(left_out), len(kept)), 2)
    for axis, sets in ((left, new), (right, kept)):
        for number, (colour, (name, shares)) in enumerate(zip(cycle(COLOURS), sets.items(), strict=False)):
            marker = MARKERS[number % len(MARKERS)]
            axis.plot(
                layers, [100 * share for share in shares], color=colour, marker=marker, markersize=3.5, linewidth=1, label=name
            )
    if left_out:
        missed = [100 * share for share in left_out.values()]
        left.plot(list(left_out), missed, linestyle="none", marker="x", color=INK, label="no block: would have been open")
    left.set_ylim(0, 103)
    right.set_yscale("symlog", linthresh=LEAST_SHARE)
    top = max((100 * share for shares in kept.values() for share in shares), default=0.0)
    marks = [0.0, *(mark for mark in (0.01, 0.1, 1.0, 10.0, 100.0) if mark < 10 * max(top, LEAST_SHARE))]
    right.set_ylim(-LEAST_SHARE / 10, marks[-1] * 1.2)
    right.set_yticks(marks, [f"{mark:g}" for mark in marks])
    right.minorticks_off()
    _label(left, "New language: tokens with an open gate in %", "layer")
    _label(right, "Other text: tokens with an open gate in % (logarithmic)", "layer")
    every = [*layers, *left_out]
    for axis in (left, right):
        axis.set_xlim(min(every) - 0.5, max(every) + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if axis.lines:
            _legend(axis, below=True)
    return _svg(figure, "Share of tokens with an open gate by layer, as calibrated")


def funnel(sources: Mapping[str, Sequence[tuple[str, int]]]) -> str:
    """What became of the text of each source: one bar for each, of what was kept and what each step dropped, in percent.

    `sources`: name -> (step, bytes that were left after it), the first being what was read. Empty text when there is none.
    """
    if not sources:
        return ""
    figure, (axis,) = _figure(9.5, 1.1 + 0.32 * len(sources), 1)
    steps = list(dict.fromkeys(step for done in sources.values() for step, _ in done[1:]))
    names = [f"{name} ({done[0][1] / 1e6:.2f} MB)" for name, done in sources.items()]
    kept = [100 * done[-1][1] / max(1, done[0][1]) for done in sources.values()]
    axis.barh(names, kept, color=COLOURS[0], label="kept")
    begin = kept
    for step, colour in zip(reversed(steps), cycle(COLOURS[1:]), strict=False):
        lost = [100 * _lost(done, step) / max(1, done[0][1]) for done in sources.values()]
        axis.barh(names, lost, left=begin, color=colour, label=f"dropped: {step}")
        begin = [at + width for at, width in zip(begin, lost, strict=True)]
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.grid(visible=False, axis="y")
    _label(axis, "Text that was read, and what became of it", "share of the bytes in %")
    axis.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1))
    return _svg(figure, "Text of each source that was kept, and that each step dropped; the table below has the figures")


def _lost(done: Sequence[tuple[str, int]], step: str) -> int:
    """Bytes that a step dropped; 0 when it was not done."""
    return sum(before - after for (_, before), (name, after) in pairwise(done) if name == step)


def dial(points: Sequence[tuple[float, float, str]], kept: int, budget: float | None) -> str:
    """The curve of the dial: gain in the new language upwards, drift to the right on a logarithmic axis.

    `points`: (drift in nats per token, gain as a share, label). `kept` is the index of the point that was kept.
    """
    figure, (axis,) = _figure(9.5, 3.6, 1)
    drifts, gains = [drift for drift, _, _ in points], [100 * gain for _, gain, _ in points]
    positive = [value for value in (*drifts, budget or 0.0) if value > 0]
    # A drift of 0, of gates that nothing opens, has a place too: the scale is linear below the smallest decade of the others.
    axis.set_xscale("symlog", linthresh=10 ** floor(log10(min(positive, default=1.0))))
    axis.plot(drifts, gains, color=COLOURS[0], marker="o", markersize=5, linewidth=1.2, label="settings of the dial")
    ring = {"linestyle": "none", "marker": "o", "markersize": 13, "markerfacecolor": "none", "markeredgewidth": 2}
    axis.plot(drifts[kept], gains[kept], color=COLOURS[1], label="kept", **ring)
    for drift, gain, (_, _, label) in zip(drifts, gains, points, strict=True):
        axis.annotate(label, (drift, gain), xytext=(0, -16), textcoords="offset points", ha="center", fontsize=9, color=INK)
    if budget is not None:
        axis.axvline(budget, color=INK, linestyle="--", linewidth=1, label=f"budget, {budget:g}")
    axis.margins(x=0.08, y=0.2)
    axis.xaxis.set_major_formatter("{x:g}")
    _label(
        axis,
        "Each setting, by the share of tokens that was to have every gate closed",
        "drift: KL to the base on original text, nats per token",
    )
    axis.set_ylabel("gain in the new language, %", color=INK)
    _legend(axis)
    return _svg(figure, "The dial: gain in the new language by drift on original text; the table below has the figures")


NEAR, FAR = 0.01, 0.3
"""Shares of bits per byte or tasks, or nats per token, between which and beyond which forgetting is drawn logarithmically."""


@dataclass(frozen=True)
class Point:
    """One run in a plane of learning and forgetting, and the text to write beside it."""

    learned: Mean
    forgot: Mean
    label: str
    alike: bool
    """True if the run was measured like the others. Only then can it be unbeaten."""


def plane(
    curves: Mapping[str, Sequence[Point]], reference: Collection[str], title: str, x: str, y: str, up: float = 100
) -> str:
    """A figure with learning to the right, in percent, and forgetting upwards, `up` times as large, with 95 % intervals.

    `curves`: name -> points that are joined by a line. Curves whose names are in `reference` are grey. A wide line goes through
    the runs that no other run beats; the base is at the origin. `x` and `y` are the titles of the axes. A run that forgot more
    than `FAR` makes the axis upwards logarithmic beyond `NEAR`, or it would press the others flat.
    """
    figure, (axis,) = _figure(9.5, 5.2 + 0.22 * len(curves), 1)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.plot(0, 0, marker="+", markersize=12, color=INK, linestyle="none", label="the base")
    colours = cycle(COLOURS)
    for number, (name, points) in enumerate(curves.items()):
        gained, gained_bars = _scaled([p.learned for p in points], 100)
        lost, lost_bars = _scaled([p.forgot for p in points], up)
        axis.errorbar(
            gained, lost, xerr=gained_bars, yerr=lost_bars, color=INK if name in reference else next(colours), label=name,
            marker=MARKERS[number % len(MARKERS)], markersize=6, linewidth=1.2, elinewidth=0.7,
        )  # fmt: skip
        for p, *at in zip(points, gained, lost, strict=True):
            axis.annotate(p.label, at, xytext=(5, 4), textcoords="offset points", fontsize=8, color=INK)
    comparable = [(p.learned.value, p.forgot.value) for points in curves.values() for p in points if p.alike]
    best = sorted(comparable[k] for k in unbeaten(comparable))
    gained, lost = ([scale * pair[side] for pair in best] for side, scale in ((0, 100), (1, up)))
    # Steps, because a straight line would promise results between two runs that no run has reached.
    axis.step(gained, lost, where="pre", color=INK, linewidth=4, marker="o", markersize=12, markeredgewidth=0, alpha=0.2,
              zorder=0, label="unbeaten")  # fmt: skip
    _label(axis, title, x)
    if any(abs(p.forgot.value) > FAR for points in curves.values() for p in points):
        axis.set_yscale("symlog", linthresh=up * NEAR)
        axis.yaxis.set_major_formatter("{x:g}")
        y += f" (logarithmic above {up * NEAR:g})"
    axis.set_ylabel(y, color=INK)
    _legend(axis, below=True)  # names say settings, and may be long
    return _svg(figure, f"Each run by {x} and {y}; the table below has the figures")


def _scaled(means: Sequence[Mean], scale: float) -> tuple[list[float], list[list[float]]]:
    """The values times `scale`, and the lengths of their error bars below and above. An unknown bar has length 0."""
    # max(0.0, nan) is 0.0: matplotlib refuses negative lengths.
    bars = [
        [max(0.0, scale * length) for length in lengths]
        for lengths in zip(*((m.value - m.low, m.high - m.value) for m in means), strict=True)
    ]
    return [scale * m.value for m in means], bars
