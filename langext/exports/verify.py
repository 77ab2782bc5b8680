"""Check that an export computes the same as the trained model.

The one rule: the export is loaded by stock transformers, in a fresh process that cannot import langext.
"""

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
from torch.nn import functional as F

from langext.architectures import precision
from langext.console import waiting, warn
from langext.errors import RunFailed
from langext.export_summary import LogitDifference
from langext.exports import reload
from langext.methods.gates import GATES
from langext.methods.residue import stacks

MAX_DIFFERENCE = 1e-3
"""Largest logit difference that passes, in standard deviations of the logits. Exact mappings measure 1e-6 to 1e-5. Both models
compute in float32, so rounding cannot explain a larger difference."""
NEAR = 2.0**-20
"""What rounding can change z = w . x - t by, as a share of sum |w_i x_i| + |t|: sums in another order, by programs whose states
differ in their last digits, and what float32 can tell apart behind a sigmoid."""
NEW_TOKENS = 16
"""Length of each greedy continuation."""
TOKENS = 256
"""Longest text that is compared."""


@dataclass
class Expected:
    """What the model in this process computes, and what an export of it must therefore compute."""

    texts: list[str]
    ids: list[list[int]]
    """Token ids of each text without special tokens, at most `TOKENS`."""
    whole: list[list[int]]
    """All token ids of each text in Unicode's composed form (NFC), with the special tokens that the tokenizer adds."""
    logits: list[Path]
    """One file for each text, with its (T, V) tensor `logits`."""
    greedy: list[list[int]]
    """The greedy continuation (token ids) of the first half of each text."""


def expect(net: Any, tokenizer: Any, texts: list[str], scratch: Path) -> Expected:
    """Return what `net` computes on these texts. The logits are written to files in `scratch`."""
    ids = encode(tokenizer, texts)
    whole = [list(tokenizer(unicodedata.normalize("NFC", text), split_special_tokens=True).input_ids) for text in texts]
    return Expected(texts, ids, whole, logits(net, ids, scratch), reload.greedy(net, ids, NEW_TOKENS))


def decided(live: Any, texts: list[str]) -> list[str]:
    """Those texts in which every gate is clearly open or clearly closed for every token; all texts if there are none.

    Within rounding of a jump (z = 0), one exact program may open a gate and another may close it, and then they differ by a
    whole block. Says how many texts are left out.
    """
    near = _near_a_jump(live.net, encode(live.tokenizer, texts))
    if all(near) or not any(near):
        return texts
    warn(f"{sum(near)} of {len(texts)} texts are not compared: a gate there is within rounding of its threshold")
    return [text for text, left_out in zip(texts, near, strict=True) if not left_out]


