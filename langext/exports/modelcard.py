"""The README.md of an exported checkpoint."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from langext import languages


def write(out: Path, record: dict[str, Any], card: dict[str, Any]) -> None:
    """Render README.md from the verification record and what `exports.describe` found."""
    env = Environment(
        loader=PackageLoader("langext", "exports"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    named = [languages.find(code) for code in card["languages"]]
    text = env.get_template("modelcard.md.j2").render(**card, record=record, named=named, rows=_rows(card))
    (out / "README.md").write_text(text, encoding="utf-8")


def _rows(card: dict[str, Any]) -> list[dict[str, str]]:
    """Before and after, for every figure that both measured."""
    rows = []
    before, after = card["before"], card["after"]
    if not (before and after):
        return rows
    order = list(card["languages"])
    for name, now in sorted(after["bits_per_byte"].items(), key=lambda item: order.index(item[0].split("/")[0])):
        if name in before["bits_per_byte"]:
            then = before["bits_per_byte"][name]
            rows.append({"name": f"{name}, bits per byte", "before": _pm(then), "after": _pm(now)})
    for task, metrics in after["tasks"].items():
        for metric, now in metrics.items():
            if task in before["tasks"] and metric in before["tasks"][task]:
                rows.append({"name": f"{task}, {metric}", "before": _pm(before["tasks"][task][metric]), "after": _pm(now)})
    return rows


def _pm(figure: dict[str, float]) -> str:
    return f"{figure['value']:.4f} ± {figure['stderr']:.4f}"
