"""The pipeline file and its plan: what each stage reads, where it writes, and its fingerprint.

The one rule: nothing here runs a stage or downloads anything.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from langext import devices, languages
from langext.artifacts import (
    BASE,
    JOB,
    MANIFEST,
    Artifact,
    Job,
    Manifest,
    Model,
    Tokenizer,
    fingerprint,
    read_as,
)
from langext.console import warn
from langext.context import Context
from langext.errors import ConfigError, Mistakes
from langext.methods import gates
from langext.methods.base import Method
from langext.models import bases
from langext.spec import Benchmarks, Spec, near
from langext.stages import AnyStage, makes, reads
from langext.stages.evaluate import Evaluate
from langext.stages.extend import Extend
from langext.stages.filter import Filter
from langext.stages.train import Train


class Pipeline(Spec):
    """A pipeline file: everything that defines a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=100)
    """Name of the run; its folder is runs/<name>."""
    language: str
    """The language to add, as a FLORES-200 code (swh_Latn); sw, swh and Swahili are understood too."""
    original_languages: list[str] = ["eng_Latn"]
    """The languages that the base model knows and must not lose; code (or zxx) is one of them. Each needs a source of text."""
    base_model: str
    """A hub id, a local Hugging Face folder, a .gguf file, or asset:<name>."""
    revision: str | None = None
    """Commit, tag or branch of a hub model. The run records the commit that was used."""
    seed: int = Field(17, ge=0, lt=2**32)
    """Seed of all random numbers in the run."""
    stages: list[AnyStage] = Field(min_length=1)
    """The stages, in the order in which they run."""

    @field_validator("language")
    @classmethod
    def _language(cls, value: str) -> str:
        return _single(value)

    @field_validator("original_languages")
    @classmethod
    def _originals(cls, value: list[str]) -> list[str]:
        codes = [languages.ZXX if languages.find(code).code == languages.ZXX else _single(code) for code in value]
        if len(set(codes)) < len(codes):
            raise ValueError(f"a language is named twice: {', '.join(value)}")
        return codes

    @model_validator(mode="after")
    def _distinct(self) -> "Pipeline":
        if self.language in self.original_languages:
            raise ValueError(f"language {self.language} is also in original_languages")
        piped = [stage.name or stage.uses for stage in self.stages if isinstance(stage, Filter) and stage.piped]
        if len(piped) > 1:
            raise ValueError(f"stages {' and '.join(piped)} read standard input (path: -), which comes only once")
        return self

    def context(self, out: Path) -> Context:
        """What a stage of this pipeline may know, if it writes into `out`."""
        return Context(out, self.seed, self.language, tuple(self.original_languages), base_model=self.base_model)

    def benchmarks(self) -> list[Benchmarks]:
        """What the stages evaluate measure. May ask lm-eval which tasks it has."""
        named = [stage.benchmarks(self.context(Path())) for stage in self.stages if isinstance(stage, Evaluate)]
        return [found for found in named if found.tasks]

    def tasks(self) -> set[str]:
        """The names of the lm-eval tasks among them."""
        return {task for found in self.benchmarks() for task in found.tasks}


def _single(code: str) -> str:
    language = languages.find(code)
    if not language.single:
        what = f"{language.code} ({language.name.lower()}) is no language"
        original = "original_languages and for " if language.code == languages.ZXX else ""
        raise ValueError(f"{what} to learn; it is for {original}sources with protect or measure_only")
    return language.code


@dataclass(frozen=True)
class Step:
    """One planned stage: where it writes, what it reads, and the fields that identify its result."""

    name: str
    stage: AnyStage
    out: Path
    inputs: dict[str, tuple[str, Path, str]]
    """Argument -> (stage name, folder, fingerprint)."""
    fingerprint: str
    identity: dict[str, Any]

    @property
    def manifest(self) -> Manifest | None:
        """The record of the finished stage; None if the stage is not finished."""
        return Artifact(self.out).manifest if (self.out / MANIFEST).exists() else None

    @property
    def job(self) -> Job | None:
        """The job of the stage; None if the stage was never started."""
        return read_as(self.out / JOB, Job) if (self.out / JOB).exists() else None

    @property
    def job_failure(self) -> str | None:
        """How the stage has failed, see `Job.failure`; None when it has not."""
        return self.job.failure if self.job else None

    @property
    def state(self) -> str:
        """done, changed (finished by another recipe), failed, interrupted or to do."""
        if manifest := self.manifest:
            return "done" if manifest.fingerprint == self.fingerprint else "changed"
        if job := self.job:
            return "failed" if job.failure else "interrupted"
        return "to do"

    def finished(self) -> Manifest:
        """The manifest of a stage that must be finished."""
        manifest = self.manifest
        assert manifest is not None, f"{self.name} has not been finished"
        return manifest


