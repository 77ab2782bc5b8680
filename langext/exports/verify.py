"""Is an export the model that was trained? Reloaded by stock transformers in a process that cannot import langext."""

import json
import os
import subprocess
import sys
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from langext.exports import reload
from langext.spec import ConfigError

WEIGHTS = torch.bfloat16
"""Precision of exported weights. The comparison computes in float32 on both sides, so that rounding is no excuse."""
MAX_DIFFERENCE = 1e-3
"""Largest logit difference that passes, in standard deviations of the logits. Exact mappings measure 1e-6 to 1e-5."""
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
    logits: list[Tensor]
    """(T, V) for each of `ids`."""
    greedy: list[list[int]]
    """What follows the first half of each of `ids`."""


def expect(net: Any, tokenizer: Any, texts: list[str]) -> Expected:
    """What `net` computes on these texts."""
    ids = encode(tokenizer, texts)
    whole = [list(tokenizer(unicodedata.normalize("NFC", text)).input_ids) for text in texts]
    return Expected(texts, ids, whole, logits(net, ids), [greedy(net, row) for row in ids])


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, cut to `TOKENS`."""
    return [tokenizer(text, add_special_tokens=False).input_ids[:TOKENS] for text in texts]


@torch.no_grad()
def logits(net: Any, ids: list[list[int]]) -> list[Tensor]:
    """(T, V) logits of each text, as the model computes."""
    net.eval()
    return [net(input_ids=torch.tensor([row])).logits[0].clone() for row in ids]


@torch.no_grad()
def greedy(net: Any, row: list[int]) -> list[int]:
    """A greedy continuation of the first half of a text."""
    prompt = torch.tensor([row[: max(1, len(row) // 2)]])
    out = net.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
    )
    return out[0, prompt.shape[1] :].tolist()


def difference(one: list[Tensor], other: list[Tensor]) -> dict[str, float]:
    """Largest logit difference, and KL(one || other) per token in nats."""
    worst = max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))
    kl = sum((a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum().item() for a, b in zip(one, other, strict=True))
    return {"max_abs_difference": worst, "kl_per_token_nats": kl / sum(len(a) for a in one)}


def same(trained: list[Tensor], folded: list[Tensor]) -> None:
    """Raise ConfigError when the stock form, not rounded yet, computes something else than the trained model."""
    worst, limit = difference(trained, folded)["max_abs_difference"], MAX_DIFFERENCE * max(t.std().item() for t in trained)
    if not worst <= limit:
        raise ConfigError(f"the stock form differs from the trained model: a logit by {worst:.2e}, allowed are {limit:.2e}")


def prepare(scratch: Path, expected: Expected, **more: Any) -> Path:
    """Write the job file for `run` into a folder of its own: what is expected, and what else the script reads."""
    scratch.mkdir(parents=True, exist_ok=True)
    save_file({str(i): t.contiguous() for i, t in enumerate(expected.logits)}, scratch / "logits.safetensors")
    job = scratch / "job.json"
    wanted = {"texts": expected.texts, "ids": expected.ids, "greedy": expected.greedy}
    job.write_text(json.dumps(wanted | more))
    return job


def job(scratch: Path, folder: Path, expected: Expected, form: str) -> Path:
    """The job of loading a Hugging Face folder."""
    more = {"folder": str(folder), "remote": form == "remote", "new_tokens": NEW_TOKENS, "cut": TOKENS}
    return prepare(scratch, expected, **more)


def run(jobs: list[Path], script: str = reload.__file__, python: str = sys.executable) -> list[dict[str, Any]]:
    """Do these jobs in one fresh process of the interpreter `python`; the figures of each.

    Raises ConfigError when one does not load.
    """
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(jobs[0].parent / "modules")}
    done = subprocess.run([python, "-I", script, *map(str, jobs)], capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise ConfigError(f"the export does not load in a fresh process:\n{(done.stdout + done.stderr).strip()[-2000:]}")
    return [json.loads(line) for line in done.stdout.strip().splitlines()[-len(jobs) :]]


def compare(folder: Path, expected: Expected, form: str) -> dict[str, Any]:
    """Reload `folder` and compare. Raises ConfigError when it differs; returns the figures otherwise."""
    with tempfile.TemporaryDirectory() as scratch:
        (figures,) = run([job(Path(scratch), folder, expected, form)])
    limit = MAX_DIFFERENCE * figures["logit_std"]
    passed = (
        figures["max_abs_difference"] <= limit and figures["greedy_equal"] == figures["tokenized_equal"] == figures["texts"]
    )
    record = {**figures, "max_abs_allowed": limit, "compared_in": "float32", "weights": str(WEIGHTS).removeprefix("torch.")}
    if not passed:
        raise ConfigError(f"the export differs from the trained model and was not kept: {json.dumps(record)}")
    return record
