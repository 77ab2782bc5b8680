"""Several runs side by side: what each learned and forgot, what it cost, and which of them no other one beats in both."""

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from langext import changes, run_folder
from langext.artifacts import MANIFEST
from langext.changes import Mean
from langext.run_folder import Run
from langext.spec import ConfigError

RATE = "train.lr"


@dataclass(frozen=True)
class Entry:
    """One run among others."""

    run: Run
    settings: dict[str, Any]
    """The settings in which the runs differ, and its values."""
    learned: Mean | None
    """How many fewer bits per byte the new language takes, as a share of the base's; the mean over its sets."""
    forgot: Mean | None
    """How many more the original languages take."""
    tasks_learned: Mean | None
    """Gain in the tasks of the new language, in the tasks' own unit (accuracy); the mean over them."""
    tasks_forgot: Mean | None
    """Loss in those of the original languages."""
    same_text: bool
    """Was it measured on the passages that the first run was measured on?"""

    @property
    def method(self) -> str:
        """What was done, in a few words."""
        return self.run.method

    @property
    def curve(self) -> str:
        """Runs of one curve differ in the learning rate alone."""
        return ", ".join([self.method, *(f"{_short(k)} {shown(v)}" for k, v in self.settings.items() if k != RATE)])

    @property
    def rate(self) -> float | None:
        """Its learning rate."""
        return self.run.settings.get(RATE)

    @property
    def kl(self) -> float | None:
        """The largest KL(base || model) of an original language, nats per token."""
        found = self.run.after.drift if self.run.after else {}
        return max((drift.kl for drift in found.values()), default=None)


@dataclass(frozen=True)
class Comparison:
    """All of them."""

    entries: list[Entry]
    left_out: list[str]
    """Folders without an evaluation of both base and trained model."""

    @cached_property
    def front(self) -> list[Entry]:
        """Those that no other one beats in both: learned more and forgot less."""
        found = [(e, e.learned.value, e.forgot.value) for e in self.entries if e.learned and e.forgot]
        return [found[k][0] for k in changes.unbeaten([(learned, forgot) for _, learned, forgot in found])]

    @property
    def full(self) -> Entry | None:
        """The full fine-tuning that learned most, the reference for how much can be learned from this text."""
        found = [entry for entry in self.entries if entry.method == "full" and entry.learned]
        return max(found, key=lambda e: e.learned.value if e.learned else 0.0, default=None)

    def of_full(self, entry: Entry) -> float | None:
        """What a run learned, as a share of what full fine-tuning learned at its best."""
        best = self.full.learned if self.full else None
        return entry.learned.value / best.value if entry.learned and best and best.value > 0 else None


def gather(roots: Sequence[Path]) -> Comparison:
    """Read runs, and those in folders of runs. Raises ConfigError for a folder without any, or runs of several languages."""
    found = [run for root in roots for run in _runs(root)]
    folders = [folder for k, folder in enumerate(found) if folder.resolve() not in {f.resolve() for f in found[:k]}]
    runs = [run_folder.gather(folder) for folder in folders]
    left_out = [run.root.name for run in runs if not run.bits]
    runs = [run for run in runs if run.bits]
    if other := next((run for run in runs if run.pair != runs[0].pair), None):
        raise ConfigError(
            f"{other.root.name} adds {_pair(other)}, {runs[0].root.name} {_pair(runs[0])}; runs of the same languages compare"
        )
    keys = _differing(runs)
    return Comparison([_entry(run, runs[0], keys) for run in runs], left_out)


def folder(roots: Sequence[Path]) -> Path:
    """The folder that holds all the runs."""
    common = Path(os.path.commonpath([root.resolve() for root in roots]))
    return common.parent if _is_run(common) else common


def _runs(root: Path) -> list[Path]:
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder")
    found = [root] if _is_run(root) else [path for path in sorted(root.iterdir()) if path.is_dir() and _is_run(path)]
    if not found:
        raise ConfigError(f"{root}: neither a run folder nor a folder of runs")
    return found