def plan(pipeline: Pipeline, root: Path) -> list[Step]:
    """Resolve the inputs and the fingerprint of every stage. `root` is the run folder. Runs and downloads nothing.

    Raises ConfigError when two stages have the same name, an input has no artifact, or a tokenizer is not used.
    """
    common = {"language": pipeline.language, "original_languages": pipeline.original_languages, "seed": pipeline.seed}
    base = fingerprint(bases.identity(pipeline.base_model, pipeline.revision))
    made: list[tuple[str, type[Artifact], Path, str]] = [(BASE, Model, root / BASE, base)]
    steps = []
    for number, stage in enumerate(pipeline.stages, 1):
        name = stage.name or stage.uses
        if name in {other for other, *_ in made}:
            raise ConfigError(f"two stages are named {name!r}; give one of them another `name:`")
        wired = _wire(name, stage, made)
        identity = {**common, **stage.identity(), "inputs": {arg: w[2] for arg, w in wired.items()}}
        step = Step(name, stage, root / f"{number:02d}-{name}", wired, fingerprint(identity), identity)
        steps.append(step)
        made.append((name, makes(stage), step.out, step.fingerprint))
    read = {path for step in steps for _, path, _ in step.inputs.values()}
    for number, step in enumerate(steps):
        if makes(step.stage) is Tokenizer and step.out not in read:
            raise ConfigError(
                f"stage {step.name!r}: no later stage reads its tokenizer; put it before extend", at=("stages", number)
            )
    return steps


def _wire(name: str, stage: AnyStage, made: list[tuple[str, type[Artifact], Path, str]]) -> dict[str, Any]:
    kinds = reads(stage)
    for arg in stage.inputs:
        if arg not in kinds:
            raise ConfigError(f"stage {name!r}: inputs: it reads no {arg!r}.{near(arg, kinds)} It reads: {', '.join(kinds)}.")
    wired = {}
    for arg, takes in kinds.items():
        pin = stage.inputs.get(arg)
        candidates = [m for m in made if m[1] is takes.kind and pin in (None, m[0])]
        if not candidates and pin is None and not takes.required:
            continue
        if not candidates:
            have = ", ".join(f"{n} ({k.__name__})" for n, k, *_ in made)
            wanted = takes.kind.__name__ + (f" named {pin!r}" if pin else "")
            raise ConfigError(f"stage {name!r} needs {arg}: {wanted}; earlier stages offer: {have}")
        newest = candidates[-1]
        wired[arg] = (newest[0], newest[2], newest[3])
    return wired


def check_inputs(steps: Sequence[Step], redone: Collection[Path] = ()) -> None:
    """Raise ConfigError for a finished stage that has read what is no longer there: made again, it might be something else.

    `redone` are the folders of stages that are to be done again.
    """
    names = {step.out: step.name for step in steps if not step.manifest}
    for step in steps:
        gone = next((path for _, path, _ in step.inputs.values() if path in names), None)
        if gone and step.manifest and step.out not in redone:
            raise ConfigError(
                f"stage {step.name!r} is finished, and what it has read, {gone}, is not there: put it back, or make it again "
                f"with all that depends on it: --redo {names[gone]}"
            )


def check(pipeline: Pipeline, steps: list[Step], todo: list[Step]) -> None:
    """Raise one ConfigError for all mistakes that show before the work starts: files, labels, tasks, devices.

    `steps` are all steps of the pipeline, `todo` those that will run. What is wrong with the base comes first.
    """
    mistakes = Mistakes()
    with mistakes.part():
        check_models(pipeline, steps, todo)
    at_work = [number for number, step in enumerate(steps) if step in todo]
    _add(mistakes, steps, [(number, error) for number in at_work for error in _mistakes(pipeline, steps[number], steps)])
    mistakes.end()


def _add(mistakes: Mistakes, steps: list[Step], found: Sequence[tuple[int, ConfigError]]) -> None:
    """Add mistakes of stages, each with its number; what several have in common, as GPUs that are not here, is said once."""
    said = dict[str, list[tuple[int, ConfigError]]]()
    for number, error in found:
        said.setdefault(str(error), []).append((number, error))
    for message, places in said.items():
        names = ", ".join(repr(steps[number].name) for number, _ in places)
        number, error = places[0]
        several = "s" if len(places) > 1 else ""
        mistakes.add(ConfigError(f"stage{several} {names}: {message}", at=("stages", number, *error.at)))


def check_models(pipeline: Pipeline, steps: list[Step], todo: Sequence[Step]) -> None:
    """Raise one ConfigError for all that is wrong with the base, and with what the stages in `todo` are to make of it.

    A finished stage is not judged: the base has served it, whatever a later version of langext would refuse.
    """
    mistakes = Mistakes()
    with mistakes.part():
        bases.check(pipeline.base_model)
    config = None if mistakes.found else bases.config_if_here(pipeline.base_model, pipeline.revision)
    models: dict[str, tuple[Method, ...]] = {}
    with mistakes.part():
        models = lineage(pipeline, steps)
    found: list[tuple[int, ConfigError]] = []
    for number, step in enumerate(steps if models else ()):
        if step not in todo:
            continue
        given = models[step.inputs["model"][0]] if "model" in step.inputs else ()
        try:
            _check_model(step, given, config, len(given) > len(models[BASE]))
        except ConfigError as error:
            found.append((number, error))
    _add(mistakes, steps, found)
    mistakes.end()


