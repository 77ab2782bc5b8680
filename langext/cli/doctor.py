"""What `langext doctor` does: show what this machine has and lacks, or explain each key of a pipeline file."""

import re
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from langext.cli import health
from langext.console import table
from langext.spec import Spec


def show(quiet: bool = False) -> int:
    """Print a line for everything that was looked at; if `quiet`, only what is wrong.

    Returns the exit code: 0, or 1 when there is a failure, with which nothing can run.
    """
    return health.tell(health.checks(), quiet)


HEADS = ("key", "type", "default", "meaning")


def fields() -> int:
    """Print every key of a pipeline file with its type, default and meaning. Returns the exit code 0."""
    for title, _, rows in parts():
        table(title, HEADS, rows)
    return 0


def parts() -> Iterator[tuple[str, str, list[tuple[str, str, str, str]]]]:
    """What a pipeline file is made of: its name, the first line about it, and a row for each of its keys, as in `HEADS`."""
    from langext.context import Runtime
    from langext.methods import AnyMethod
    from langext.methods.penalties import AnyPenalty
    from langext.pipeline.plan import Pipeline
    from langext.stages import AnyStage
    from langext.stages.filter import Source

    members = [cls for union in (AnyStage, AnyMethod, AnyPenalty) for cls in get_args(get_args(union)[0])]
    for cls in _with_parts([Pipeline, Runtime, Source, *members]):
        rows = [
            (key, _type(info.annotation), _default(info), info.description or "")
            for key, info in cls.model_fields.items()
            if key != _tag_key(cls)
        ]
        yield _tag(cls), (cls.__doc__ or "").splitlines()[0], rows


def _with_parts(classes: list[type[Spec]]) -> list[type[Spec]]:
    """Classes of a pipeline file, and what keys of them are made of that is not among them."""
    found = dict.fromkeys(classes)
    for cls in classes:
        nested = [part for info in cls.model_fields.values() for part in _specs(info.annotation)]
        found |= dict.fromkeys(_with_parts([part for part in nested if part not in found]))
    return list(found)


def _specs(annotation: Any) -> Iterator[type[Spec]]:
    """The classes of a pipeline file that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
    for arg in get_args(annotation):
        yield from _specs(arg)


def page() -> str:
    """The same as a page of the documentation, in Markdown."""
    about = (
        "What `langext doctor --fields` prints: the pipeline, stages, sources, methods and penalties, and what parts they have."
    )
    lines = [f"# Every key of a pipeline file\n\n{about}\n"]
    for title, about, rows in parts():
        cells = [" | ".join(_cell(text) for text in row) for row in (HEADS, ("---",) * len(HEADS), *rows)]
        lines.append(f"\n## {title}\n\n{_cell(about)}\n\n" + "".join(f"| {row} |\n" for row in cells))
    return "".join(lines)


def _cell(text: str) -> str:
    """Text that is nothing but text in a table of Markdown, but for what stands in backquotes."""
    plain = " ".join(text.split()).replace("|", "\\|")
    parts = plain.split("`")
    return "`".join(re.sub(r"[<*_\[{]", r"\\\g<0>", part) if not i % 2 else part for i, part in enumerate(parts))


def _tag_key(cls: Any) -> str:
    """The key that selects this class: `uses` for a stage, `name` for a method or penalty; "" for other classes."""
    return next(
        (k for k in ("uses", "name") if k in cls.model_fields and get_origin(cls.model_fields[k].annotation) is Literal), ""
    )


def _tag(cls: Any) -> str:
    key = _tag_key(cls)
    return get_args(cls.model_fields[key].annotation)[0] if key else re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


def _default(info: Any) -> str:
    if info.is_required():
        return "required"
    made = info.default_factory
    if isinstance(info.default, Spec) or (isinstance(made, type) and issubclass(made, Spec)):
        return "see its table"
    return "see meaning" if made else str(info.default)


def _type(annotation: Any) -> str:
    """An annotation in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0])
    if origin is Literal:
        return ", ".join(map(str, args))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(arg) for arg in args if arg is not NoneType))
    if origin in (list, tuple):
        return f"list of {_type(args[0])}"
    if origin is dict:
        return f"{_type(args[0])}: {_type(args[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return _tag(annotation)
    return getattr(annotation, "__name__", str(annotation)).lower()
