"""The only importer of lm_eval: public tasks by name, and our own continuation task made from held-out text."""

import contextlib
import functools
import io
import logging
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from langext import benchmark_data, languages
from langext.scores import Metric
from langext.spec import ConfigError, near

CHOICES = 4
MAX_LENGTH = 4096
"""Tokens that lm-eval lets a model see at most; of a longer item the beginning is cut off."""


def check_tasks(tasks: Sequence[str], include: Path | None) -> None:
    """Raise ConfigError for tasks that lm-eval does not know, or whose data cannot be loaded here."""
    if not tasks:
        return
    manager = _manager(tasks, include)
    unknown = [task for task in tasks if task not in manager.task_index]
    if unknown:
        close = near(unknown[0], manager.all_tasks)
        raise ConfigError(f"tasks: lm-eval has no {unknown[0]!r}.{close} `langext tasks <language>` lists public ones")
    benchmark_data.check([source for task in tasks for source in _sources(manager, task)])


def _sources(manager: Any, task: str) -> list[benchmark_data.Source]:
    """Where the data of a task, or of all tasks of a group, come from."""
    entry = manager.task_index.get(task)
    if entry is None:
        return []
    config = entry.cfg or {}
    members = config.get("task", []) if entry.cfg else sorted(entry.tags)
    if isinstance(members, list):
        names = [member if isinstance(member, str) else member.get("task", "") for member in members]
        return [source for name in names if isinstance(name, str) and name != task for source in _sources(manager, name)]
    path, files = config.get("dataset_path"), (config.get("dataset_kwargs") or {}).get("data_files")
    return [benchmark_data.Source(task, path, config.get("dataset_name"), files, entry.yaml_path)] if path else []


def members(task: str, include: Path | None) -> list[str]:
    """The task itself, or the tasks of a group or tag."""
    return [source.task for source in _sources(_manager([task], include), task)]


def files(tasks: Sequence[str], include: Path | None) -> list[Path]:
    """The files that those tasks are made of that are in `include`: what describes them, code beside it, and their data."""
    if not include:
        return []
    manager = _manager(tasks, include)
    found: list[Path] = []
    for source in (source for task in tasks for source in _sources(manager, task)):
        if source.recipe and source.recipe.resolve().is_relative_to(include.resolve()):
            found += [*_recipe(source.recipe), *sorted(source.recipe.parent.glob("*.py")), *benchmark_data.files(source)]
    return [path for path in dict.fromkeys(path.resolve() for path in found) if path.is_file()]


def _recipe(path: Path) -> list[Path]:
    """A task's YAML file and those that it includes."""
    included = re.findall(r"""^[\s{"']*include["']?\s*:\s*["']?([^\s"',}]+)""", path.read_text(encoding="utf-8"), re.MULTILINE)
    inner = [path.parent / name for name in included]
    return [path, *(file for entry in inner if entry.is_file() for file in _recipe(entry))]


def public(codes: Sequence[str], include: Path | None) -> list[str]:
    """The tasks that `tasks: auto` stands for: those of `languages.benchmarks` that lm-eval has, language by language."""
    return known([name for code in codes for name in languages.benchmarks(languages.find(code))], include)


def known(names: Sequence[str], include: Path | None = None) -> list[str]:
    """Those of the names that lm-eval has."""
    index = _manager(names, include).task_index
    return [name for name in names if name in index]


def continuation_items(texts: Sequence[str], count: int, seed: int) -> list[dict[str, Any]]:
    """Multiple-choice items out of documents: the first half of a paragraph, and which of four second halves is its own.

    The three others are second halves of other paragraphs, of like length. At most `count` items of
    {"query", "choices", "gold"}; fewer when the documents are few.
    """
    halves = [cut for text in texts for paragraph in text.split("\n\n") if (cut := _halves(paragraph))]
    dice = random.Random(seed)
    dice.shuffle(halves)
    items = []
    for i, (first, second) in enumerate(halves[:count]):
        others = [h for j, (_, h) in enumerate(halves) if j != i and h != second]
        others.sort(key=lambda h: abs(len(h) - len(second)))
        if len(others) < CHOICES - 1:
            continue
        choices = [second, *dice.sample(others[:20], CHOICES - 1)]
        dice.shuffle(choices)
        items.append({"query": first, "choices": choices, "gold": choices.index(second)})
    return items


