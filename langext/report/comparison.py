"""Compare several runs: what each learned and forgot, what it cost, and which runs no other run beats in both.

The one rule: runs are compared only when they add the same language and keep the same ones; others are left out with a reason.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Any

from langext.artifacts import BASE, is_run
from langext.errors import ConfigError
from langext.evaluation import significance
from langext.evaluation.significance import Mean
from langext.report import run_folder
from langext.report.alike import alike
from langext.report.run_folder import Run

FULL = "full"
"""The method that the others are compared with: full fine-tuning."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that make a spreadsheet read it as a formula.
https://owasp.org/www-community/attacks/CSV_Injection"""


@dataclass(frozen=True)
class Entry:
    """One run of a comparison."""

    run: Run
    name: str
    """The name of the run's folder, after as many of its parent folders as are needed to tell the runs apart."""
    settings: dict[str, Any]
    """The values of those settings in which the runs differ, by key."""
    learned: Mean | None
    """How many fewer bits per byte the new language needs, as a share of the base's; the mean over its sets."""
    forgot: Mean | None
    """How many more bits per byte the original languages need, as a share of the base's, in the set that lost most. A mean
    would hide this set behind one that gained."""
    forgot_in: str
    """The name of that set."""
    tasks_learned: Mean | None
    """Mean gain in the tasks of the new language, in the tasks' own unit (accuracy), over the tasks of the first run that has
    any. None for a run that lacks one of these tasks.
    """
    tasks_forgot: Mean | None
    """Mean loss in the tasks of the original languages, likewise."""
    alike: bool
    """True if the run was measured like the first run: on the same passages, and its tasks with the same settings."""

    @property
    def method(self) -> str:
        """What was done to the base, in a few words."""
        return self.run.method

    @property
    def curve(self) -> str:
        """A key for the curve that the run belongs to: equal for runs that differ only in the learning rate."""
        return json.dumps([self.method, {k: v for k, v in self.settings.items() if k != self._rate}])

    @property
    def label(self) -> str:
        """A short name of that curve for readers. Two curves can have the same label, because long values are cut."""
        return ", ".join([self.method, *(f"{_short(k)} {shown(v, 24)}" for k, v in self.settings.items() if k != self._rate)])

    @property
    def rate(self) -> str:
        """The learning rate; empty where the runs do not differ in it."""
        return f"{self.run.rate[1]:g}" if self.run.rate and self._rate in self.settings else ""

    @property
    def _rate(self) -> str:
        return self.run.rate[0] if self.run.rate else ""

    @property
    def drift(self) -> Mean | None:
        """The largest KL(base || model) of any original language, in nats per token; None where it was not measured, nan where
        one language has none.
        """
        by_language = self.run.model_scores.kl_to_base if self.run.model_scores else {}
        return significance.farthest([language.code for language in self.run.originals], by_language)


