"""A pipeline is a list of stages. This module reads one and resolves what each stage reads, makes and is. It runs nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from langext import languages
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
from langext.context import Context
from langext.methods.base import Method
from langext.models import bases
from langext.spec import ConfigError, Spec, near
from langext.stages import AnyStage, makes, reads
from langext.stages.extend import Extend


class Pipeline(Spec):
    """The whole of a run, in one file."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Names the run folder, runs/<name>."""
    language: str
    """The language to add, FLORES-200 style (swh_Latn); sw, swh and Swahili are understood."""
    original_languages: list[str] = ["eng_Latn"]
    """The languages that the base model speaks and must not lose."""
    base_model: str
    """A hub id, a local Hugging Face folder, a .gguf file, or asset:<name>."""
    revision: str | None = None
    """Commit, tag or branch of a hub model. The commit it stood for is recorded in the run."""
    seed: int = Field(17, ge=0)
    """Start of every random draw of the run."""
    stages: list[AnyStage] = Field(min_length=1)
    """What happens, in order."""

    @field_validator("language")
    @classmethod
    def _language(cls, value: str) -> str:
        return languages.find(value).code

    @field_validator("original_languages")
    @classmethod
    def _originals(cls, value: list[str]) -> list[str]:
        found = [languages.find(code).code for code in value]
        if len(set(found)) < len(found):
            raise ValueError(f"a language is named twice: {', '.join(value)}")
        return found

    @model_validator(mode="after")
    def _distinct(self) -> "Pipeline":
        if self.language in self.original_languages:
            raise ValueError(f"language {self.language} is also in original_languages")
        return self

    def context(self, out: Path) -> Context:
        """What a stage of this pipeline may know."""
        return Context(out, self.seed, self.language, tuple(self.original_languages), base_model=self.base_model)


@dataclass(frozen=True)
class Step:
    """One planned stage: where it writes, what it reads, and its identity."""

    name: str
    stage: AnyStage
    out: Path
    inputs: dict[str, tuple[str, Path, str]]
    """Argument -> (stage name, folder, fingerprint)."""
    fingerprint: str
    identity: dict[str, Any]

    @property
    def manifest(self) -> Manifest | None:
        """What is recorded of the stage; None unless it is finished."""
        return Artifact(self.out).manifest if (self.out / MANIFEST).exists() else None

    @property
    def job(self) -> Job | None:
        """The job, if the stage was ever started."""
        return read_as(self.out / JOB, Job) if (self.out / JOB).exists() else None

    @property
    def state(self) -> str:
        """done, changed, failed, interrupted or to do."""
        if manifest := self.manifest:
            return "done" if manifest.fingerprint == self.fingerprint else "changed"
        if job := self.job:
            return "failed" if job.failed else "interrupted"
        return "to do"

    def finished(self) -> Manifest:
        """The manifest of a stage that is known to be finished."""
        manifest = self.manifest
        assert manifest is not None, f"{self.name} has not been finished"
        return manifest


def plan(pipeline: Pipeline, root: Path) -> list[Step]:
    """Resolve every stage's inputs and fingerprint. Runs nothing, downloads nothing."""
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
        found = [m for m in made if m[1] is takes.kind and pin in (None, m[0])]
        if not found and pin is None and not takes.required:
            continue
        if not found:
            have = ", ".join(f"{n} ({k.__name__})" for n, k, *_ in made)
            wanted = takes.kind.__name__ + (f" named {pin!r}" if pin else "")
            raise ConfigError(f"stage {name!r} needs {arg}: {wanted}; earlier stages offer: {have}")
        at = found[-1]
        wired[arg] = (at[0], at[2], at[3])
    return wired


def check(pipeline: Pipeline, steps: list[Step], todo: list[Step]) -> None:
    """Raise ConfigError for whatever can be seen to be wrong before hours of work: files, labels, tasks, devices.

    `steps` are all of the pipeline's, `todo` those that will run.
    """
    bases.check(pipeline.base_model)
    config = bases.config_if_here(pipeline.base_model, pipeline.revision)
    models = lineage(pipeline, steps)
    for number, step in enumerate(steps):
        try:
            given = models[step.inputs["model"][0]] if "model" in step.inputs else ()
            if given and isinstance(step.stage, Extend) and len(given) > len(models[BASE]):
                raise ConfigError(
                    f"the model has {given[-1].name} already, and a model is extended once in a pipeline. To stack a second "
                    "language, finish this run and give its folder as base_model of the next",
                    at=("method",),
                )
            if step.stage.needs_extension and step.inputs["model"][0] == BASE:
                raise ConfigError(f"the model is the untouched base; put an extend stage before {step.stage.uses}")
            step.stage.check_model(given, config)
            if step not in todo:
                continue
            if step.stage.runtime.processes > 1 and not step.stage.parallel:
                raise ConfigError(f"{step.stage.uses} runs as one process; set runtime.gpus to 0 or 1 and cpu_processes to 1")
            step.stage.runtime.check()
            step.stage.check(pipeline.context(step.out))
        except ConfigError as error:
            raise ConfigError(f"stage {step.name!r}: {error}", at=("stages", number, *error.at)) from None


def lineage(pipeline: Pipeline, steps: list[Step]) -> dict[str, tuple[Method, ...]]:
    """Stage name -> the methods that the model it makes is extended by, earlier languages first.

    Raises ConfigError when an earlier language is not among those to keep.
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