def _halves(paragraph: str) -> tuple[str, str] | None:
    words = paragraph.split()
    if not 16 <= len(words) <= 120:
        return None
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


def evaluate(
    live: Any, tasks: Sequence[str], own: dict[str, list[dict[str, Any]]], *, num_fewshot: int | None, limit: int | None,
    batch_size: int | Literal["auto"], include: Path | None,
) -> dict[str, dict[str, Metric]]:  # fmt: skip
    """Run tasks on a live model: figures by task and metric. `own` holds items by task name."""
    results: dict[str, dict[str, Metric]] = {}
    if not tasks and not own:
        return results
    with _quiet():
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        lm: Any = HFLM
        run: Any = simple_evaluate
        length = min(live.net.config.max_position_embeddings, MAX_LENGTH)
        model = lm(pretrained=live.net, tokenizer=live.tokenizer, batch_size=_batch(batch_size, live.net), max_length=length)
        runs: list[tuple[list[Any], Any, dict[str, Any]]] = []
        if own:  # without lm-eval's own index, which takes ten seconds to read
            runs.append(([_task(name, items) for name, items in own.items()], TaskManager(include_defaults=False), {}))
        if tasks:
            runs.append((list(tasks), _manager(tasks, include), {"num_fewshot": num_fewshot, "limit": limit}))
        for wanted, manager, options in runs:
            found = run(model=model, tasks=wanted, task_manager=manager, bootstrap_iters=1000, log_samples=True, **options)
            assert found is not None, "lm-eval returns results on rank 0, and evaluation runs as one process"
            for task, figures in found["results"].items():
                items = found["n-samples"].get(task, {}).get("effective", 0)
                better = found["higher_is_better"].get(task) or {}
                results[task] = _metrics(figures, items, found["samples"].get(task, []), better)
    return results


def _batch(asked: int | Literal["auto"], net: Any) -> int | str:
    """lm-eval finds the largest batch by running out of a GPU's memory; on a CPU there is nothing to find."""
    return 8 if asked == "auto" and net.device.type == "cpu" else asked


def _task(name: str, items: list[dict[str, Any]]) -> Any:
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    rows = Dataset.from_list(items)
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: {"test": rows},
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": "query",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
            ],
        }
    )


def _metrics(figures: dict[str, Any], items: int, rows: list[dict[str, Any]], better: dict[str, Any]) -> dict[str, Metric]:
    """lm-eval's figures of a task. `rows` are its items, `better` tells by metric whether more is better."""
    found = {}
    for key, value in figures.items():
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = figures.get(f"{metric}_stderr,{kind}")
        each = [row[metric] for row in sorted(rows, key=lambda row: row["doc_id"]) if row.get("filter", kind) == kind
                and isinstance(row.get(metric), int | float)]  # fmt: skip
        several = sum(other.startswith(f"{metric},") for other in figures) > 1
        is_mean = len(each) == items > 0 and abs(sum(each) / len(each) - value) < 1e-9
        found[f"{metric} ({kind})" if several else metric] = Metric(
            value=float(value), stderr=float(stderr) if isinstance(stderr, int | float) else float("nan"), items=items,
            higher_is_better=better.get(metric) is not False, each=[float(x) for x in each] if is_mean else None,
        )  # fmt: skip
    return found


def _manager(tasks: Sequence[str], include: Path | None) -> Any:
    """What knows these tasks; reading lm-eval's own index takes ten seconds, so not when `include` has them all."""
    with _quiet():
        from lm_eval.tasks import TaskManager

        if include:
            own = TaskManager(include_path=str(include), include_defaults=False)
            if set(tasks) <= set(own.all_tasks):
                return own
        return _index(str(include) if include else None)


@functools.cache
def _index(include: str | None) -> Any:
    """lm-eval's own index."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include)


@contextlib.contextmanager
def _quiet() -> Any:
    """lm-eval asks git for a version, draws bars and logs every task; errors still come as exceptions."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("LOGLEVEL", "ERROR")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
