"""Run tasks with lm-eval: public ones by name, and a continuation task made from held-out text. Only this module imports it."""

import contextlib
import functools
import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from langext import languages
from langext.architectures import families
from langext.console import Lines, say
from langext.errors import ConfigError, RunFailed, cause, machine_problem, read_text, reading
from langext.evaluation import benchmarks, metrics, task_texts
from langext.evaluation.scores import Metric
from langext.evaluation.text_alone import TextAlone
from langext.spec import near

if TYPE_CHECKING:
    from langext.methods.extended import LiveModel

MAX_LENGTH = 4096
"""Most tokens that a model sees of one item. lm-eval cuts off the beginning of a longer item."""


AN_LM_EVAL_TASK = "an lm-eval task"
HOME = Path(__file__).parents[1]
"""The folder of langext's own code."""


def check_folder(include: Path) -> None:
    """Raise ConfigError for a file in a folder of one's own tasks that is no YAML, or that names a task by anything but text.

    lm-eval would leave such a file out without a word, and take a public task of the same name. Code that the files name with
    `!function` is not run here; it runs when the task does, and only out of this folder or from what is installed.
    """
    for path in sorted(include.rglob("*.yaml")):
        config = _yaml(path)
        for key in [key for key in ("group", "task") if key in config][:1]:
            if not isinstance(config[key], str) or not config[key].strip():
                raise ConfigError(f"{path}: {key}: {task_texts.shown(config[key])} is no name; write one in quotes")


def _yaml(path: Path) -> dict[str, Any]:
    """The content of a task file, with all files that it includes. Functions are names here, and nothing is run."""
    from lm_eval.tasks.manager import load_yaml

    _recipe(path)  # refuses what must not be opened
    with reading(path, AN_LM_EVAL_TASK):
        return load_yaml(path, resolve_func=False)


def _recipe(path: Path) -> list[Path]:
    """A task's YAML file and all files that it includes, directly or not.

    Raises ConfigError for one that is not there, is no regular file, or is larger than a person writes.
    """
    from lm_eval.tasks.manager import load_yaml

    found: dict[Path, None] = {}
    named = [path]
    for place in named:  # grows while it is read
        with reading(place, AN_LM_EVAL_TASK):
            file = place.resolve()
            if file in found:
                continue
            read_text(file, AN_LM_EVAL_TASK)  # lm-eval would wait for a pipe, and take any number of bytes
            found[file] = None
            names = load_yaml(file, resolve_func=False, recursive=False).get("include") or []
            named += [file.parent / name for name in (names if isinstance(names, list) else [names])]
    return list(found)


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
        if metric := _foreign_metric(leaf):
            raise ConfigError(f"tasks: {leaf.name}: its metric {metric} is a program on the hub, which langext does not run")
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


def _foreign_metric(leaf: _Leaf) -> str:
    """A metric that lm-eval would load from the hub, where metrics are Python programs; empty if there is none.

    Raises ConfigError when the metrics of the task are no list of objects.
    """
    from lm_eval.api import metrics, registry  # noqa: F401  the metrics register themselves

    listed = leaf.config.get("metric_list")
    entries = [] if listed is None else listed
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"tasks: {leaf.name}: metric_list must be a list of objects, such as `- metric: acc`")
    if leaf.config.get("process_results"):  # then the task computes its metrics itself
        return ""
    for entry in entries:
        name = entry.get("metric")
        own = isinstance(name, str) and (name.startswith("/") or name in registry.metric_registry)  # a path: !function
        if entry.get("hf_evaluate") is True or not own:
            return name if isinstance(name, str) else task_texts.shown(name)
    return ""


def _leaves(
    manager: Any, task: str | dict[str, Any], above: tuple[Path, ...] = (), seen: set[str | int] | None = None
) -> list[_Leaf]:
    """The single tasks of `task`: the task itself, or all tasks in a group or tag, each name once.

    A group's list can contain names, and also whole descriptions (dicts) of tasks or further groups. Raises ConfigError for
    anything else in it, for a name that lm-eval does not know, and for a group that contains itself. `seen` has the names, and
    the identities of the descriptions, that came before: aliases of YAML can put one into many places, and into itself.
    """
    name = task if isinstance(task, str) else task.get("group") or task.get("task") if isinstance(task, dict) else None
    place, seen = f"{above[-1] if above else 'tasks'}: its group names", set() if seen is None else seen
    entry = manager.task_index.get(name) if isinstance(name, str) else None
    if not isinstance(name, str) or (isinstance(task, str) and entry is None):
        what = "an object without a name" if isinstance(task, dict) else task_texts.shown(task)
        raise ConfigError(f"{place} {what}, which lm-eval does not have")
    if entry and entry.yaml_path in above:
        raise ConfigError(f"{entry.yaml_path}: the group {name} contains itself")
    key = name if isinstance(task, str) else id(task)
    if key in seen:
        if isinstance(task, str):
            return []
        raise ConfigError(f"{place} the same description {task_texts.shown(name)} twice, by an alias")
    seen.add(key)
    config = ((entry and entry.cfg) or {}) | ({} if isinstance(task, str) else task)
    recipes = (*above, entry.yaml_path) if entry and entry.yaml_path else above
    # The members of a group are in its `task` list, those of a tag in the index; a single task has its name there.
    inner = config.get("task", []) if config else sorted(entry.tags) if entry else []
    if isinstance(inner, list):
        return [leaf for member in inner if member != name for leaf in _leaves(manager, member, recipes, seen)]
    return [_Leaf(name, config, recipes)]