def _check_model(step: Step, given: tuple[Method, ...], config: Any, extended: bool) -> None:
    if given and extended and isinstance(step.stage, Extend):
        raise ConfigError(
            f"the model has {given[-1].name} already, and a model is extended once in a pipeline. To stack a second "
            "language, finish this run and give its folder as base_model of the next",
            at=("method",),
        )
    if step.stage.needs_extension and step.inputs["model"][0] == BASE:
        raise ConfigError(f"the model is the untouched base; put an extend stage before {step.stage.uses}")
    step.stage.check_model(given, config)


def _mistakes(pipeline: Pipeline, step: Step, steps: list[Step]) -> Sequence[ConfigError]:
    """What is wrong with a stage that will run, but for the model that it reads."""
    mistakes, runtime = Mistakes(), step.stage.runtime
    with mistakes.part():
        if runtime.processes > 1 and not step.stage.parallel:
            raise ConfigError(f"{step.stage.uses} runs as one process; set runtime.gpus to 0 or 1 and cpu_processes to 1")
    with mistakes.part():
        if runtime.executor != "local" and not step.stage.spreads:
            said = f"runtime.executor: {runtime.executor} is for stage filter; {step.stage.uses} runs on this machine"
            raise ConfigError(said, at=("runtime", "executor"))
        runtime.check()
        _warn_idle(step)
    with mistakes.part():
        step.stage.check(pipeline.context(step.out))
    with mistakes.part():
        _check_text(pipeline, step, steps)
    with mistakes.part():
        for method in step.stage.methods(()):
            _warn_unprotected(method, steps)
    return mistakes.found


def _check_text(pipeline: Pipeline, step: Step, steps: list[Step]) -> None:
    """Raise ConfigError when a training or a calibration asks for text that the filter stage before it does not give."""
    text = next((other.stage for other in steps if other.name == step.inputs.get("corpus", ("",))[0]), None)
    if isinstance(step.stage, Extend) and isinstance(text, Filter):  # it reads text for the calibration of gates only
        given = {source.language for source in text.sources if source.trained or source.protect}
        if not given - {pipeline.language}:
            raise ConfigError(
                "the gates are calibrated on text of the original languages, and every source of them is held out"
            )
        for code in set(pipeline.original_languages) - given:
            warn(f"no source of {code} that is not held out: the gates are not calibrated to stay closed on it")
    if isinstance(step.stage, Train) and isinstance(text, Filter):
        trained = [source.key for source in text.sources if source.trained]
        step.stage.check_text(pipeline.context(step.out), trained, [source.key for source in text.sources])


def _warn_idle(step: Step) -> None:
    """Warn of a training on the CPU of a machine with GPUs, also where torch does not see them."""
    if step.stage.parallel and not step.stage.runtime.gpus and step.stage.runtime.nodes == 1:
        if here := devices.gpus():
            key = f"{step.name}.runtime"
            warn(f"stage {step.name!r} trains on the CPU, and this machine has {here} GPU(s); --set {key}.gpus=1 takes one")
        elif why := devices.unused_gpus():
            warn(f"stage {step.name!r} trains on the CPU: {why}")


def _warn_unprotected(method: Method, steps: list[Step]) -> None:
    """Warn of every source with text to protect when the model is extended by a method that does not protect it."""
    why = "its gates are not calibrated" if gates.has(method.block_gate) else "it has no gates"
    for step in steps:
        for source in step.stage.sources if isinstance(step.stage, Filter) and method.calibration is None else []:
            if source.protect:
                warn(f"source {source.domain}: nothing keeps the model as it is on protected text with {method.name}: {why}")


def lineage(pipeline: Pipeline, steps: list[Step]) -> dict[str, tuple[Method, ...]]:
    """Stage name -> the methods that extend the model that it makes, earlier languages first.

    Raises ConfigError when the base has learnt the new language already, or has learnt one that is not an original language.
    """
    before = bases.earlier(pipeline.base_model)
    for extension in before:
        if extension.language == pipeline.language:
            raise ConfigError(f"language: {pipeline.base_model} has learnt {pipeline.language} already", at=("language",))
        if extension.language not in pipeline.original_languages:
            raise ConfigError(
                f"original_languages: {pipeline.base_model} has learnt {extension.language}, which must be kept too; add it",
                at=("original_languages",),
            )
    models = {BASE: tuple(extension.method for extension in before)}
    for number, step in enumerate(steps):
        given = models[step.inputs["model"][0]] if "model" in step.inputs else ()
        try:
            models[step.name] = step.stage.methods(given)
        except ConfigError as error:
            raise ConfigError(f"stage {step.name!r}: {error}", at=("stages", number, *error.at)) from None
    return models
