"""The only importer of lm_eval: public tasks by name, and our own continuation task made from held-out text."""

import contextlib
import functools
import io
import logging
import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite, log
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from langext import languages
from langext.console import say
from langext.evaluation import benchmarks
from langext.evaluation.scores import Metric
from langext.spec import ConfigError, near

if TYPE_CHECKING:
    from langext.methods.extended import LiveModel

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
    home: dict[str, str] = {}
    found = {task: _leaves(manager, task) for task in tasks}
    for task, leaf in ((task, leaf) for task, leaves in found.items() for leaf in leaves):
        if home.setdefault(leaf.name, task) != task:
            raise ConfigError(f"tasks: {leaf.name} is in both {home[leaf.name]} and {task}; leave one of them out")
        if leaf.config.get("unsafe_code"):
            raise ConfigError(f"tasks: {leaf.name} runs programs that the model has written, which langext does not do")
        if leaf.config.keys() & {"doc_to_image", "doc_to_audio"}:
            raise ConfigError(f"tasks: {leaf.name} is not of text alone")
        if _source(leaf) is None:
            say(f"  {leaf.name}: only its own code knows where its data come from, so they are not checked now")
    benchmarks.check([source for leaves in found.values() for leaf in leaves if (source := _source(leaf))])


@dataclass(frozen=True)
class _Leaf:
    """A task that is no group."""

    name: str
    config: dict[str, Any]
    recipes: tuple[Path, ...]
    """The YAML file that describes it, after those of the groups that it is in."""


def _leaves(manager: Any, task: str | dict[str, Any], above: tuple[Path, ...] = ()) -> list[_Leaf]:
    """The task itself, or all tasks of a group or tag; a group can describe a task, or another group, right in its list."""
    name = task if isinstance(task, str) else task.get("group") or task.get("task")
    entry = manager.task_index.get(name)
    config = ((entry and entry.cfg) or {}) | ({} if isinstance(task, str) else task)
    recipes = (*above, entry.yaml_path) if entry and entry.yaml_path else above
    within = config.get("task", []) if config else sorted(entry.tags) if entry else []
    if isinstance(within, list):
        return [leaf for member in within if member != name for leaf in _leaves(manager, member, recipes)]
    return [_Leaf(str(name), config, recipes)]


def _source(leaf: _Leaf) -> benchmarks.Source | None:
    """Where a task's data come from; None when only its code knows."""
    path, options = leaf.config.get("dataset_path"), leaf.config.get("dataset_kwargs") or {}
    if not path:
        return None
    return benchmarks.Source(leaf.name, path, leaf.config.get("dataset_name"), options.get("data_files"))


def members(task: str, include: Path | None) -> list[str]:
    """The task itself, or the tasks of a group or tag."""
    return [leaf.name for leaf in _leaves(_manager([task], include), task)]


def files(tasks: Sequence[str], include: Path | None) -> list[Path]:
    """The files that those tasks are made of that are in `include`: what describes them, code beside it, and their data."""
    if not include:
        return []
    manager = _manager(tasks, include)
    found: list[Path] = []
    for leaf in (leaf for task in tasks for leaf in _leaves(manager, task)):
        own = [recipe for recipe in leaf.recipes if recipe.resolve().is_relative_to(include.resolve())]
        found += [path for recipe in own for path in (*_recipe(recipe), *sorted(recipe.parent.glob("*.py")))]
        if own and (source := _source(leaf)):
            found += benchmarks.files(source)
    return [path for path in dict.fromkeys(path.resolve() for path in found) if path.is_file()]


def _recipe(path: Path) -> list[Path]:
    """A task's YAML file and those that it includes."""
    included = re.findall(r"""^[\s{"']*include["']?\s*:\s*["']?([^\s"',}]+)""", path.read_text(encoding="utf-8"), re.MULTILINE)
    inner = [path.parent / name for name in included]
    return [path, *(file for entry in inner if entry.is_file() for file in _recipe(entry))]


def public(codes: Sequence[str], include: Path | None) -> list[str]:
    """The tasks that `tasks: auto` stands for: those of `languages.benchmarks` that lm-eval has, language by language."""
    return known([name for code in codes for name in benchmarks.benchmarks(languages.find(code))], include)


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