def _source(leaf: _Leaf) -> benchmarks.Source | None:
    """Where the data of a task come from; None when only the code of the task knows."""
    path, options = leaf.config.get("dataset_path"), leaf.config.get("dataset_kwargs") or {}
    if not path:
        return None
    if not (isinstance(path, str) and isinstance(options, dict)):
        raise ConfigError(f"tasks: {leaf.name}: dataset_path must be a text, and dataset_kwargs keys with values")
    name = leaf.config.get("dataset_name")
    if not (name is None or isinstance(name, str)):
        raise ConfigError(f"tasks: {leaf.name}: dataset_name must be a text (got {task_texts.shown(name)})")
    return benchmarks.Source(leaf.name, path, name, options.get("data_files"), options.get("data_dir"))


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


def items(task: str, include: Path | None) -> dict[str, list[tuple[str, ...]]]:
    """Single task of `task` -> what a model reads of each of its items. Raises ConfigError when its data cannot be loaded."""
    manager = _manager([task], include)
    with _quiet():
        try:  # nothing but lm-eval: tasks have their own data and code, which can raise any exception
            leaves = manager.load([task])["tasks"].items()
            return {name: [task_texts.of_item(leaf, doc) for doc in leaf.eval_docs] for name, leaf in leaves}
        except Exception as error:
            if _is_own(error):
                raise
            raise ConfigError(f"{task}: lm-eval cannot load it: {cause(error)}") from error


def auto_tasks(codes: Sequence[str], include: Path | None) -> list[str]:
    """The tasks that `tasks: auto` means: those of `benchmarks.benchmarks` that lm-eval has, language by language."""
    return known([name for code in codes for name in benchmarks.auto_tasks(languages.find(code))], include)


def known(names: Sequence[str], include: Path | None = None) -> list[str]:
    """The `names` that lm-eval knows as tasks, groups or tags."""
    index = _manager(names, include).task_index
    return [name for name in names if name in index]


class Harness:
    """Runs lm-eval on a live model."""

    def __init__(self, live: "LiveModel", batch_size: int | Literal["auto"]):
        with _quiet():
            from lm_eval.models.huggingface import HFLM

            lm: Any = type("Model", (TextAlone, HFLM), {})
            self.length = min(families.positions(live.net.config) or MAX_LENGTH, MAX_LENGTH)
            """Most tokens of an item. A longer query loses its beginning, and a longer choice cannot be measured."""
            sizes = {"batch_size": _batch(batch_size, live.net), "max_length": self.length}
            self.model = lm(pretrained=live.net, tokenizer=live.tokenizer, softmax_dtype="float32", **sizes)

    def items(self, name: str, items: list[dict[str, Any]]) -> dict[str, Metric]:
        """Metric name -> result of a multiple-choice task that consists of `items`."""
        with _quiet() as terminal:
            from lm_eval.tasks import TaskManager

            manager = TaskManager(include_defaults=False)  # without lm-eval's own index, which takes ten seconds to read
            return metrics.of_output(self._run(name, _task(name, items), manager, terminal))[name]

    def task(
        self, name: str, *, num_fewshot: int | None = None, limit: int | None = None, include: Path | None = None
    ) -> dict[str, dict[str, Metric]]:
        """Task -> metric -> result, for a task that lm-eval knows, or for a group and everything in it; of `limit` items each.

        Raises ConfigError when lm-eval fails, and RunFailed when the machine does.
        """
        manager = _manager([name], include)
        with _quiet() as terminal:
            try:  # nothing but lm-eval: tasks have their own data and code, which can raise any exception
                some = limit and task_texts.some(manager.load([name])["tasks"], limit)
                output = self._run(name, name, manager, terminal, num_fewshot=num_fewshot, samples=some)
            except Exception as error:
                if problem := machine_problem(error):
                    raise RunFailed(problem) from error
                if _is_own(error):
                    raise
                raise ConfigError(f"{name}: lm-eval cannot measure it: {cause(error)}") from error
        return metrics.of_output(output)

    def _run(self, name: str, wanted: Any, manager: Any, terminal: TextIO, **options: Any) -> dict[str, Any]:
        """The output of lm-eval for one task, with the result of every item. Prints lines of progress on `terminal`."""
        from lm_eval import evaluator
        from lm_eval.api import task
        from lm_eval.models import huggingface

        task.tqdm = huggingface.tqdm = functools.partial(Lines, label=f"{name}: ", file=terminal)  # of prompts, and of answers

        library: Any = evaluator
        # They describe the machine, which nobody reads here, with programs that write past `_quiet`: git, where there is none.
        library.get_git_commit_hash = library.add_env_info = lambda *_: None
        output = library.simple_evaluate(
            model=self.model, tasks=[wanted], task_manager=manager, bootstrap_iters=1000, log_samples=True, **options
        )
        assert output is not None, "lm-eval returns results on rank 0, and evaluation runs as one process"
        return output


def _is_own(error: BaseException) -> bool:
    """True when the error was raised by a line of langext, so that it is langext's mistake or langext's own message."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).is_relative_to(HOME)


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
            "target_delimiter": items[0]["gap"],
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
            ],
        }
    )


def _manager(tasks: Sequence[str], include: Path | None) -> Any:
    """The task manager that knows these tasks.

    lm-eval's own index takes ten seconds to read, so it is left out when `include` has all of the tasks.
    """
    if include:
        check_folder(include)  # lm-eval opens everything in it
    with _quiet():
        from lm_eval.tasks import TaskManager

        if include:
            with reading(include, "a folder of lm-eval tasks"):
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
def _quiet() -> Iterator[TextIO]:
    """Hide the output of lm-eval, which logs every task, and give what it is hidden from. Errors still come as exceptions."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("LOGLEVEL", "ERROR")
    terminal = sys.stdout
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield terminal
