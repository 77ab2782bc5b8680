"""Named measures of what a run has changed, and conditions on them for scripts and CI, like `original.bpb_increase > 0.5%`.

The one rule: every measure is better when it is smaller, and a measure that is not known (nan) meets every condition.

- `<set>.bpb_increase`: relative increase of bits per byte, negative where the model is better than the base. <set> is
  `<language>/<domain>`, or a language, `new` or `original` for the mean over their sets.
- `original.worst_bpb_increase`: the same for the set of the original languages that lost most, even if that may be noise.
- `<language>.kl` and `original.kl` (the largest of them): KL(base || model) in nats per token. `<set>.kl`, of a set that is not
  of the run's languages; such sets count neither as `new` nor as `original`.
- `<task>.<metric>_drop`: loss in a task, in the unit of the metric.
- `certificate.<measure>`: of a run that was certified, the measures of `langext certify`, like `certificate.total.kl`.

While an original language has no held-out text, `original.bpb_increase`, `original.worst_bpb_increase` and `original.kl` are
nan. So is each increase where base and model were measured in different precision, and each drop where they were with any
other setting that differs.
"""

import operator
import re
from collections.abc import Sequence
from math import isnan, nan
from typing import Any

from langext.errors import ConfigError
from langext.evaluation import significance
from langext.evaluation.significance import Change
from langext.report import standing
from langext.report.run_folder import Run
from langext.spec import near

COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_CONDITION = re.compile(rf"\s*(\S+)\s*(>=|<=|>|<)\s*({_NUMBER})\s*(%?)\s*", re.IGNORECASE)


def measures(run: Run) -> dict[str, float]:
    """All measures of a run by name; {} until both the base and the trained model have been evaluated."""
    values: dict[str, float] = {}
    groups: dict[str, list[float]] = {}
    odd = set(run.measured_differently) - {"include_path"}  # that the items are the same is known by their hash
    for row in run.bits:
        code = row.name.split("/")[0]
        for name in (row.name, code, "new" if code == run.new.code else "original"):
            groups.setdefault(f"{name}.bpb_increase", []).append(row.relative)
    for row in run.others:
        for name in (row.name, row.name.split("/")[0]):
            groups.setdefault(f"{name}.bpb_increase", []).append(row.relative)
    values |= {name: sum(group) / len(group) for name, group in groups.items()}
    if worst := significance.worst([row for row in run.bits if not run.is_new(row)]):
        values["original.worst_bpb_increase"] = worst.relative
    if "precision" in odd:  # what rounding alone makes is no forgetting
        values = dict.fromkeys(values, nan)
    if run.bits and run.unmeasured:  # a language that nobody measured must not pass as kept
        values |= {"original.bpb_increase": nan, "original.worst_bpb_increase": nan}
    if run.model_scores and run.model_scores.kl_to_base:
        values |= {f"{code}.kl": kl.value for code, kl in run.model_scores.kl_to_base.items()}
        most = significance.farthest([language.code for language in run.originals], run.model_scores.kl_to_base)
        assert most is not None, "there is a KL"
        values["original.kl"] = most.value
    others = run.model_scores.others if run.model_scores else {}
    values |= {f"{name}.kl": other.kl_to_base.value for name, other in others.items() if other.kl_to_base}
    for row in run.tasks:
        task, _, metric = row.name.rpartition(", ")
        measure = "_".join(f"{task}.{metric}_drop".split())  # a condition has no spaces in its measure
        lost = -row.difference.value if row.higher_is_better else row.difference.value
        values[measure] = nan if odd else lost
    if found := standing.certified(run):
        values |= {f"certificate.{name}": value for name, value in found.measures().items()}
    return values


def met(conditions: Sequence[str], values: dict[str, float]) -> list[str]:
    """The conditions that are true, each in words with the value of its measure.

    Raises ConfigError for a condition that cannot be read or that names a measure that is not in `values`.
    """
    true = []
    for condition in conditions:
        parts = _CONDITION.fullmatch(condition)
        if parts is None:
            raise ConfigError(f"--fail-if {condition!r}: expected <measure> <operator> <number>, as in 'original.kl > 0.05'")
        name, sign, number, percent = parts.groups()
        if name not in values:
            known = ", ".join(sorted(values)) or "none, because base and trained model have not both been measured"
            raise ConfigError(f"--fail-if {condition!r}: no measure {name!r}.{near(name, values)} There are: {known}")
        # A measure that is not known has not been shown to be good.
        if isnan(values[name]) or COMPARE[sign](values[name], float(number) / (100 if percent else 1)):
            true.append(f"{condition.strip()}: it is {'not known' if isnan(values[name]) else f'{values[name]:.6g}'}")
    return true


def table(run: Run) -> dict[str, Any]:
    """The object that `langext scores --json` and `langext report --json` print."""

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
        "others": {change.name: {"what": run.role(change.name), **row(change)} for change in run.others},
        "tasks": {change.name: row(change) for change in run.tasks},
        "measures": measures(run),
    }
