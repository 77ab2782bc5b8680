"""The pipeline that `langext init` writes: its text, what was found, and the commands that come next."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from langext import ready
from langext.artifacts import first_problem
from langext.cli import first_look, first_settings, hub_names
from langext.cli.first_language import LID_176, model_for
from langext.cli.first_look import Base, Machine, Text
from langext.data import assets
from langext.errors import ConfigError, one_line
from langext.languages import Language
from langext.pipeline.plan import Pipeline, lineage, plan
from langext.spec import parse

NEEDED = ("python-reference", "everything-else")
"""Assets that every such pipeline reads."""


@dataclass(frozen=True)
class Asked:
    """The options of the command."""

    base: str
    revision: str | None
    language: Language
    originals: Sequence[Language]
    file: Path


@dataclass(frozen=True)
class Written:
    """A pipeline as text."""

    text: str
    found: list[str]
    """What it was made from, a line each."""
    next: list[str]
    """Commands."""
    doubts: list[str]
    """What may be a mistake in what was asked for."""


def write(asked: Asked, base: Base, text: Text | None, original: Text | None, machine: Machine) -> Written:
    """The pipeline for what was found. Raises ConfigError when the base cannot learn this language beside these."""
    budget = first_settings.budget(base, text, machine)
    placement = first_settings.placement(base, budget, machine)
    kept = original.use if original else first_look.english(base.tokenizer) if _compares(asked, base) else None
    new = text.use if text else None
    doubts = [given.doubt for given in (text, original) if given and given.doubt]
    found = [
        f"language: {asked.language.name}, {asked.language.code}",
        _of_base(base),
        _of_text(text, new, kept, original),
        _of_machine(machine),
    ]
    lid = model_for([asked.language, *asked.originals])
    documents = first_settings.documents(budget)
    file = shlex.quote(str(asked.file))
    calibrates_fully = budget.tokens >= first_settings.FULL_CALIBRATION
    filled = _template().render(
        language=asked.language, base_name=asked.base, revision=asked.revision, file=one_line(file),
        found=[*found, *(f"doubt: {doubt}" for doubt in doubts)],
        name=plain_name(asked.base, asked.language), originals=asked.originals, lid=lid,
        lid_why="small, and tells these languages well" if lid == LID_176 else "2,102 languages",
        heldout=f"{first_settings.heldout(text, documents):g}",
        heldout_why=f": about {first_settings.HELDOUT_BYTES // 1000} kB, if there is so much" if text else "",
        text=text, original_text=original, documents=documents, calibrating=400_000 if calibrates_fully else 20_000,
        workers=min(16, machine.cores or 16),
        gpus=machine.gpus, vocabulary=first_settings.vocabulary(asked.language, text, kept, budget),
        amount=first_settings.amount(text),
        extra=f"{base.size.trainable / 1e6:.1f} M parameters learn" if base.size else "of the parameters of the base",
        calibration=", original_tokens: 400000, new_tokens: 200000" if calibrates_fully else "",
        budget=budget, every=max(1, min(500, budget.steps // 8)), placement=placement,
    )  # fmt: skip
    _check(filled, asked)
    missing = [name for name in (lid.removeprefix(assets.PREFIX), *NEEDED) if not assets.here(name)]
    return Written(filled, found, [*(f"langext fetch {name}" for name in missing), *_commands(asked.file, machine)], doubts)


def _commands(path: Path, machine: Machine) -> list[str]:
    """What runs the pipeline; of several machines the first command needs none of them, and the second is one of Slurm."""
    file = shlex.quote(str(path))
    if machine.nodes == 1:
        return [f"langext plan {file}", f"langext run {file}"]
    shared = f"{file} --out /shared/runs/{shlex.quote(path.stem)}"
    size = f"--nodes={machine.nodes} --gpus-per-node={machine.gpus} --ntasks-per-node={machine.gpus}"
    script = shlex.quote(str(ready.find("slurm", "train", ".sbatch")))
    return [f"langext run {shared} --until filter", f"sbatch {size} {script} {shared}"]


def _compares(asked: Asked, base: Base) -> bool:
    return base.tokenizer is not None and asked.originals[0].code == "eng_Latn"


def plain_name(base: str, language: Language) -> str:
    """Name of a run, and of its file: the last part of the base, and the language."""
    words = f"{Path(base.removeprefix(assets.PREFIX)).name}-{language.name}".lower()
    return re.sub(r"[^a-z0-9._-]+", "-", words).strip(".-")[:100]


def _of_base(base: Base) -> str:
    if base.size is None:
        return (
            "base: the hub could not be reached, so nobody knows if there is such a base, and settings are those for 1.7 G "
            "parameters; init again with --force when it can be"
        )
    kind = base.config.model_type
    return f"base: {kind}, {base.size.base / 1e6:,.1f} M parameters, {base.config.vocab_size:,} tokens in its vocabulary"


def _of_text(text: Text | None, new: Any, kept: Any, original: Text | None) -> str:
    if text is None:
        return "text: none was given"
    size = f"text: {text.bound}{text.size_bytes / 1e6:,.1f} MB"
    if text.tokens is None or new is None:
        return size
    written = f"{size}, {text.bound}{text.tokens / 1e6:,.2f} M tokens ({new.bytes_per_token:.2f} bytes per token"
    written += f", {new.fertility:.2f} tokens per word"
    if kept is None:
        return f"{written})"
    of = "the original text" if original else "English"
    return f"{written}; {of} has {kept.bytes_per_token:.2f} and {kept.fertility:.2f})"


def _of_machine(machine: Machine) -> str:
    gpus = f"{machine.gpus} x {one_line(machine.gpu)} of {machine.gpu_bytes / 2**30:.0f} GiB" if machine.gpus else "no GPU"
    each = f"{machine.nodes} machines, each with " if machine.nodes > 1 else "machine: "
    rest = f", {machine.cores} CPU cores, {machine.memory_bytes / 2**30:.0f} GiB of memory" if machine.cores else ""
    return each + gpus + rest


def _check(text: str, asked: Asked) -> None:
    """Raise ConfigError when a run could not be made of it, as when the base has learnt the language already."""
    from pydantic import ValidationError

    try:
        spec = Pipeline.model_validate(parse(text, str(asked.file), "safe"))
    except ValidationError as error:
        raise ConfigError(first_problem(error).replace("Value error, ", "")) from None
    lineage(spec, plan(spec, Path("runs") / spec.name))


def _template() -> Any:
    env = Environment(
        loader=PackageLoader("langext", "cli"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    env.filters["one_line"] = one_line  # for comments
    env.filters["fineweb"] = hub_names.fineweb
    env.filters["wikipedia"] = hub_names.wikipedia
    env.filters["quoted"] = lambda value: json.dumps(value, ensure_ascii=False)  # JSON is YAML
    return env.get_template("pipeline.yaml.j2")
