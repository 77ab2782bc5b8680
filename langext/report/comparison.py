"""Several runs side by side: what each learned and forgot, what it cost, and which of them no other one beats in both."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from langext.artifacts import BASE, is_run
from langext.evaluation import significance
from langext.evaluation.significance import Mean
from langext.report import run_folder
from langext.report.run_folder import Run
from langext.spec import ConfigError

FULL = "full"
"""The method that is the reference for all others."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula."""


@dataclass(frozen=True)
class Entry:
    """One run among others."""

    run: Run
    name: str
    """Of its folder, with as many of the folders above as tell it from the others."""
    settings: dict[str, Any]
    """The settings in which the runs differ, and its values."""
    learned: Mean | None
    """How many fewer bits per byte the new language takes, as a share of the base's; the mean over its sets."""
    forgot: Mean | None
    """How many more the original languages take, in the set that lost most: a mean would hide it behind one that gained."""
    forgot_in: str
    """That set."""
    tasks_learned: Mean | None
    """Gain in the tasks of the new language, in the tasks' own unit (accuracy): the mean over those of the first run that has
    tasks. None of a run that has not all of these.
    """
    tasks_forgot: Mean | None
    """Loss in those of the original languages."""
    alike: bool
    """Was it measured as the first run was: on the same passages, its tasks with the same settings?"""

    @property
    def method(self) -> str:
        """What was done, in a few words."""
        return self.run.method

    @property
    def curve(self) -> str:
        """What runs have in common that differ in the learning rate alone."""
        return json.dumps([self.method, {k: v for k, v in self.settings.items() if k != self._rate}])

    @property
    def label(self) -> str:
        """The same in a few words; those of two curves can be the same."""
        return ", ".join([self.method, *(f"{_short(k)} {shown(v, 24)}" for k, v in self.settings.items() if k != self._rate)])

    @property
    def _rate(self) -> str:
        return self.run.rate[0] if self.run.rate else ""

    @property
    def kl(self) -> float | None:
        """The largest KL(base || model) of an original language, nats per token."""
        each = self.run.model_scores.kl_to_base if self.run.model_scores else {}
        return max((kl.value for kl in each.values()), default=None)


@dataclass(frozen=True)
class Comparison:
    """All of them."""

    entries: list[Entry]
    first: str
    """Name of the run that the others must have been measured like."""
    left_out: list[str]
    """Folders that do not compare with it, and why."""

    @cached_property
    def keys(self) -> list[str]:
        """Settings that have several values."""
        return list(dict.fromkeys(key for entry in self.entries for key in entry.settings))

    @cached_property
    def sets(self) -> list[str]:
        """Sets of held-out text that any run has measured."""
        return list(dict.fromkeys(row.name for entry in self.entries for row in entry.run.bits))

    @cached_property
    def tasks(self) -> list[str]:
        """Figures of tasks that any run has measured."""
        return list(dict.fromkeys(row.name for entry in self.entries for row in entry.run.tasks))

    @cached_property
    def front(self) -> list[Entry]:
        """Those that no other one beats in both: learned more and forgot less. It goes by the figures, not by their errors."""
        found = [(e, e.learned.value, e.forgot.value) for e in self.entries if e.learned and e.forgot and e.alike]
        return [found[k][0] for k in significance.unbeaten([(learned, forgot) for _, learned, forgot in found])]

    def of_full(self, entry: Entry) -> float | None:
        """What a run learned, as a share of what full fine-tuning of the same base learned at its best."""
        of_base = [
            e for e in self.entries if e.method == FULL and e.run.settings["base_model"] == entry.run.settings["base_model"]
        ]
        best = max((e.learned.value for e in of_base if e.learned and e.alike), default=0.0)
        return entry.learned.value / best if entry.learned and entry.alike and best > 0 else None


def gather(roots: Sequence[Path]) -> Comparison:
    """Read runs, and those in folders of runs. What does not compare with the first of them is left out, with the reason.

    Raises ConfigError for a folder that holds no run.
    """
    folders = list(dict.fromkeys(run for root in roots for run in _runs(root.resolve())))
    runs: list[Run] = []
    left_out = [f"{path.name}: no finished stage" for root in roots for path in _unfinished(root.resolve())]
    for path in folders:
        try:
            run = run_folder.gather(path)
        except ConfigError as error:
            left_out.append(f"{path.name}: {error}")
            continue
        if not run.bits:
            left_out.append(f"{path.name}: no evaluation of both base and trained model")
        elif runs and run.pair != runs[0].pair:
            left_out.append(f"{path.name}: adds {_pair(run)}, {runs[0].root.name} {_pair(runs[0])}")
        else:
            runs.append(run)
    keys = _differing(runs)
    names = _names([run.root for run in runs])
    wanted = next((found for run in runs if (found := _tasks(run))), set())
    entries = [_entry(run, name, runs[0], keys, wanted) for run, name in zip(runs, names, strict=True)]
    ordered = sorted(entries, key=lambda e: (e.curve, e.run.rate[1] if e.run.rate else 0.0, e.name))
    return Comparison(ordered, names[0] if names else "", left_out)