@torch.no_grad()
def _near_a_jump(net: Any, ids: list[list[int]]) -> list[bool]:
    """For each text: True if, for some token and gate that jumps, z = w . x - t is below `NEAR` (sum |w_i x_i| + |t|)."""
    near: list[bool] = []

    def look(router: Any, given: tuple[Tensor], z: Tensor) -> None:
        size = F.linear(given[0].float().abs(), router.weight.float().abs())
        size = size if router.bias is None else size + router.bias.float().abs()
        near[-1] |= bool((z.abs() < NEAR * size).any())

    blocks = [block for stack in stacks(net) for block in stack.values() if GATES[block.gate].jumps]
    hooks = [block.router.register_forward_hook(look) for block in blocks if block.router is not None]
    for row in ids:
        near.append(False)
        if hooks and row:
            net(input_ids=torch.tensor([row]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return near


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text without special tokens, also where it spells one, at most `TOKENS`."""
    return [tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids[:TOKENS] for text in texts]


def logits(net: Any, ids: list[list[int]], scratch: Path) -> list[Path]:
    """Write the (T, V) `logits` of each text to a file of its own in `scratch`; return the files in the same order."""
    scratch.mkdir(parents=True, exist_ok=True)
    files = []
    # To disk, because the logits of many passages can take more memory than the model itself.
    for i, logits_TV in enumerate(reload.logits(net, ids)):
        files.append(scratch / f"{i}.safetensors")
        save_file({"logits": logits_TV}, files[-1])
    return files


def difference(reference: list[Path], changed: list[Path]) -> LogitDifference:
    """Compare two models by their files of logits, one file for each text.

    Returns the largest logit difference, KL(reference || changed) in nats per token, and the standard deviation of the
    reference's logits (of the text where it is largest). All are nan where a logit is nan.
    """
    worst, std = [0.0], [0.0]
    kl, positions = 0.0, 0
    for a, b in ((_read(a), _read(b)) for a, b in zip(reference, changed, strict=True)):
        worst.append((a - b).abs().max().item())
        std.append(a.std().item())
        kl += (a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum().item()
        positions += len(a)
    return LogitDifference(
        max_abs_difference=reload.largest(worst), kl_per_token_nats=kl / positions, logit_std=reload.largest(std)
    )


def spread(expected: Expected) -> float:
    """The standard deviation of the logits, of the text where it is largest."""
    return reload.largest([_read(file).std().item() for file in expected.logits])


def _read(file: Path) -> Tensor:
    return load_file(file)["logits"]


def same(trained: list[Path], folded: list[Path]) -> None:
    """Raise RunFailed when the stock form, before its weights are rounded, does not compute what the trained model computes."""
    measured = difference(trained, folded)
    worst, limit = measured.max_abs_difference, MAX_DIFFERENCE * measured.logit_std
    if not worst <= limit:  # `worst > limit` would let nan pass
        raise RunFailed(f"the stock form differs from the trained model: a logit by {worst:.2e}, allowed is {limit:.2e}")


def prepare(scratch: Path, expected: Expected, **more: Any) -> Path:
    """Write job.json for `run` into `scratch` and return its path. It holds what is expected, and `more` keys for the script.

    Each job needs a folder of its own.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    job = scratch / "job.json"
    job.write_text(json.dumps(_wanted(expected) | more))
    return job


def _wanted(expected: Expected) -> dict[str, Any]:
    files = [str(file) for file in expected.logits]
    return {"texts": expected.texts, "ids": expected.ids, "greedy": expected.greedy, "logits": files}


def job(scratch: Path, folder: Path, expected: Expected, *, own_code: bool = False, whole: bool = True) -> Path:
    """Write the job of loading the Hugging Face folder `folder`; return the job file.

    `own_code`: the folder brings its own modeling code. `whole`: all weights are in memory in float32 at once, instead of one
    block at a time.
    """
    more = {"folder": str(folder), "remote": own_code, "new_tokens": NEW_TOKENS, "cut": TOKENS, "whole_model": whole}
    return prepare(scratch, expected, **more)


def run(jobs: list[Path], script: str = reload.__file__, python: str = sys.executable) -> list[dict[str, Any]]:
    """Run these jobs in one fresh process of the interpreter `python`; return the comparison results of each.

    Raises RunFailed when an export does not load.
    """
    scratch = jobs[0].parent
    # Side by side in one folder, so that the script can import `precision` without langext.
    for file in (script, precision.__file__):
        shutil.copy(file, scratch)
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules")}
    # -I: the process ignores PYTHONPATH, user packages and the current folder, like a machine where langext never was.
    command = [python, "-I", str(scratch / Path(script).name), *map(str, jobs)]
    with waiting("loading the export in a fresh process and comparing it"):
        done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise RunFailed(f"the export does not load in a fresh process:\n{(done.stdout + done.stderr).strip()[-2000:]}")
    # The last lines only: libraries may print before them.
    return [json.loads(line) for line in done.stdout.strip().splitlines()[-len(jobs) :]]


def compare(folder: Path, expected: Expected, *, own_code: bool = False, whole: bool = True) -> dict[str, Any]:
    """Load `folder` in a fresh process and compare it with what is expected.

    Returns the comparison results as `judged` does. Raises RunFailed when the export differs or does not load.
    """
    with tempfile.TemporaryDirectory() as scratch:
        (figures,) = run([job(Path(scratch), folder, expected, own_code=own_code, whole=whole)])
    return judged(figures)


def compare_live(live: Any, expected: Expected) -> dict[str, Any]:
    """Like `compare`, for a model that langext itself has loaded in this process (what a delta gives on its base)."""
    wanted = _wanted(expected) | {"new_tokens": NEW_TOKENS, "cut": TOKENS}
    return judged(reload.compare(live.net, live.tokenizer, wanted))


def judged(figures: dict[str, Any]) -> dict[str, Any]:
    """Add to comparison results what was allowed, and return them. Raises RunFailed when they are beyond that."""
    limit = MAX_DIFFERENCE * figures["logit_std"]
    exact = figures["max_abs_difference"] <= limit and figures["max_abs_difference_cached"] <= limit  # False for nan
    passed = exact and figures["greedy_equal"] == figures["tokenized_equal"] == figures["texts"]
    record = {
        **figures, "max_abs_allowed": limit, "compared_in": "float32", "weights": str(precision.WEIGHTS).removeprefix("torch."),
    }  # fmt: skip
    if not passed:
        raise RunFailed(f"the export differs from the trained model and was not kept: {json.dumps(record)}")
    return record


def own_texts(live: Any, count: int = 4, tokens: int = 64) -> list[str]:
    """Return `count` texts that the model writes itself, for comparisons where no other text is at hand.

    They are sampled, but with a fixed seed, so every call gives the same texts.
    """
    torch.manual_seed(0)
    known = (live.tokenizer.bos_token_id, live.tokenizer.eos_token_id)
    start = next((number for number in known if number is not None), 0)
    prompts = torch.full((count, 1), start)
    with torch.no_grad():
        # min_new_tokens: a text that ends at once would compare almost nothing.
        ids = live.net.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=tokens, min_new_tokens=tokens,
            do_sample=True, top_k=0, pad_token_id=0,
        )  # fmt: skip
    return [live.tokenizer.decode(row, skip_special_tokens=True) for row in ids[:, 1:].tolist()]
