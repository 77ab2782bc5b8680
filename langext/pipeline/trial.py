"""Two steps of a training, to know how long it takes on this machine and how much memory.

The one rule: processes, DeepSpeed and method are those of the run; only the text is not, and has no meaning. Nothing is kept.
"""

import gzip
import hashlib
import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langext.artifacts import JOB, MANIFEST, METRICS, TOKENS, Job, Manifest, read_metrics, write_json
from langext.console import duration, say
from langext.errors import ConfigError
from langext.methods.base import Method
from langext.models import bases
from langext.pipeline import plan, run
from langext.pipeline.plan import Pipeline, Step
from langext.report import run_folder
from langext.stages.train import Train
from langext.text_summaries import FilterSummary

STEPS = 3
"""Steps that are made. The first one is not counted: memory is set aside in it, and kernels are compiled."""
CALIBRATED = 1000
"""Tokens of each language that gates are calibrated on."""
LETTERS = ("abcdefghijklm", "nopqrstuvwxyz")
"""What the words of the new language, and those of all others, are made of: gates must be able to tell them apart."""
DOCUMENTS, WORDS = 150, 100
GiB = 2**30


@dataclass(frozen=True)
class Trial:
    """What was measured."""

    seconds_per_step: float
    memory: int
    """Largest memory of a process, in bytes: of a GPU where there are some."""


def measure(spec: Pipeline, step: Step, method: Method, near: Path) -> Trial:
    """Time and memory of the training `step` of a pipeline. The trial has a folder of its own beside `near` while it runs.

    Raises ConfigError when the base is not here, and what a run raises.
    """
    if bases.place_if_here(spec.base_model, spec.revision) is None:
        raise ConfigError(f"base_model: {spec.base_model} is not here, so nothing can be measured; the first run brings it")
    assert isinstance(step.stage, Train)
    rounds = step.stage.accumulate()
    beside = next(folder for folder in near.parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".trial-", dir=beside) as work:
        small = _pipeline(spec, step.stage, method, Path(work))
        steps = plan.plan(small, Path(work) / "run")
        _filtered(steps[0], spec)
        run.run(small, Path(work) / "run")
        folder = steps[-1].out
        # from the start of the training to the end of each step, in seconds
        until = [row["tokens"] / row["tokens_per_second"] for row in read_metrics(folder / METRICS) if row["kind"] == "train"]
        seconds = (until[-1] - until[0]) / (len(until) - 1)
        return Trial(seconds * rounds, run_folder.peak_memory(folder, steps[-1].finished()))


def show(spec: Pipeline, root: Path) -> None:
    """Measure every training of a pipeline and print what it takes. Raises as `measure`."""
    steps = plan.plan(spec, root)
    models = plan.lineage(spec, steps)
    for step in steps:
        if isinstance(step.stage, Train):
            found = measure(spec, step, models[step.name][-1], root)
            whole = duration(found.seconds_per_step * step.stage.steps)
            say(
                f"{step.name}: measured here: {found.seconds_per_step:.2f} s for a step, so {whole} for {step.stage.steps}, "
                f"without evaluations and checkpoints; at most {found.memory / GiB:.1f} GiB of memory in a process"
            )


def _pipeline(spec: Pipeline, train: Train, method: Method, work: Path) -> Pipeline:
    """The pipeline of the trial: text that is there already, the extension, and a few steps of one micro-batch a process."""
    unread = work / "unread.txt"  # stands for what the stage filter would read: it is finished already
    unread.touch()
    sources = [{"language": code, "path": str(unread)} for code in (spec.language, *spec.original_languages)]
    settings = train.model_dump(mode="json", exclude_unset=True, exclude={"name", "inputs"}) | {
        "steps": STEPS, "warmup_steps": 1, "batch_sequences": train.batch_sequences // train.accumulate(), "log_every": 1,
        "eval_every": STEPS, "eval_bytes": 1000, "save_every": STEPS, "keep_checkpoints": 1, "shares": {},
    }  # fmt: skip
    how: dict[str, Any] = method.model_dump(mode="json", exclude_unset=True)
    if method.calibration:
        how["calibrate"] = how.get("calibrate", {}) | {"original_tokens": CALIBRATED, "new_tokens": CALIBRATED, "min_open": 0}
    text = {"uses": "filter", "sources": sources, "lid_model": str(unread), "duplicates": "off"}
    stages = [text, {"uses": "extend", "method": how}, settings]
    return Pipeline.model_validate(spec.model_dump(mode="json", exclude_unset=True) | {"name": "trial", "stages": stages})


def _filtered(step: Step, spec: Pipeline) -> None:
    """Leave the stage filter finished, with text that has no meaning."""
    dice = random.Random(0)
    for code in (spec.language, *spec.original_languages):
        letters = LETTERS[code != spec.language]
        words = ["".join(dice.choices(letters, k=dice.randint(2, 8))) for _ in range(500)]
        for split, count in (("train", DOCUMENTS), ("valid", 20)):
            path = step.out / "documents" / split / code / "trial.jsonl.gz"
            path.parent.mkdir(parents=True)
            with gzip.open(path, "wt", encoding="utf-8") as file:
                file.writelines(_entries(words, count, dice))
    summary = FilterSummary(funnel=[], source_files=[], lid_sha256=hashlib.sha256().hexdigest())
    known: dict[str, Any] = {
        "stage": step.stage.model_dump(mode="json"), "inputs": {}, "fingerprint": step.fingerprint, "identity": step.identity,
        "seed": spec.seed,
    }  # fmt: skip
    job = Job(**known, language=spec.language, original_languages=spec.original_languages, tokens=str(step.out.parent / TOKENS))
    write_json(step.out / JOB, job)
    spent = {"started": time.time(), "seconds": 0.0, "peak_memory_bytes": 0, "device": "-", "versions": {}}
    write_json(step.out / MANIFEST, Manifest(**known, **spent, kind="Corpus", files=[], summary=summary.model_dump()))


def _entries(words: list[str], count: int, dice: random.Random) -> Iterator[str]:
    for number in range(count):
        yield json.dumps({"id": str(number), "text": " ".join(dice.choices(words, k=WORDS))}) + "\n"