class Harness:
    """lm-eval around a live model."""

    def __init__(self, live: "LiveModel", batch_size: int | Literal["auto"]):
        with _quiet():
            from lm_eval.models.huggingface import HFLM

            lm: Any = HFLM
            length = min(live.net.config.max_position_embeddings, MAX_LENGTH)
            batch = _batch(batch_size, live.net)
            self.model = lm(pretrained=live.net, tokenizer=live.tokenizer, batch_size=batch, max_length=length)

    def items(self, name: str, items: list[dict[str, Any]]) -> dict[str, Metric]:
        """The figures of a multiple-choice task that is made of these items."""
        with _quiet():
            from lm_eval.tasks import TaskManager

            # without lm-eval's own index, which takes ten seconds to read
            return _figures(self._run(_task(name, items), TaskManager(include_defaults=False)))[name]

    def task(
        self, name: str, *, num_fewshot: int | None = None, limit: int | None = None, include: Path | None = None
    ) -> dict[str, dict[str, Metric]]:
        """The figures of a task that lm-eval knows, or of a group and all that is in it, by task and metric.

        Raises ConfigError for what lm-eval cannot do.
        """
        manager = _manager([name], include)
        with _quiet():
            try:  # around lm-eval alone: tasks come with data and code of their own, which can raise anything
                found = self._run(name, manager, num_fewshot=num_fewshot, limit=limit)
            except Exception as error:
                raise ConfigError(f"{name}: lm-eval cannot measure it: {type(error).__name__}: {error}") from error
        return _figures(found)

    def _run(self, wanted: Any, manager: Any, **options: Any) -> dict[str, Any]:
        """What lm-eval returns."""
        from lm_eval import simple_evaluate

        run: Any = simple_evaluate
        found = run(model=self.model, tasks=[wanted], task_manager=manager, bootstrap_iters=1000, log_samples=True, **options)
        assert found is not None, "lm-eval returns results on rank 0, and evaluation runs as one process"
        return found


def _figures(found: dict[str, Any]) -> dict[str, dict[str, Metric]]:
    """All figures that lm-eval has found, by task and metric."""
    results = {}
    for task, figures in found["results"].items():
        better = found["higher_is_better"].get(task) or {}
        results[task] = _metrics(figures, _rows(found, task), better, _shots(found, task))
    return results


def _shots(found: dict[str, Any], task: str) -> int | None:
    """Examples before each item; of a group, where all its tasks have as many."""
    if task in found["samples"]:
        return found["n-shot"].get(task)
    of_members = {_shots(found, member) for member in found.get("group_subtasks", {}).get(task, [])}
    return of_members.pop() if len(of_members) == 1 else None


def _rows(found: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """The items of a task in its own order, or those of all tasks of a group, one after the other."""
    if task in found["samples"]:
        return sorted(found["samples"][task], key=lambda row: row["doc_id"])
    return [row for member in found.get("group_subtasks", {}).get(task, []) for row in _rows(found, member)]


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


def _metrics(
    figures: dict[str, Any], rows: list[dict[str, Any]], better: dict[str, Any], shots: int | None
) -> dict[str, Metric]:
    """lm-eval's figures of a task. `rows` are its items, `better` tells by metric whether more is better."""
    found = {}
    for key, value in figures.items():
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = figures.get(f"{metric}_stderr,{kind}")
        mine = [row for row in rows if row.get("filter", kind) == kind]
        several = sum(other.startswith(f"{metric},") for other in figures) > 1
        found[f"{metric}/{kind}" if several else metric] = Metric(
            value=float(value), stderr=float(stderr) if isinstance(stderr, int | float) and isfinite(stderr) else None,
            items=len(mine), higher_is_better=better.get(metric) is not False, shots=shots, items_hash=_hash(mine),
            **_each(metric, [row.get(metric) for row in mine], float(value)),
        )  # fmt: skip
    return found


def _each(metric: str, each: list[Any], value: float) -> dict[str, list[float]]:
    """The figure item by item, where the whole is their mean, or a sum of them over a sum of bytes."""
    if each and all(isinstance(x, int | float) for x in each) and abs(sum(each) / len(each) - value) < 1e-9:
        return {"each": [float(x) for x in each]}
    if metric == "bits_per_byte" and each and all(isinstance(x, tuple | list) and len(x) == 2 for x in each):
        bits, sizes = [-x / log(2) for x, _ in each], [float(size) for _, size in each]
        if abs(sum(bits) / sum(sizes) - value) < 1e-9:
            return {"each": bits, "weight_each": sizes}
    return {}


def _hash(rows: list[dict[str, Any]]) -> str | None:
    """Of the items, and of what stands before each of them."""
    if not rows:
        return None
    return sha256("".join(f"{row['doc_hash']} {row['prompt_hash']}\n" for row in rows).encode()).hexdigest()


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
