"""What a run has changed, as figures with names, and conditions on them for scripts and CI: `original.bpb_increase > 0.5%`.

Every figure is one that should be small: `<set>.bpb_increase` (relative; negative where the model has become better), for a
set `<language>/<domain>`, a language, `new` or `original` (means over their sets); `original.worst_bpb_increase`, of the set
that lost most, be it noise; `<language>.kl` and `original.kl` (the largest), in nats per token; `<task>.<metric>_drop`, in its
own unit. While an original language has no held-out text, `original.bpb_increase` and its worst are nan: nobody has looked.
"""

import operator
import re
from collections.abc import Sequence
from math import isnan, nan
from typing import Any

from langext.evaluation import significance
from langext.evaluation.significance import Change
from langext.report.run_folder import Run
from langext.spec import ConfigError, near

COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_CONDITION = re.compile(rf"\s*(\S+)\s*(>=|<=|>|<)\s*({_NUMBER})\s*(%?)\s*", re.IGNORECASE)


def of(run: Run) -> dict[str, float]:
    """All figures of a run by name; {} before base and trained model are both measured."""
    found: dict[str, float] = {}
    groups: dict[str, list[float]] = {}
    for row in run.bits:
        code = row.name.split("/")[0]
        for name in (row.name, code, "new" if code == run.new.code else "original"):
            groups.setdefault(f"{name}.bpb_increase", []).append(row.relative)
    found |= {name: sum(values) / len(values) for name, values in groups.items()}
    if worst := significance.worst([row for row in run.bits if not run.is_new(row)]):
        found["original.worst_bpb_increase"] = worst.relative
    if run.bits and run.unmeasured:
        found |= {"original.bpb_increase": nan, "original.worst_bpb_increase": nan}
    if run.after and run.after.drift:
        found |= {f"{code}.kl": drift.kl for code, drift in run.after.drift.items()}
        found["original.kl"] = max(drift.kl for drift in run.after.drift.values())
    for row in run.tasks:
        task, metric = row.name.split(", ")
        found[f"{task}.{metric}_drop"] = -row.difference.value if row.higher_is_better else row.difference.value
    return found


def held(conditions: Sequence[str], figures: dict[str, float]) -> list[str]:
    """The conditions that are true, in words. Raises ConfigError for one that cannot be read or names no figure."""
    true = []
    for condition in conditions:
        parts = _CONDITION.fullmatch(condition)
        if parts is None:
            raise ConfigError(f"--fail-if {condition!r}: expected <figure> <operator> <number>, as in 'original.kl > 0.05'")
        name, sign, number, percent = parts.groups()
        if name not in figures:
            known = ", ".join(sorted(figures)) or "none, for base and trained model have not both been measured"
            raise ConfigError(f"--fail-if {condition!r}: no figure {name!r}.{near(name, figures)} There are: {known}")
        # what is no number has not been shown to be good
        if isnan(figures[name]) or COMPARE[sign](figures[name], float(number) / (100 if percent else 1)):
            true.append(f"{condition.strip()}: it is {'not known' if isnan(figures[name]) else f'{figures[name]:.6g}'}")
    return true


def table(run: Run) -> dict[str, Any]:
    """What `langext evaluate --json` and `langext report --json` print."""

    def row(change: Change) -> dict[str, Any]:
        difference = change.difference
        return {
            "before": change.before, "after": change.after, "difference": difference.value, "low": difference.low,
            "high": difference.high, "p": difference.p, "paired": difference.paired, "verdict": change.verdict,
        }  # fmt: skip

    return {
        "run": run.root.name,
        "language": run.new.code,
        "measured_differently": run.measured_differently,
        "original_languages": [language.code for language in run.originals],
        "bits_per_byte": {change.name: row(change) for change in run.bits},
        "tasks": {change.name: row(change) for change in run.tasks},
        "figures": of(run),
    }
