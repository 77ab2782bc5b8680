"""Tables and the picture of docs/results.md, from the records of collect.py; nothing is trained.

    python benchmarks/paper_table/tables.py benchmarks/paper_table/results/small_cpu.json --picture docs/results-cpu.png
    python benchmarks/paper_table/tables.py benchmarks/paper_table/results/small_cpu.json --show best
    python benchmarks/paper_table/tables.py benchmarks/paper_table/results/ablations.json --show settings --only closed extra
    python benchmarks/paper_table/tables.py benchmarks/paper_table/results/chain.json --show languages
    python benchmarks/paper_table/tables.py benchmarks/paper_table/results/small_cpu.json --show about

`best` is each method at the rate at which it learned most, with the range over seeds, beside full fine-tuning at its own;
`front` is the runs that no other run beats; `settings` is all runs by their names, in the order of the records;
`languages` is bits per byte of every language before and after, the mean over kinds of text that no run trains on; `tasks` the
accuracy in each benchmark; `about` says on what, from what and for how long the runs were made.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from collect import UNSEEN, mean, method_of, of_unseen

from langext import languages
from langext.evaluation import significance

Records = dict[str, Any]
"""Name of a run -> its record."""
COLUMNS = ("method", "rate", "trained", "French, trained kinds", "French, other kinds", "English lost, unseen kinds",
           "KL, unseen English", "gates all closed", "as by the base")  # fmt: skip
BEST = ("method, at the best rate tried", "rate", "seeds", "French, other kinds", "of full's", "English lost", "of full's",
        "KL, unseen English", "of full's")  # fmt: skip
FRONT = ("run", "French, other kinds", "English lost, unseen kinds", "KL, unseen English", "KL, worst kind", "gates all closed",
         "as by the base")  # fmt: skip


def main() -> None:
    """Print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--picture", type=Path)
    shown = {
        "runs": table, "best": best, "front": front, "settings": settings, "languages": by_language, "tasks": by_task,
        "about": about,
    }  # fmt: skip
    parser.add_argument("--show", choices=list(shown), default="runs")
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of names of runs")
    asked = parser.parse_args()
    files = [json.loads(path.read_text(encoding="utf-8")) for path in asked.records]
    found = {name: row for file in files for name, row in file.items()}
    if len(found) < sum(map(len, files)):
        parser.error("two of the files have runs of the same name")
    found = {name: row for name, row in found.items() if name.startswith(tuple(asked.only))}
    print("\n".join(shown[asked.show](found)))
    if asked.picture:
        draw(found, asked.picture)


def comparable(found: Records) -> Records:
    """The records. Ends the program for runs that did not train, or without unseen text."""
    if other := next((name for name, row in found.items() if "train" not in row or row["learned_unseen"] is None), None):
        sys.exit(f"{other}: a merge, or measured without unseen kinds of text, so it is in --show languages and about alone")
    return found


def by_method(found: Records) -> dict[str, list[dict[str, Any]]]:
    """The records of each method, by rate and seed."""
    methods: dict[str, list[dict[str, Any]]] = {}
    for name, row in sorted(comparable(found).items(), key=lambda item: (item[1]["train"]["lr"], item[1]["seed"])):
        methods.setdefault(method_of(name), []).append(row)
    return dict(sorted(methods.items()))


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """Lines of a table."""
    for cells in (heads, ["---"] * len(heads), *rows):
        yield "| " + " | ".join(cells) + " |"


def percent(value: float, form: str = ".1%") -> str:
    """A share in percent."""
    return format(value, form).replace("%", " %")


def best(found: Records) -> Iterable[str]:
    """A table of each method at the rate at which it learned most, over its seeds, as shares of full fine-tuning."""
    return markdown(headed(BEST, found), best_rows(by_method(found)))


