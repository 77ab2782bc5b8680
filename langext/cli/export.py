"""What `langext export` does: find the model in a run folder, write it in another format, and print how exact it is."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from langext.artifacts import BASE, JOB, Checkpoint, Corpus, Job, Manifest, Model, Scores, finished, read_as
from langext.console import say
from langext.errors import ConfigError
from langext.exports import formats, runners, write
from langext.exports.gguf import check
from langext.models import bases


def asked(form: str, precisions: list[str] | None, pre: str | None) -> formats.GGUF:
    """The GGUF settings from the command line. Raises ConfigError for an unknown format or precision, or unused options."""
    if form not in formats.FORMATS:
        raise ConfigError(f"export format {form!r} is not known; choose {', '.join(formats.FORMATS)}")
    if len(set(precisions or [])) < len(precisions or []):
        raise ConfigError("--gguf names a precision twice")
    if form != "gguf" and (precisions or pre):
        raise ConfigError("--gguf and --gguf-pre are for --format gguf only")
    known = get_args(formats.Precision)
    for name in precisions or []:
        if name not in known:
            raise ConfigError(f"GGUF precision {name!r} is not known; choose {', '.join(known)}")
    return formats.GGUF(tuple(precisions), pre) if precisions else formats.GGUF(pre=pre)  # type: ignore[arg-type]


def step_of(checkpoint: str) -> int | None:
    """The step in --checkpoint; None for `last`. Raises ConfigError for any other text that is not a number."""
    if checkpoint == "last":
        return None
    if not re.fullmatch("[0-9]{1,12}", checkpoint):
        raise ConfigError(f"--checkpoint takes the number of a step, or last (got {checkpoint!r:.40})")
    return int(checkpoint)


def from_run(
    root: Path, out: Path, form: str, gguf: formats.GGUF | None = None, programs: Mapping[str, str] | None = None
) -> Checkpoint:
    """Export the newest trained model of a run folder to `out`. Raises ConfigError when there is none."""
    stages = finished(root)
    models = bases.trained_models(stages)
    if not models:
        raise ConfigError(f"{root}: no finished train stage here; run the pipeline first")
    return from_model(models[-1], stages, out, form, gguf, programs)


def from_checkpoint(
    root: Path,
    step: int | None,
    out: Path,
    form: str,
    gguf: formats.GGUF | None = None,
    programs: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Export the model at a checkpoint of a training that has not ended; at the newest checkpoint if `step` is None."""
    from langext.training import snapshot

    with snapshot.model(root, step) as model:
        return from_model(model, finished(root), out, form, gguf, programs)


def from_model(
    model: Model,
    stages: Sequence[tuple[Path, Manifest]],
    out: Path,
    form: str,
    gguf: formats.GGUF | None,
    programs: Mapping[str, str] | None,
) -> Checkpoint:
    """Export `model` to `out`. `stages` are the finished stages of its run, each as folder and manifest.

    `programs`: name in `runners.RUNNERS` -> the interpreter that has it; the export is compared in each.
    """
    from langext.exports import modelcard

    job = read_as(model.path / JOB, Job)
    languages = (job.language, *job.original_languages)
    corpora = [Corpus(path) for path, manifest in stages if manifest.kind == Corpus.__name__]
    corpus = corpora[-1] if corpora else None  # a run folder made from a delta has no text
    measured = [
        (Scores(path), manifest.inputs["model"])
        for path, manifest in stages
        if manifest.kind == Scores.__name__ and "model" in manifest.inputs
    ]
    of_base = [scores for scores, of in measured if of.stage == BASE]
    of_model = [scores for scores, of in measured if of.fingerprint == model.manifest.fingerprint]
    scores = [newest_last[-1] if newest_last else None for newest_last in (of_base, of_model)]
    card = modelcard.describe(model, languages, corpus, *scores)
    texts = write.verification_texts(corpus, languages) if corpus else []
    record = write.write(model, out, form, texts, card, gguf, programs)
    say(f"{out}: {record.architecture}, largest logit difference to the trained model {record.max_abs_difference:.1e}")
    for line in [*check.lines(record), *runners.lines(record.runners)]:
        say(line)
    return Checkpoint(out)
