"""Tables and the picture of docs/results.md, from the records of collect.py; nothing is trained.

    python benchmarks/paper_table/tables.py benchmarks/paper_table/results/small.json --picture docs/results.png
    python benchmarks/paper_table/tables.py benchmarks/paper_table/results/chain.json --languages

With --languages it prints bits per byte of every language before and after, the mean over kinds of text that no run trains on.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLUMNS = ("method", "rate", "French, trained kinds", "French, other kinds", "English lost, unseen kinds", "KL, unseen English",
           "gates all closed")  # fmt: skip


def main() -> None:
    """Print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--languages", action="store_true")
    asked = parser.parse_args()
    found = {name: row for path in asked.records for name, row in json.loads(path.read_text(encoding="utf-8")).items()}
    print("\n".join(by_language(found) if asked.languages else table(found)))
    if asked.picture:
        draw(found, asked.picture)


def method_of(name: str) -> str:
    """The method of a run's name, which ends with its learning rate and may have a seed behind it."""
    return name.split("-seed")[0].rsplit("-", 1)[0]


def table(found: dict[str, Any]) -> Iterable[str]:
    """Lines of Markdown, a row for each run."""
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + " --- |" * len(COLUMNS)
    for name, row in sorted(found.items(), key=lambda item: (method_of(item[0]), item[1]["train"]["lr"], item[1]["seed"])):
        closed = row["closed_unseen"]
        cells = [
            method_of(name) + (f", seed {row['seed']}" if row["seed"] != 17 else ""), f"{row['train']['lr']:g}",
            f"{100 * row['learned']:.1f} %", f"{100 * row['learned_unseen']:.1f} %", f"{100 * row['forgot_unseen']:+.1f} %",
            f"{row['kl_unseen']:.4f}", "" if closed is None else f"{100 * closed:.1f} %",
        ]  # fmt: skip
        yield "| " + " | ".join(cells) + " |"


def by_language(found: dict[str, Any]) -> Iterable[str]:
    """Lines of Markdown, a row for each run: bits per byte before and after, by language."""
    sets = sorted({name for row in found.values() for name in row["bits_per_byte"] if "/unseen-" in name})
    codes = list(dict.fromkeys(name.split("/")[0] for name in sets))
    yield "| run | " + " | ".join(codes) + " |"
    yield "|" + " --- |" * (len(codes) + 1)
    for name, row in found.items():
        means = []
        for code in codes:
            pairs = [pair for key, pair in row["bits_per_byte"].items() if key.startswith(f"{code}/unseen-")]
            means.append(" -> ".join(f"{sum(side) / len(side):.3f}" for side in zip(*pairs, strict=True)))
        yield f"| {name} | " + " | ".join(means) + " |"


def draw(found: dict[str, Any], picture: Path) -> None:
    """French learned against how far unseen English has moved, a line for each method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for method in sorted({method_of(name) for name in found}):
        rows = sorted((row for name, row in found.items() if method_of(name) == method), key=lambda row: row["train"]["lr"])
        x, y = [row["kl_unseen"] for row in rows], [100 * row["learned_unseen"] for row in rows]
        axes.plot(x, y, "o-", label=method, markersize=4, linewidth=1)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("KL(base || model) on unseen kinds of English, nats per token")
    axes.set_ylabel("French learned, unseen kinds, % of bits per byte")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture)


if __name__ == "__main__":
    main()