def best_rows(methods: dict[str, list[dict[str, Any]]]) -> Iterable[list[str]]:
    """The cells of `best`."""
    full = at_best(methods.get("full") or sys.exit("--show best: no run of full fine-tuning to compare with"))
    for name, every in methods.items():
        rows = at_best(every)
        cells = [name, f"{rows[0]['train']['lr']:g}", str(len(rows))]
        for key, form in (("learned_unseen", ".1%"), ("forgot_unseen", "+.1%"), ("kl_unseen", ".4f")):
            values = [row[key] for row in rows]
            spread = f" ({percent(min(values), form)} to {percent(max(values), form)})" if len(values) > 1 else ""
            cells += [percent(mean(values), form) + spread, percent(mean(values) / mean([row[key] for row in full]))]
        yield cells


def at_best(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs, one for each seed, at the learning rate at which the first seed learned most."""
    first = max((row for row in rows if row["seed"] == rows[0]["seed"]), key=lambda row: row["learned_unseen"])
    return [row for row in rows if row["train"]["lr"] == first["train"]["lr"]]


def front(found: Records) -> Iterable[str]:
    """A table of the runs that no other beats, from the one that moved English least. Ends the program for unlike text."""
    rows = sorted(comparable(found).items(), key=lambda item: item[1]["kl_unseen"])
    if len({tuple(tokens for _, _, tokens in of_unseen(row["kl"])) for _, row in rows}) > 1:
        sys.exit("--show front: KL was not measured on the same text in all runs")
    best = significance.unbeaten([(row["learned_unseen"], row["kl_unseen"]) for _, row in rows])
    return markdown(headed(FRONT, found), (front_cells(*rows[number]) for number in best))


def front_cells(name: str, row: dict[str, Any]) -> list[str]:
    """The row of a run in `front`."""
    _, french, lost, kl, *gates = run_cells(name, row)[3:]
    worst, kind = max((value, kind.split(UNSEEN)[1]) for kind, (value, *_) in row["kl"].items() if UNSEEN in kind)
    return [name, french, lost, kl, f"{worst:.3f} ({kind})", *gates]


def table(found: Records) -> Iterable[str]:
    """A table of all runs."""
    return markdown(headed(COLUMNS, found), (run_cells(name, row) for name, rows in by_method(found).items() for row in rows))


def settings(found: Records) -> Iterable[str]:
    """A table of all runs by their names."""
    heads = headed(("setting", *COLUMNS[1:]), found)
    return markdown(heads, (run_cells(name, row) for name, row in comparable(found).items()))


def headed(columns: Sequence[str], found: Records) -> list[str]:
    """The columns, with the name of the language that these runs add in place of French."""
    codes = {name.split("/")[0] for row in found.values() for name in row["bits_per_byte"]} - {"eng_Latn"}
    added = languages.find(codes.pop()).name if len(codes) == 1 else "new language"
    return [column.replace("French", added) for column in columns]


def run_cells(name: str, row: dict[str, Any]) -> list[str]:
    """The row of a run that is called `name`."""
    return [
        name + (f", seed {row['seed']}" if row["seed"] != 17 else ""), f"{row['train']['lr']:g}",
        percent(row["trainable_parameters"] / row["base_parameters"], ".0%"),
        percent(row["learned"]), percent(row["learned_unseen"]), percent(row["forgot_unseen"], "+.1%"),
        f"{row['kl_unseen']:.4f}" + (f" ± {1.96 * error:.4f}" if (error := row.get("kl_unseen_error")) is not None else ""),
        *("" if (share := row.get(key)) is None else percent(share) for key in ("closed_unseen", "as_base_unseen")),
    ]  # fmt: skip


def by_language(found: Records) -> Iterable[str]:
    """A table of all runs: bits per byte before and after, by language."""
    sets = {name for row in found.values() for name in row["bits_per_byte"] if f"/{UNSEEN}" in name}
    codes = sorted({name.split("/")[0] for name in sets})
    rows = ([name, *(moved(row["bits_per_byte"], code) for code in codes)] for name, row in found.items())
    return markdown(["run", *codes], rows)


def moved(bits: dict[str, list[float]], code: str) -> str:
    """Bits per byte of a language before and after, the mean over its unseen kinds; empty where it has none."""
    pairs = [pair for name, pair in bits.items() if name.startswith(f"{code}/{UNSEEN}")]
    return " -> ".join(f"{mean(side):.3f}" for side in zip(*pairs, strict=True))


def by_task(found: Records) -> Iterable[str]:
    """A table of all benchmarks: accuracy of the base, and of each run with the p-value of the change."""
    names = dict.fromkeys(name for row in found.values() for name in row["tasks"])
    rows = ([name, *accuracies([row["tasks"].get(name) for row in found.values()])] for name in names)
    return markdown(["benchmark", "base", *found], rows)


def accuracies(runs: Sequence[dict[str, float] | None]) -> Iterable[str]:
    """The cells of a benchmark from its accuracies in each run; empty where it was not measured."""
    yield percent(next(run["before"] for run in runs if run))
    for run in runs:
        yield "" if run is None else f"{percent(run['after'])} ({run['p']:.2f})"


def about(found: Records) -> Iterable[str]:
    """Lines of Markdown: machine, versions, base, text and time of the runs. A stage that runs share counts once."""
    rows = list(found.values())
    yield f"- {len(rows)} runs, seeds {', '.join(map(str, sorted({row['seed'] for row in rows})))}"
    spent = {(stage, seconds) for row in rows for stage, seconds in row["seconds"].items()}
    yield f"- {sum(seconds for _, seconds in spent) / 3600:.1f} hours of runs, on {same(row['device'] for row in rows)}"
    yield f"- {same(', '.join(f'{name} {version}' for name, version in row['versions'].items()) for row in rows)}"
    bases = [file["sha256"] for row in rows for file in row["base"] or [] if file["name"] == "model.safetensors"]
    yield f"- base: {same(bases) or 'on the hub, or in pieces'}"
    yield f"- text: {same(row.get('text', 'not recorded') for row in rows)}"


def same(values: Iterable[str]) -> str:
    """Values without repetition."""
    return "; ".join(sorted(set(values)))


def draw(found: Records, picture: Path) -> None:
    """Left, French learned against how far English has moved, a line for each method; right, French over its training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (plane, course) = pyplot.subplots(1, 2, figsize=(13, 5.5))
    for number, (method, every) in enumerate(by_method(found).items()):
        rows = [row for row in every if row["seed"] == every[0]["seed"]]
        style = {"color": f"C{number % 10}", "marker": "os^Dv"[number // 10], "markersize": 4, "linewidth": 1}
        plane.plot([row["kl_unseen"] for row in rows], [100 * row["learned_unseen"] for row in rows], label=method, **style)
        curve = max(rows, key=lambda row: row["learned_unseen"])["curve"]
        course.plot([point["tokens"] / 1000 for point in curve], [new_language(point) for point in curve], **style)
    plane.set_xscale("log")
    plane.xaxis.set_minor_formatter("")
    plane.set_ylim(bottom=0)
    plane.set_xlabel("KL(base || model) on unseen kinds of English, nats per token")
    plane.set_ylabel("French learned, unseen kinds, % of bits per byte")
    course.set_xlabel("thousands of tokens of training, in the run that learned most")
    course.set_ylabel("bits per byte of French, unseen kinds")
    for axes in (plane, course):
        axes.grid(alpha=0.3)
    figure.legend(*plane.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=6)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(picture)


def new_language(point: dict[str, Any]) -> float:
    """Bits per byte at one evaluation of a training: the mean over unseen kinds of the language that is learnt."""
    sets = point["bits_per_byte"].items()
    return mean([value for name, value in sets if f"/{UNSEEN}" in name and not name.startswith("eng_Latn/")])


if __name__ == "__main__":
    main()
