"""Results of tasks, read from what lm-eval returns. Rule: single items are kept only where they reproduce the whole."""

from hashlib import sha256
from math import isfinite, log
from typing import Any

from langext.evaluation.scores import Metric


def of_output(output: dict[str, Any]) -> dict[str, dict[str, Metric]]:
    """Task -> metric -> result, from the output of lm-eval's `simple_evaluate` with `log_samples=True`."""
    results = {}
    for task, figures in output["results"].items():
        better = output["higher_is_better"].get(task) or {}
        results[task] = _metrics(figures, _rows(output, task), better, _shots(output, task))
    return results


def _shots(output: dict[str, Any], task: str) -> int | None:
    """Number of examples before each item. For a group, None when its tasks differ in it."""
    if task in output["samples"]:
        return output["n-shot"].get(task)
    of_members = {_shots(output, member) for member in output.get("group_subtasks", {}).get(task, [])}
    return of_members.pop() if len(of_members) == 1 else None


def _rows(output: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """The items of a task in the task's own order, or the items of all tasks in a group, one task after the other."""
    if task in output["samples"]:
        return sorted(output["samples"][task], key=lambda row: row["doc_id"])
    return [row for member in output.get("group_subtasks", {}).get(task, []) for row in _rows(output, member)]


def _metrics(
    figures: dict[str, Any], rows: list[dict[str, Any]], better: dict[str, Any], shots: int | None
) -> dict[str, Metric]:
    """Metric name -> result of one task.

    `figures` are lm-eval's values, `rows` its items; `better` says for each metric whether higher is better.
    """
    metrics = {}
    for key, value in figures.items():  # keys are "<metric>,<filter>" and "<metric>_stderr,<filter>"
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = figures.get(f"{metric}_stderr,{kind}")
        mine = [row for row in rows if row.get("filter", kind) == kind]
        several = sum(name.startswith(f"{metric},") for name in figures) > 1
        metrics[f"{metric}/{kind}" if several else metric] = Metric(
            value=float(value), stderr=float(stderr) if isinstance(stderr, int | float) and isfinite(stderr) else None,
            items=len(mine), higher_is_better=better.get(metric) is not False, shots=shots, items_hash=_hash(mine),
            **_each(metric, [row.get(metric) for row in mine], float(value)),
        )  # fmt: skip
    return metrics


def _each(metric: str, each: list[Any], value: float) -> dict[str, list[float]]:
    """The values of the single items, but only if they reproduce `value`, as their mean or as a sum over a sum of bytes.

    {} otherwise, for example for F1 or a corpus score: items of such a metric cannot be compared in pairs.
    """
    if each and all(isinstance(x, int | float) for x in each) and abs(sum(each) / len(each) - value) < 1e-9:
        return {"each": [float(x) for x in each]}
    if metric == "bits_per_byte" and each and all(isinstance(x, tuple | list) and len(x) == 2 for x in each):
        bits, sizes = [-x / log(2) for x, _ in each], [float(size) for _, size in each]
        if abs(sum(bits) / sum(sizes) - value) < 1e-9:
            return {"each": bits, "weight_each": sizes}
    return {}


def _hash(rows: list[dict[str, Any]]) -> str | None:
    """sha256 of all items and their prompts, examples included. Equal hashes mean that results can be compared in pairs."""
    if not rows:
        return None
    return sha256("".join(f"{row['doc_hash']} {row['prompt_hash']}\n" for row in rows).encode()).hexdigest()