def _names(roots: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell all of them apart."""
    longest = max((len(root.parts) for root in roots), default=0)
    for count in range(1, longest + 1):
        names = ["/".join(root.parts[-count:]) for root in roots]
        if len(set(names)) == len(names):
            return names
    return [str(root) for root in roots]


def folder(roots: Sequence[Path]) -> Path:
    """Where a comparison is written: the folder of runs, that which all the runs are in, or else the working folder."""
    if len(roots) == 1 and not is_run(roots[0].resolve()):
        return roots[0].resolve()
    parents = {root.resolve().parent for root in roots}
    return parents.pop() if len(parents) == 1 else Path.cwd()


def _runs(root: Path) -> list[Path]:
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder")
    found = [root] if is_run(root) else [path for path in sorted(root.iterdir()) if path.is_dir() and is_run(path)]
    if not found:
        raise ConfigError(f"{root}: neither a run folder nor a folder of runs")
    return found


def _unfinished(root: Path) -> list[Path]:
    """Folders in a folder of runs that were begun and have no finished stage yet."""
    return [] if is_run(root) else [path.parent for path in sorted(root.glob(f"*/{BASE}")) if not is_run(path.parent)]


def _tasks(run: Run) -> set[str]:
    return {row.name for rows in run.task_changes().values() for row in rows}


def _entry(run: Run, name: str, first: Run, keys: Sequence[str], wanted: set[str]) -> Entry:
    learned = significance.mean([row for row in run.bits if run.is_new(row)])
    forgot = significance.worst([row for row in run.bits if not run.is_new(row)])
    by_language = {new: [row for row in rows if row.name in wanted] for new, rows in run.task_changes().items()}
    if wanted - _tasks(run):  # a mean over others would be of other things
        by_language = {}
    lost = significance.gain(by_language.get(False, []))
    return Entry(
        run=run,
        name=name,
        settings={key: run.settings[key] for key in keys if key in run.settings},
        learned=-learned if learned else None,
        forgot=significance.mean([forgot]) if forgot else None,
        forgot_in=forgot.name if forgot else "",
        tasks_learned=significance.gain(by_language.get(True, [])),
        tasks_forgot=-lost if lost else None,
        alike=_measured(run) == _measured(first),
    )


def _pair(run: Run) -> str:
    return f"{run.new.code} and keeps {', '.join(language.code for language in run.originals)}"


def _measured(run: Run) -> tuple[Any, ...]:
    """On what, and how: the sizes of the passages of each set before and after, and the keys of MEASURING of both."""
    found = [evaluation for evaluation in (run.base_scores, run.model_scores) if evaluation]
    sizes = sorted((name, bits.bytes_each) for evaluation in found for name, bits in evaluation.bits_per_byte.items())
    return sizes, run.measuring, run.measured_differently


def _differing(runs: Sequence[Run]) -> list[str]:
    """Settings that have several values, none being one, among the runs that have the stage; those of a method among the runs
    of that method. A stage that only some runs have shows in what `method` says of them.
    """
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        groups: dict[str, set[str]] = {}
        for run in runs:
            if any(other.split(".")[0] == key.split(".")[0] for other in run.settings):
                group = run.extension if ".method." in key else ""
                groups.setdefault(group, set()).add(json.dumps(run.settings.get(key), sort_keys=True))
        if any(len(values) > 1 for values in groups.values()):
            found.append(key)
    return found


def shown(value: Any, most: int = 200) -> str:
    """A setting as people write it, in `most` characters."""
    text = (
        f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
    return text if len(text) <= most else text[: most - 1] + "…"


def _short(key: str) -> str:
    return key.split(".")[-1]


def rows(found: Comparison) -> list[dict[str, Any]]:
    """One flat record for each run, of the same keys: what compare.csv and --json hold."""
    return [_row(found, entry) | {"on_front": entry in found.front} for entry in found.entries]


def _row(found: Comparison, entry: Entry) -> dict[str, Any]:
    run = entry.run
    row: dict[str, Any] = {"run": entry.name, "method": entry.method}
    row |= {key: entry.settings.get(key) for key in found.keys}
    for name in ("learned", "forgot", "tasks_learned", "tasks_forgot"):
        mean: Mean | None = getattr(entry, name)
        row |= {name: mean and mean.value, f"{name}_low": mean and mean.low, f"{name}_high": mean and mean.high}
    row |= {"forgot_in": entry.forgot_in, "learned_of_full": found.of_full(entry), "kl_to_base": entry.kl}
    row |= {"alike": entry.alike, **run.cost}
    for names, measured in ((found.sets, run.bits), (found.tasks, run.tasks)):
        by_name = {change.name: change for change in measured}
        for name in names:
            change = by_name.get(name)
            row |= {f"{name} before": change and change.before, f"{name} after": change and change.after}
    return row


def table(found: Comparison) -> dict[str, Any]:
    """What `langext compare --json` prints."""
    first = found.entries[0].run
    return {
        "language": first.new.code,
        "original_languages": [language.code for language in first.originals],
        "runs": rows(found),
        "front": [entry.name for entry in found.front],
        "left_out": found.left_out,
    }


def write_csv(found: Comparison, path: Path) -> None:
    """The same as a table, UTF-8. What a spreadsheet would take for a formula has an apostrophe before it."""
    records = rows(found)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([_cell(name) for name in records[0]])
        writer.writerows([_cell(value) for value in record.values()] for record in records)


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "'" + text if text.startswith(FORMULA) else text