def _is_run(root: Path) -> bool:
    return any(root.glob(f"[0-9][0-9]-*/{MANIFEST}"))


def _entry(run: Run, first: Run, keys: Sequence[str]) -> Entry:
    new = [row for row in run.bits if run.is_new(row)]
    kept = [row for row in run.bits if not run.is_new(row)]
    learned, forgot = changes.mean(new), changes.mean(kept)
    by_language = run.task_changes()
    return Entry(
        run=run,
        settings={key: run.settings[key] for key in keys if key in run.settings},
        learned=-learned if learned else None,
        forgot=forgot,
        tasks_learned=changes.gain(by_language.get(True, [])),
        tasks_forgot=-gain if (gain := changes.gain(by_language.get(False, []))) else None,
        same_text=_passages(run) == _passages(first),
    )


def _pair(run: Run) -> str:
    return f"{run.new.code} and keeps {', '.join(language.code for language in run.originals)}"


def _passages(run: Run) -> dict[str, list[int]]:
    assert run.before, "runs without are left out"
    return {name: bits.bytes_each for name, bits in run.before.bits_per_byte.items()}


def _differing(runs: Sequence[Run]) -> list[str]:
    """Settings that have several values. Those of a method are compared among the runs of that method alone."""
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        groups: dict[str, set[str]] = {}
        for run in runs:
            if key in run.settings:
                group = run.method if ".method." in key else ""
                groups.setdefault(group, set()).add(json.dumps(run.settings[key], sort_keys=True))
        if any(len(values) > 1 for values in groups.values()):
            found.append(key)
    return found


def shown(value: Any) -> str:
    """A setting as people write it."""
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _short(key: str) -> str:
    return key.split(".")[-1]


def rows(found: Comparison) -> list[dict[str, Any]]:
    """One flat record for each run, of the same keys: what compare.csv and --json hold."""
    keys = list(dict.fromkeys(key for entry in found.entries for key in entry.settings))
    bits = list(dict.fromkeys(row.name for entry in found.entries for row in entry.run.bits))
    tasks = list(dict.fromkeys(row.name for entry in found.entries for row in entry.run.tasks))
    front = found.front
    return [_row(found, entry, keys, bits, tasks) | {"on_front": entry in front} for entry in found.entries]


def _row(found: Comparison, entry: Entry, keys: list[str], bits: list[str], tasks: list[str]) -> dict[str, Any]:
    run, cost = entry.run, entry.run.cost
    row: dict[str, Any] = {"run": run.root.name, "method": entry.method}
    row |= {key: entry.settings.get(key) for key in keys}
    for name in ("learned", "forgot", "tasks_learned", "tasks_forgot"):
        mean: Mean | None = getattr(entry, name)
        row |= {name: mean and mean.value, f"{name}_low": mean and mean.low, f"{name}_high": mean and mean.high}
    row |= {"learned_of_full": found.of_full(entry), "kl_to_base": entry.kl, "same_text": entry.same_text, **cost}
    for name in bits:
        change = next((c for c in run.bits if c.name == name), None)
        row |= {f"{name} before": change and change.before, f"{name} after": change and change.after}
    for name in tasks:
        change = next((c for c in run.tasks if c.name == name), None)
        row |= {f"{name} before": change and change.before, f"{name} after": change and change.after}
    return row


def table(found: Comparison) -> dict[str, Any]:
    """What `langext compare --json` prints."""
    return {
        "language": found.entries[0].run.new.code if found.entries else None,
        "original_languages": [c.code for c in found.entries[0].run.originals] if found.entries else [],
        "runs": rows(found),
        "front": [entry.run.root.name for entry in found.front],
        "left_out": found.left_out,
    }


def write_csv(found: Comparison, path: Path) -> None:
    """The same as a table, UTF-8."""
    records = rows(found)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
