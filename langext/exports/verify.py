"""Is an export the model that was trained? Reloaded by stock transformers in a process that cannot import langext."""

import json
import os
import subprocess
import sys
import tempfile
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
    """What the training model computes: logits of each text (T, V) and a greedy continuation of each."""

    ids: list[list[int]]
    logits: list[Tensor]
    greedy: list[list[int]]


def expect(live: Any, texts: list[str]) -> Expected:
    """Run the training model, its weights rounded as they will be exported, in float32."""
    net = live.net.float().eval()
    ids = [live.tokenizer(text, add_special_tokens=False).input_ids[:TOKENS] for text in texts]
    with torch.no_grad():
        logits = [net(input_ids=torch.tensor([row])).logits[0].clone() for row in ids]
        greedy = [_greedy(net, row) for row in ids]
    net.to(WEIGHTS)
    return Expected(ids, logits, greedy)


def _greedy(net: Any, row: list[int]) -> list[int]:
    prompt = torch.tensor([row[: max(1, len(row) // 2)]])
    out = net.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
    )
    return out[0, prompt.shape[1] :].tolist()


def compare(folder: Path, expected: Expected, form: str) -> dict[str, Any]:
    """Reload `folder` and compare. Raises ConfigError when it differs; returns the figures otherwise."""
    with tempfile.TemporaryDirectory() as scratch:
        job = Path(scratch) / "job.json"
        save_file({str(i): t.contiguous() for i, t in enumerate(expected.logits)}, Path(scratch) / "logits.safetensors")
        job.write_text(
            json.dumps(
                {
                    "folder": str(folder),
                    "ids": expected.ids,
                    "greedy": expected.greedy,
                    "new_tokens": NEW_TOKENS,
                    "remote": form == "remote",
                }
            )
        )
        env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": os.path.join(scratch, "modules")}
        done = subprocess.run([sys.executable, "-I", reload.__file__, str(job)], capture_output=True, text=True, env=env)
        if done.returncode != 0:
            raise ConfigError(f"the export does not load in a fresh process:\n{done.stderr.strip()[-2000:]}")
        figures = json.loads(done.stdout.strip().splitlines()[-1])
    limit = MAX_DIFFERENCE * figures["logit_std"]
    passed = figures["max_abs_difference"] <= limit and figures["greedy_equal"] == figures["texts"]
    record = {**figures, "max_abs_allowed": limit, "compared_in": "float32", "weights": str(WEIGHTS).removeprefix("torch.")}
    if not passed:
        raise ConfigError(f"the export differs from the trained model and was not kept: {json.dumps(record)}")
    return record
