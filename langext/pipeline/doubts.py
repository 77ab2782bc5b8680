"""What speaks against a training that could start: too little memory or disk on this machine, text that is read too often."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from langext.artifacts import read_base
from langext.data.mixture import MOST_READINGS, TOO_MANY
from langext.pipeline import launcher
from langext.pipeline.plan import Pipeline, Step
from langext.stages.train import Train
from langext.text_summaries import FilterSummary

GiB = 2**30


def of_training(train: Train, memory: float, disk: float, root: Path, new_text: int) -> Iterator[str]:
    """What speaks against it, in words: it needs so many bytes of `memory` in each process, and of `disk`.

    `root` is the run folder, `new_text` tokens of the new language to train on, as `tokens_to_learn` counts them.
    """
    here, whole = train.runtime.each, psutil.virtual_memory().total
    if not train.runtime.gpus and memory * here > whole:
        yield f"this machine has {whole / GiB:.1f} GiB of memory, and its {here} process(es) need {memory * here / GiB:.1f} GiB"
    if train.runtime.gpus and (least := launcher.gpu_memory()) and memory > least:
        yield f"a GPU of this machine has {least / GiB:.1f} GiB of memory, and each process needs {memory / GiB:.1f} GiB"
    at = next(folder for folder in (root.resolve(), *root.resolve().parents) if folder.is_dir())
    if disk > (free := shutil.disk_usage(at).free):
        yield f"{at} has {free / GiB:.1f} GiB free, and its checkpoints need {disk / GiB:.1f} GiB"
    new = train.steps * train.batch_sequences * train.sequence_length * (1 - train.original_frac)
    if new_text and new > MOST_READINGS * new_text:
        enough = max(1, round(train.steps * MOST_READINGS * new_text / new))
        times = round(new / new_text)
        yield f"it reads about {new_text:,} tokens of new text {times:,} times, and {TOO_MANY}: {enough:,} steps are enough"


def tokens_to_learn(spec: Pipeline, root: Path, steps: Sequence[Step]) -> int:
    """About how many tokens of the base there are of text in the new language to train on; 0 until stage filter has run."""
    base = read_base(root)
    found = [step.manifest.summary_as(FilterSummary) for step in steps if step.manifest]
    rows = [row for summary in found if summary for row in summary.funnel if row.language == spec.language]
    return sum(row.tokens(row.train_bytes, base.content) or 0 for row in rows if row.role == "train") if base else 0
