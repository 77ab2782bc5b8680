"""Run tasks with lm-eval: public ones by name, and a continuation task made from held-out text. Only this module imports it."""

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
"""Most tokens that a model sees of one item. lm-eval cuts off the beginning of a longer item."""


def check_tasks(tasks: Sequence[str], include: Path | None) -> None:
    """Raise ConfigError for tasks that lm-eval does not know, that langext does not run, or whose data cannot be loaded."""
    if not tasks:
        return
    manager = _manager(tasks, include)
    unknown = [task for task in tasks if task not in manager.task_index]
    if unknown:
        close = near(unknown[0], manager.all_tasks)
        raise ConfigError(f"tasks: lm-eval has no {unknown[0]!r}.{close} `langext tasks <language>` lists public ones")
    home: dict[str, str] = {}
    by_task = {task: _leaves(manager, task) for task in tasks}
    for task, leaf in ((task, leaf) for task, leaves in by_task.items() for leaf in leaves):
        # Results are stored by the name of the leaf, so the same leaf from two groups would overwrite itself.
        if home.setdefault(leaf.name, task) != task:
            raise ConfigError(f"tasks: {leaf.name} is in both {home[leaf.name]} and {task}; leave one of them out")
        if leaf.config.get("unsafe_code"):
            raise ConfigError(f"tasks: {leaf.name} runs programs that the model has written, which langext does not do")
        if leaf.config.keys() & {"doc_to_image", "doc_to_audio"}:
            raise ConfigError(f"tasks: {leaf.name} is not of text alone")
        if _source(leaf) is None:
            say(f"  {leaf.name}: only its own code knows where its data come from, so they are not checked now")
    benchmarks.check([source for leaves in by_task.values() for leaf in leaves if (source := _source(leaf))])


@dataclass(frozen=True)
class _Leaf:
    """A single task, not a group."""

    name: str
    config: dict[str, Any]
    recipes: tuple[Path, ...]
    """The YAML files of its groups, outermost first, and then its own."""


def _leaves(manager: Any, task: str | dict[str, Any], above: tuple[Path, ...] = ()) -> list[_Leaf]:
    """The single tasks of `task`: the task itself, or all tasks in a group or tag.

    A group's list can contain names, and also whole descriptions (dicts) of tasks or further groups.
    """
    name = task if isinstance(task, str) else task.get("group") or task.get("task")
    entry = manager.task_index.get(name)
    config = ((entry and entry.cfg) or {}) | ({} if isinstance(task, str) else task)
    recipes = (*above, entry.yaml_path) if entry and entry.yaml_path else above
    # The members of a group are in its `task` list, those of a tag in the index; a single task has its name there.
    inner = config.get("task", []) if config else sorted(entry.tags) if entry else []
    if isinstance(inner, list):
        return [leaf for member in inner if member != name for leaf in _leaves(manager, member, recipes)]
    return [_Leaf(str(name), config, recipes)]


def _source(leaf: _Leaf) -> benchmarks.Source | None:
    """Where the data of a task come from; None when only the code of the task knows."""
    path, options = leaf.config.get("dataset_path"), leaf.config.get("dataset_kwargs") or {}
    if not path:
        return None
    return benchmarks.Source(leaf.name, path, leaf.config.get("dataset_name"), options.get("data_files"))


def members(task: str, include: Path | None) -> list[str]:
    """Names of the single tasks of `task`: its own name, or the tasks in a group or tag."""
    return [leaf.name for leaf in _leaves(_manager([task], include), task)]


def files(tasks: Sequence[str], include: Path | None) -> list[Path]:
    """The files in the folder `include` that the tasks use: YAML descriptions, Python code beside them, and local data."""
    if not include:
        return []
    manager = _manager(tasks, include)
    paths: list[Path] = []
    for leaf in (leaf for task in tasks for leaf in _leaves(manager, task)):
        own = [recipe for recipe in leaf.recipes if recipe.resolve().is_relative_to(include.resolve())]
        paths += [path for recipe in own for path in (*_recipe(recipe), *sorted(recipe.parent.glob("*.py")))]
        if own and (source := _source(leaf)):
            paths += benchmarks.files(source)
    return [path for path in dict.fromkeys(path.resolve() for path in paths) if path.is_file()]


def _recipe(path: Path) -> list[Path]:
    """A task's YAML file and all files that it includes, directly or not."""
    # Not read with a YAML parser: lm-eval's files have tags such as !function, which run code.
    included = re.findall(r"""^[\s{"']*include["']?\s*:\s*["']?([^\s"',}]+)""", path.read_text(encoding="utf-8"), re.MULTILINE)
    inner = [path.parent / name for name in included]
    return [path, *(file for entry in inner if entry.is_file() for file in _recipe(entry))]