@dataclass(frozen=True)
class Comparison:
    """All runs that can be compared, and what to show about them."""

    entries: list[Entry]
    first: str
    """Name of the run that was given first; the others must be measured as it was."""
    left_out: list[str]
    """Folders that cannot be compared with it, each with the reason."""

    @cached_property
    def keys(self) -> list[str]:
        """Keys of the settings in which the runs differ."""
        return list(dict.fromkeys(key for entry in self.entries for key in entry.settings))

    @cached_property
    def sets(self) -> list[str]:
        """Names of the sets of held-out text that at least one run has measured."""
        return list(dict.fromkeys(row.name for entry in self.entries for row in entry.run.bits))

    @cached_property
    def tasks(self) -> list[str]:
        """Names of the task figures that at least one run has measured."""
        return list(dict.fromkeys(row.name for entry in self.entries for row in entry.run.tasks))

    @cached_property
    def by_drift(self) -> bool:
        """True when forgetting is the distance to the base (`Entry.drift`), because every run that counts has it.

        Bits per byte can fall while a model moves away from its base: any raw text brings an instruct model closer to other raw
        text. KL cannot: it is zero for the base alone.
        """
        counting = [entry for entry in self.entries if entry.alike and entry.learned]
        return bool(counting) and all(entry.drift and isfinite(entry.drift.value) for entry in counting)

    def lost(self, entry: Entry) -> Mean | None:
        """What a run forgot, in the unit of the comparison: nats per token if `by_drift`, else a share of the bits per byte."""
        return entry.drift if self.by_drift else entry.forgot

    @cached_property
    def front(self) -> list[Entry]:
        """The runs that no other run beats in both learning and forgetting (the Pareto front).

        Values alone decide, not their errors. Runs that are not `alike` are left out.
        """
        pairs = [(e, e.learned.value, lost.value) for e in self.entries if e.alike and e.learned and (lost := self.lost(e))]
        return [pairs[k][0] for k in significance.unbeaten([(learned, forgot) for _, learned, forgot in pairs])]

    @cached_property
    def open_ended(self) -> list[str]:
        """A line for each curve whose run that learned most has the lowest or the highest of at least two learning rates.

        Such a method may learn more at a rate that was not tried, so it is not compared at its best.
        """
        lines = []
        for curve in dict.fromkeys(entry.curve for entry in self.entries):
            tried = [e for e in self.entries if e.curve == curve and e.run.rate and e.learned and e.alike]
            rates = sorted({e.run.rate[1] for e in tried if e.run.rate})
            best = max(tried, key=lambda e: e.learned.value if e.learned else 0.0, default=None)
            if len(rates) > 1 and best and best.run.rate and best.run.rate[1] in (rates[0], rates[-1]):
                end = "highest" if best.run.rate[1] == rates[-1] else "lowest"
                lines.append(f"{best.label} learned most at the {end} learning rate that was tried, {best.run.rate[1]:g}")
        return lines

    def of_full(self, entry: Entry) -> float | None:
        """What a run learned as a share of what the best full fine-tuning of the same base learned (0.8 is 80 %).

        None where the comparison has no such run that learned something, and where `entry` is not `alike` or learned nothing
        that was measured.
        """
        of_base = [
            e for e in self.entries if e.method == FULL and e.run.settings["base_model"] == entry.run.settings["base_model"]
        ]
        best = max((e.learned.value for e in of_base if e.learned and e.alike), default=0.0)
        return entry.learned.value / best if entry.learned and entry.alike and best > 0 else None


def gather(roots: Sequence[Path]) -> Comparison:
    """Read all runs in `roots`, each a run folder or a folder of runs.

    Runs that cannot be compared with the first one are left out, with the reason. Raises ConfigError for a folder that does not
    exist or holds no run.
    """
    folders = list(dict.fromkeys(run for root in roots for run in _runs(root.resolve())))
    runs: list[Run] = []
    left_out = [f"{path.name}: no finished stage" for root in roots for path in _unfinished(root.resolve())]
    for path in folders:
        try:
            run = run_folder.gather(path)
        except ConfigError as error:  # one damaged run must not prevent the comparison of all others
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
    wanted = next((tasks for run in runs if (tasks := _tasks(run))), set())
    entries = [_entry(run, name, runs[0], keys, wanted) for run, name in zip(runs, names, strict=True)]
    ordered = sorted(entries, key=lambda e: (e.curve, e.run.rate[1] if e.run.rate else 0.0, e.name))
    return Comparison(ordered, names[0] if names else "", left_out)


def _names(roots: Sequence[Path]) -> list[str]:
    """A name for each path: its last parts, as few as make all names different."""
    longest = max((len(root.parts) for root in roots), default=0)
    for count in range(1, longest + 1):
        names = ["/".join(root.parts[-count:]) for root in roots]
        if len(set(names)) == len(names):
            return names
    return [str(root) for root in roots]


def folder(roots: Sequence[Path]) -> Path:
    """Where a comparison of `roots` is written: the one folder of runs, or the parent that all runs share, or else the current
    folder.
    """
    if len(roots) == 1 and not is_run(roots[0].resolve()):
        return roots[0].resolve()
    parents = {root.resolve().parent for root in roots}
    return parents.pop() if len(parents) == 1 else Path.cwd()


def _runs(root: Path) -> list[Path]:
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder")
    runs = [root] if is_run(root) else [path for path in sorted(root.iterdir()) if path.is_dir() and is_run(path)]
    if not runs:
        raise ConfigError(f"{root}: neither a run folder nor a folder of runs")
    return runs


def _unfinished(root: Path) -> list[Path]:
    """The runs in a folder of runs that have started but have no finished stage yet."""
    return [] if is_run(root) else [path.parent for path in sorted(root.glob(f"*/{BASE}")) if not is_run(path.parent)]


