"""Reads the model at a checkpoint of a training that has not ended.

The one rule: it needs only this one process, whatever number of processes wrote the checkpoint.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from langext.artifacts import (
    CHECKPOINTS,
    JOB,
    MANIFEST,
    Job,
    Manifest,
    Model,
    fingerprint,
    link_or_copy,
    read_as,
    write_json,
)  # fmt: skip
from langext.errors import ConfigError, reading
from langext.models import loading
from langext.summaries import History, HistorySummary
from langext.training import pickles
from langext.training.checkpoints import AVERAGE, FILES, STATE, CheckpointRecord, Checkpoints, convert, damage

PREFIX = "net."
"""Prefix of the weight names in DeepSpeed's files, because training wraps the model in `Objective.net`."""


@contextmanager
def model(root: Path, step: int | None) -> Iterator[Model]:
    """A context with the model of a run folder at the checkpoint of `step`; the newest checkpoint if `step` is None.

    The model is deleted when the context ends. Training may go on and delete the checkpoint meanwhile, because the context
    holds its files by hard links. Raises ConfigError when there is no such checkpoint or when it is damaged, and RunFailed when
    it holds more than `pickles` allows.
    """
    folders = [path for path in sorted(root.glob(f"[0-9][0-9]-*/{CHECKPOINTS}")) if not (path.parent / MANIFEST).exists()]
    steps = Checkpoints(folders[-1], 1).steps() if folders else []
    if not steps:
        raise ConfigError(f"{root}: no checkpoint here; a training that has ended drops its own, so leave --checkpoint out")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ConfigError(f"--checkpoint {step}: no such step in {folders[-1]}; there are {', '.join(map(str, steps))}")
    job = read_as(folders[-1].parent / JOB, Job)
    if "model" not in job.inputs or "steps" not in job.stage:
        raise ConfigError(f"{folders[-1].parent / JOB}: is not that of a training")
    extended = Model(root / Path(job.inputs["model"].path).name)
    out = Path(tempfile.mkdtemp(dir=root, prefix=f".step-{step}-"))
    try:
        checkpoint = _held(folders[-1] / f"step-{step}", out / "checkpoint")
        trained = weights(checkpoint, loading.on_disk(extended, trained=False).learning())
        loading.save_delta(out, trained | loading.constants(extended))
        made = loading.write_record(out, loading.read_record(extended))
        write_json(out / JOB, job)
        note = f"From a checkpoint of a training that had not ended, at step {step} of {job.stage['steps']}"
        summary = HistorySummary(history=History(training=None, afterwards=[note]))
        manifest = Manifest(
            kind=Model.__name__, stage=job.stage, inputs=job.inputs, fingerprint=fingerprint([job.fingerprint, step]),
            identity=job.identity, seed=job.seed, summary=summary.model_dump(), files=[], started=time.time(), seconds=0.0,
            peak_memory_bytes=0, device="-", versions={},
        )  # fmt: skip
        write_json(out / MANIFEST, manifest)
        yield made
    finally:
        shutil.rmtree(out)


def _held(checkpoint: Path, out: Path) -> Path:
    """Hard links to the files of the checkpoint, in `out`. Raises ConfigError when it is deleted meanwhile, or is damaged."""
    try:
        shutil.copytree(checkpoint, out, copy_function=link_or_copy)
    except (shutil.Error, FileNotFoundError):
        raise ConfigError(f"{checkpoint}: dropped by the training while it was read; try again") from None
    if wrong := damage(out):
        raise ConfigError(f"{checkpoint}: {wrong}")
    pickles.check(out / STATE)
    return out


def weights(checkpoint: Path, learning: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained weights in a checkpoint: the running average if there is one, else the weights that the optimizer updates.

    `learning` has the names and shapes of the trainable weights; its values are not used.
    """
    if (checkpoint / AVERAGE).is_file():
        with reading(checkpoint / AVERAGE, "safetensors"):
            average = load_file(checkpoint / AVERAGE)
        return {name: pickles.weight(average, name, like, checkpoint) for name, like in learning.items()}
    if read_as(checkpoint / FILES, CheckpointRecord).layout.startswith("zero0"):
        saved = _read(checkpoint / STATE / "mp_rank_00_model_states.pt")["module"]
        return {name: pickles.weight(saved, f"{PREFIX}{name}", like, checkpoint) for name, like in learning.items()}
    trained = {}
    # Under ZeRO 1 to 3 each process has saved only its part; the universal form has each weight in one file.
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as scratch:
        convert(checkpoint, Path(scratch))
        for name, like in learning.items():
            path = Path(scratch) / STATE / "zero" / f"{PREFIX}{name}" / "fp32.pt"
            value = _read(path) if path.is_file() else None
            held = {name: value["param"] if isinstance(value, dict) else value}
            trained[name] = pickles.weight(held, name, like, checkpoint)
    return trained


def _read(path: Path) -> Any:
    with pickles.reading(path):
        return torch.load(path, map_location="cpu", weights_only=True)
