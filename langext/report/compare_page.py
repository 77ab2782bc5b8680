"""Show a comparison of runs: compare.html, compare.csv and a table in the terminal. All numbers come from comparison.py."""

import os
from math import isfinite
from pathlib import Path
from typing import Any

from markupsafe import Markup

from langext import console
from langext.artifacts import write_text
from langext.errors import ConfigError
from langext.evaluation.significance import Mean
from langext.report import comparison, plots
from langext.report.comparison import Comparison, Entry
from langext.report.page import PAGE, render, shown

HTML = "compare.html"
CSV = "compare.csv"


def build(found: Comparison, out: Path, links: bool = True) -> Path:
    """Write compare.html and compare.csv into the folder `out`; return the path of the page, with `links` to the runs' reports.

    Raises ConfigError when no run can be compared or `out` cannot be written.
    """
    if not found.entries:
        raise ConfigError(f"nothing to compare: {'; '.join(found.left_out)}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / CSV, comparison.csv_of(found))
        write_text(out / HTML, _page(found, out, links))
        return out / HTML
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None


def _page(found: Comparison, out: Path, links: bool) -> str:
    first = found.entries[0].run
    kept = first.kept or "the rest"
    planes = []
    # No plane without points: runs need not have tasks of both languages.
    learned = f"{first.new.name}: fewer bits per byte, %"
    if found.by_drift:
        names = (learned, f"{kept}: KL to the base, nats per token")
        planes.append(("KL to the base", _plane(found, "learned", "drift", "KL to the base", *names, up=1)))
    if any(entry.learned and entry.forgot for entry in found.entries):
        names = (learned, f"{kept}: more bits per byte, %")
        planes.append(("Bits per byte", _plane(found, "learned", "forgot", "Bits per byte", *names)))
    if any(entry.tasks_learned and entry.tasks_forgot for entry in found.entries):
        names = (f"{first.new.name}: gain in tasks, points", f"{kept}: loss in tasks, points")
        planes.append(("Tasks", _plane(found, "tasks_learned", "tasks_forgot", "Tasks", *names)))
    return render(
        "compare.html.j2", found=found, front=found.front, planes=planes, kept=kept, first=first, share=share, nats=nats,
        of={"bits": _by_name("bits"), "tasks": _by_name("tasks")}, shown=comparison.shown,
        link=lambda entry: _link(entry, out) if links else "",
    )  # fmt: skip


def _plane(found: Comparison, x: str, y: str, title: str, x_title: str, y_title: str, up: float = 100) -> Markup:
    """A figure of learning (attribute `x` of an entry) against forgetting (`y`, which is shown `up` times as large).

    Runs that differ only in the learning rate are joined by a curve.
    """
    curves: dict[str, list[plots.Point]] = {}
    names = _curve_names(found)
    reference = {names[entry.curve] for entry in found.entries if entry.method == comparison.FULL}
    for entry in found.entries:
        gained, lost = getattr(entry, x), getattr(entry, y)
        if gained and lost:
            curves.setdefault(names[entry.curve], []).append(plots.Point(gained, lost, entry.rate, entry.alike))
    return Markup(plots.plane(curves, reference, title, x_title, y_title, up))


def _curve_names(found: Comparison) -> dict[str, str]:
    """`Entry.curve` -> name of the curve. Curves that have the same label get a number after it."""
    labels = {entry.curve: entry.label for entry in found.entries}
    earlier_with_same_label = [list(labels.values())[:at].count(label) for at, label in enumerate(labels.values())]
    return {
        curve: f"{label} ({number + 1})" if number else label
        for (curve, label), number in zip(labels.items(), earlier_with_same_label, strict=True)
    }


def _by_name(which: str) -> Any:
    return lambda entry, name: next((row for row in getattr(entry.run, which) if row.name == name), None)


def _link(entry: Entry, out: Path) -> str:
    page = entry.run.root / PAGE
    # Relative, so that the links still work when the folder of runs is moved.
    return os.path.relpath(page.resolve(), out.resolve()) if page.exists() else ""


def share(mean: Mean | None, digits: int = 1) -> str:
    """Format a mean in percent with half the width of its 95 % interval, like +20.5 ± 1.1; a dash for None."""
    if mean is None:
        return "–"
    half = 50 * (mean.high - mean.low)
    return f"{100 * mean.value:+.{digits}f}" + (f" ± {half:.{digits}f}" if isfinite(half) else "")


def nats(mean: Mean | None) -> str:
    """Format a KL in nats per token with half the width of its 95 % interval, like 0.0035 ± 0.0011; a dash for None or nan."""
    if mean is None or not isfinite(mean.value):
        return "–"
    half = (mean.high - mean.low) / 2
    return f"{mean.value:.4f}" + (f" ± {half:.4f}" if isfinite(half) else "")


def show(found: Comparison, page: Path) -> None:
    """Print the table of a comparison, what was left out of it, and the paths of the page and the CSV file."""
    first = found.entries[0].run
    kept = first.kept or "the rest"
    columns = ["run", f"{first.new.name} %", f"{kept} %", "KL ±", "of full", "", "settings"]
    front = found.front
    rows = []
    for entry in sorted(found.entries, key=lambda e: e.learned.value if e.learned else 0.0, reverse=True):
        of_full = found.of_full(entry)
        row = [entry.name, share(entry.learned), share(entry.forgot), nats(entry.drift)]
        row += [f"{of_full:.0%}" if of_full is not None else "", _mark(entry, entry in front)]
        rows.append([*row, entry.label + (f", lr {entry.rate}" if entry.rate else "")])
    console.table(f"{first.new.name} learned and {kept} forgotten, bits per byte (± half of the 95 % interval)", columns, rows)
    if any(not entry.alike for entry in found.entries):
        console.say(f"† measured on other held-out text, or with other settings, than {found.first}")
    if first.unmeasured:
        console.say(f"not measured: {', '.join(language.name for language in first.unmeasured)}")
    if found.left_out:
        console.say("left out: " + "; ".join(found.left_out))
    for line in found.open_ended:
        console.say(f"{line}: it may not be at its best here")
    by = "KL to the base" if found.by_drift else f"the loss in the {kept} set that lost most"
    console.say(f"* no other run learned more and forgot less. Forgotten: {by}")
    console.say(f"{shown(page)}, {shown(page.with_name(CSV))}")


def _mark(entry: Entry, on_front: bool) -> str:
    return ("*" if on_front else "") + ("" if entry.alike else "†")