def _tasks(run: Run) -> set[str]:
    """The task figures of a run that count towards a mean."""
    return {row.name for rows in run.task_changes().values() for row in rows}


def _entry(run: Run, name: str, first: Run, keys: Sequence[str], wanted: set[str]) -> Entry:
    learned = significance.mean([row for row in run.bits if run.is_new(row)])
    forgot = significance.worst([row for row in run.bits if not run.is_new(row)])
    by_language = {new: [row for row in rows if row.name in wanted] for new, rows in run.task_changes().items()}
    if wanted - _tasks(run):  # a mean over other tasks would not be comparable
        by_language = {}
    lost = significance.gain(by_language.get(False, []))
    return Entry(
        run=run,
        name=name,
        settings={key: run.settings[key] for key in keys if key in run.settings},
        learned=-learned if learned else None,  # fewer bits are better, and learning is shown as a positive number
        forgot=significance.mean([forgot]) if forgot else None,
        forgot_in=forgot.name if forgot else "",
        tasks_learned=significance.gain(by_language.get(True, [])),
        tasks_forgot=-lost if lost else None,
        alike=alike(run, first),
    )


def _pair(run: Run) -> str:
    return f"{run.new.code} and keeps {', '.join(language.code for language in run.originals)}"


def _differing(runs: Sequence[Run]) -> list[str]:
    """Keys of the settings in which the runs differ. A setting that is missing counts as a value.

    A setting is compared only among the runs that have its stage, and a setting of a method only among the runs with that
    method. Without this, every setting of a stage or method that only some runs have would be listed; `Run.method` says that
    already.
    """
    differing = []
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        groups: dict[str, set[str]] = {}
        for run in runs:
            if any(setting.split(".")[0] == key.split(".")[0] for setting in run.settings):
                group = run.extension if ".method." in key else ""
                groups.setdefault(group, set()).add(json.dumps(run.settings.get(key), sort_keys=True))
        if any(len(values) > 1 for values in groups.values()):
            differing.append(key)
    return differing


def shown(value: Any, most: int = 200) -> str:
    """The value of a setting as people write it, cut to at most `most` characters."""
    text = (
        f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
    return text if len(text) <= most else text[: most - 1] + "…"


def _short(key: str) -> str:
    return key.split(".")[-1]


def rows(found: Comparison) -> list[dict[str, Any]]:
    """One flat record for each run, all with the same keys: the rows of compare.csv and of `langext compare --json`."""
    return [_row(found, entry) | {"on_front": entry in found.front} for entry in found.entries]


def _row(found: Comparison, entry: Entry) -> dict[str, Any]:
    run = entry.run
    row: dict[str, Any] = {"run": entry.name, "method": entry.method}
    row |= {key: entry.settings.get(key) for key in found.keys}
    means = {"learned": entry.learned, "forgot": entry.forgot, "tasks_learned": entry.tasks_learned,
             "tasks_forgot": entry.tasks_forgot, "kl_to_base": entry.drift}  # fmt: skip
    for name, mean in means.items():
        row |= {name: mean and mean.value, f"{name}_low": mean and mean.low, f"{name}_high": mean and mean.high}
    row |= {"forgot_in": entry.forgot_in, "learned_of_full": found.of_full(entry)}
    row |= {"alike": entry.alike, **run.cost}
    for names, measured in ((found.sets, run.bits), (found.tasks, run.tasks)):
        by_name = {change.name: change for change in measured}
        for name in names:
            change = by_name.get(name)
            row |= {f"{name} before": change and change.before, f"{name} after": change and change.after}
    return row


def table(found: Comparison) -> dict[str, Any]:
    """The object that `langext compare --json` prints."""
    first = found.entries[0].run
    return {
        "language": first.new.code,
        "original_languages": [language.code for language in first.originals],
        "runs": rows(found),
        "forgotten_by": "kl_to_base" if found.by_drift else "forgot",
        "front": [entry.name for entry in found.front],
        "left_out": found.left_out,
    }


def csv_of(found: Comparison) -> str:
    """`rows` as CSV. Text that a spreadsheet would run as a formula gets an apostrophe in front."""
    records, text = rows(found), StringIO()
    writer = csv.writer(text)
    writer.writerow([_cell(name) for name in records[0]])
    writer.writerows([_cell(value) for value in record.values()] for record in records)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "'" + text if text.startswith(FORMULA) else text
