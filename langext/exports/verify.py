"""Is an export the model that was trained? Reloaded by stock transformers in a process that cannot import langext."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from langext.architectures import precision
from langext.exports import reload
from langext.spec import RunFailed
from langext.summaries import LogitDifference

MAX_DIFFERENCE = 1e-3
"""Largest logit difference that passes, in standard deviations of the logits. Exact mappings measure 1e-6 to 1e-5. Both sides
compute in float32, so that rounding is no excuse."""
NEW_TOKENS = 16
TOKENS = 256


@dataclass
class Expected:
    """What the training model computes."""

    texts: list[str]
    ids: list[list[int]]
    """Tokens of each text without special ones, cut to `TOKENS`."""
    whole: list[list[int]]
    """All tokens of each text in Unicode's composed form (NFC), with what the tokenizer puts around it."""
    logits: list[Path]
    """Files with (T, V) `logits` for each of `ids`."""
    greedy: list[list[int]]
    """What follows the first half of each of `ids`."""


def expect(net: Any, tokenizer: Any, texts: list[str], scratch: Path) -> Expected:
    """What `net` computes on these texts; the logits go to `scratch`."""
    ids = encode(tokenizer, texts)
    whole = [list(tokenizer(unicodedata.normalize("NFC", text)).input_ids) for text in texts]
    return Expected(texts, ids, whole, logits(net, ids, scratch), reload.greedy(net, ids, NEW_TOKENS))


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, cut to `TOKENS`."""
    return [tokenizer(text, add_special_tokens=False).input_ids[:TOKENS] for text in texts]


def logits(net: Any, ids: list[list[int]], scratch: Path) -> list[Path]:
    """Files in `scratch` with the (T, V) `logits` of each text: those of many passages are larger than many a model."""
    scratch.mkdir(parents=True, exist_ok=True)
    files = []
    for i, found in enumerate(reload.logits(net, ids)):
        files.append(scratch / f"{i}.safetensors")
        save_file({"logits": found}, files[-1])
    return files


def difference(one: list[Path], other: list[Path]) -> LogitDifference:
    """Largest logit difference, KL(one || other) per token in nats, and the largest standard deviation of `one`'s logits."""
    worst, std = [0.0], [0.0]
    kl, positions = 0.0, 0
    for a, b in ((_read(a), _read(b)) for a, b in zip(one, other, strict=True)):
        worst.append((a - b).abs().max().item())
        std.append(a.std().item())
        kl += (a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum().item()
        positions += len(a)
    return LogitDifference(
        max_abs_difference=reload.largest(worst), kl_per_token_nats=kl / positions, logit_std=reload.largest(std)
    )


def _read(file: Path) -> Tensor:
    return load_file(file)["logits"]


def same(trained: list[Path], folded: list[Path]) -> None:
    """Raise RunFailed when the stock form, not rounded yet, computes something else than the trained model."""
    found = difference(trained, folded)
    worst, limit = found.max_abs_difference, MAX_DIFFERENCE * found.logit_std
    if not worst <= limit:
        raise RunFailed(f"the stock form differs from the trained model: a logit by {worst:.2e}, allowed are {limit:.2e}")


def prepare(scratch: Path, expected: Expected, **more: Any) -> Path:
    """Write the job file for `run` into a folder of its own: what is expected, and what else the script reads."""
    scratch.mkdir(parents=True, exist_ok=True)
    job = scratch / "job.json"
    job.write_text(json.dumps(_wanted(expected) | more))
    return job


def _wanted(expected: Expected) -> dict[str, Any]:
    files = [str(file) for file in expected.logits]
    return {"texts": expected.texts, "ids": expected.ids, "greedy": expected.greedy, "logits": files}


def job(scratch: Path, folder: Path, expected: Expected, *, own_code: bool = False, whole: bool = True) -> Path:
    """The job of loading a Hugging Face folder, its float32 weights in memory as a whole or block by block."""
    more = {"folder": str(folder), "remote": own_code, "new_tokens": NEW_TOKENS, "cut": TOKENS, "whole_model": whole}
    return prepare(scratch, expected, **more)


def run(jobs: list[Path], script: str = reload.__file__, python: str = sys.executable) -> list[dict[str, Any]]:
    """Do these jobs in one fresh process of the interpreter `python`; the figures of each.

    Raises RunFailed when one does not load.
    """
    scratch = jobs[0].parent
    for file in (script, precision.__file__):
        shutil.copy(file, scratch)
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules")}
    command = [python, "-I", str(scratch / Path(script).name), *map(str, jobs)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise RunFailed(f"the export does not load in a fresh process:\n{(done.stdout + done.stderr).strip()[-2000:]}")
    return [json.loads(line) for line in done.stdout.strip().splitlines()[-len(jobs) :]]


def compare(folder: Path, expected: Expected, *, own_code: bool = False, whole: bool = True) -> dict[str, Any]:
    """Reload `folder` and compare. Raises RunFailed when it differs; returns the figures otherwise."""
    with tempfile.TemporaryDirectory() as scratch:
        (figures,) = run([job(Path(scratch), folder, expected, own_code=own_code, whole=whole)])
    return judged(figures)


def compare_live(live: Any, expected: Expected) -> dict[str, Any]:
    """Compare a live model of langext's own, in this process; as `compare` otherwise."""
    wanted = _wanted(expected) | {"new_tokens": NEW_TOKENS, "cut": TOKENS}
    return judged(reload.compare(live.net, live.tokenizer, wanted))


def judged(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures with what was allowed. Raises RunFailed when they are beyond that."""
    limit = MAX_DIFFERENCE * figures["logit_std"]
    exact = figures["max_abs_difference"] <= limit and figures["max_abs_difference_cached"] <= limit  # nan is not
    passed = exact and figures["greedy_equal"] == figures["tokenized_equal"] == figures["texts"]
    record = {
        **figures, "max_abs_allowed": limit, "compared_in": "float32", "weights": str(precision.WEIGHTS).removeprefix("torch."),
    }  # fmt: skip
    if not passed:
        raise RunFailed(f"the export differs from the trained model and was not kept: {json.dumps(record)}")
    return record


def own_texts(live: Any, count: int = 4, tokens: int = 64) -> list[str]:
    """Texts that the model writes itself, at random but always the same: for comparing where there is no text of others."""
    torch.manual_seed(0)
    start = live.tokenizer.bos_token_id or live.tokenizer.eos_token_id or 0
    prompts = torch.full((count, 1), start)
    with torch.no_grad():
        ids = live.net.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=tokens, min_new_tokens=tokens,
            do_sample=True, top_k=0, pad_token_id=0,
        )  # fmt: skip
    return [live.tokenizer.decode(row, skip_special_tokens=True) for row in ids[:, 1:].tolist()]