def auto_tasks(codes: Sequence[str], include: Path | None) -> list[str]:
    """The tasks that `tasks: auto` means: those of `benchmarks.benchmarks` that lm-eval has, language by language."""
    return known([name for code in codes for name in benchmarks.auto_tasks(languages.find(code))], include)


def known(names: Sequence[str], include: Path | None = None) -> list[str]:
    """The `names` that lm-eval knows as tasks, groups or tags."""
    index = _manager(names, include).task_index
    return [name for name in names if name in index]


def continuation_items(texts: Sequence[str], count: int, seed: int) -> list[dict[str, Any]]:
    """Multiple-choice items from documents: given the first half of a paragraph, which of four second halves continues it?

    The three wrong choices are second halves of other paragraphs with similar length. Returns at most `count` items
    {"query", "choices", "gold"}, fewer when there is little text. `gold` is the index of the right choice.
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
        # Twenty similar lengths to draw from: length must not give the answer away, nor the same wrong choices come every time.
        choices = [second, *dice.sample(others[:20], CHOICES - 1)]
        dice.shuffle(choices)
        items.append({"query": first, "choices": choices, "gold": choices.index(second)})
    return items


def _halves(paragraph: str) -> tuple[str, str] | None:
    """The two halves of a paragraph, cut between words; None when it is too short to tell or too long for a question."""
    words = paragraph.split()
    if not 16 <= len(words) <= 120:
        return None
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


class Harness:
    """Runs lm-eval on a live model."""

    def __init__(self, live: "LiveModel", batch_size: int | Literal["auto"]):
        with _quiet():
            from lm_eval.models.huggingface import HFLM

            lm: Any = HFLM
            length = min(live.net.config.max_position_embeddings, MAX_LENGTH)
            batch = _batch(batch_size, live.net)
            self.model = lm(pretrained=live.net, tokenizer=live.tokenizer, batch_size=batch, max_length=length)

    def items(self, name: str, items: list[dict[str, Any]]) -> dict[str, Metric]:
        """Metric name -> result of a multiple-choice task that consists of `items`."""
        with _quiet():
            from lm_eval.tasks import TaskManager

            # the task is made here, so lm-eval's own index, which takes ten seconds to read, is not needed
            return _figures(self._run(_task(name, items), TaskManager(include_defaults=False)))[name]

    def task(
        self, name: str, *, num_fewshot: int | None = None, limit: int | None = None, include: Path | None = None
    ) -> dict[str, dict[str, Metric]]:
        """Task -> metric -> result, for a task that lm-eval knows, or for a group and everything in it.

        Raises ConfigError when lm-eval fails.
        """
        manager = _manager([name], include)
        with _quiet():
            try:  # nothing but lm-eval: tasks have their own data and code, which can raise any exception
                output = self._run(name, manager, num_fewshot=num_fewshot, limit=limit)
            except Exception as error:
                raise ConfigError(f"{name}: lm-eval cannot measure it: {type(error).__name__}: {error}") from error
        return _figures(output)

    def _run(self, wanted: Any, manager: Any, **options: Any) -> dict[str, Any]:
        """The output of lm-eval for one task, with the result of every item."""
        from lm_eval import simple_evaluate

        run: Any = simple_evaluate
        output = run(model=self.model, tasks=[wanted], task_manager=manager, bootstrap_iters=1000, log_samples=True, **options)
        assert output is not None, "lm-eval returns results on rank 0, and evaluation runs as one process"
        return output


def _figures(output: dict[str, Any]) -> dict[str, dict[str, Metric]]:
    """Task -> metric -> result, from the output of lm-eval."""
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


def _batch(asked: int | Literal["auto"], net: Any) -> int | str:
    """The batch size for lm-eval. With `auto` it searches for the largest that fits a GPU; on a CPU 8 replaces the search."""
    return 8 if asked == "auto" and net.device.type == "cpu" else asked


def _task(name: str, items: list[dict[str, Any]]) -> Any:
    """An lm-eval multiple-choice task made of `items`."""
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


def _manager(tasks: Sequence[str], include: Path | None) -> Any:
    """The task manager that knows these tasks.

    lm-eval's own index takes ten seconds to read, so it is left out when `include` has all of the tasks.
    """
    with _quiet():
        from lm_eval.tasks import TaskManager

        if include:
            own = TaskManager(include_path=str(include), include_defaults=False)
            if set(tasks) <= set(own.all_tasks):
                return own
        return _index(str(include) if include else None)


@functools.cache
def _index(include: str | None) -> Any:
    """The task manager with lm-eval's own index and the tasks in `include`, read once per process."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include)


@contextlib.contextmanager
def _quiet() -> Any:
    """Hide the output of lm-eval, which draws progress bars and logs every task. Errors still come as exceptions."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("LOGLEVEL", "ERROR")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
