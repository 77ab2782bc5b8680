"""A script for a fresh process of another program: load an export there, and compare it with what is expected.

The one rule: nothing here imports langext or torch; of the program's environment it needs numpy and safetensors. Shapes: T
tokens, V vocabulary.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Program = Callable[[list[int]], np.ndarray]
"""The (T, V) log-probabilities in nats that a loaded model gives for a text of T token ids; nan where it does not say."""

TOP = 512
"""Most tokens whose log-probabilities vLLM is asked for at a position: it gives each as a Python object."""


def vllm(job: dict[str, Any]) -> Program:
    """Load an export in vLLM, in float32. https://docs.vllm.ai/en/latest/api/vllm/sampling_params"""
    # Set before vLLM is imported. It must not report usage, and in a process of its own its errors would be lost.
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # gigabytes
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    config = json.loads(Path(job["folder"], "config.json").read_text("utf-8"))
    positions = config["max_position_embeddings"]
    net = LLM(
        job["folder"], dtype="float32", skip_tokenizer_init=True, enforce_eager=True, logprobs_mode="raw_logprobs",
        max_logprobs=TOP, max_num_seqs=1, max_model_len=min(positions, job["cut"] + 1), enable_prefix_caching=False,
        trust_remote_code="auto_map" in config,
    )  # fmt: skip
    size = net.llm_engine.model_config.get_vocab_size()
    top = min(TOP, size)
    asked = SamplingParams(max_tokens=1, temperature=0.0, logprobs=top, prompt_logprobs=top, detokenize=False)

    def run(ids: list[int]) -> np.ndarray:
        answer = net.generate([{"prompt_token_ids": ids}], asked, use_tqdm=False)[0]
        # Nothing comes before the first token; the distribution after the last one is that of the token generated.
        rows = [*answer.prompt_logprobs[1:], answer.outputs[0].logprobs[0]]
        out = np.full((len(rows), size), np.nan)
        for row, given in zip(out, rows, strict=True):
            row[list(given)] = [entry.logprob for entry in given.values()]
        return out

    return run


def mlx(job: dict[str, Any]) -> Program:
    """Load an export in MLX-LM, in float32. https://github.com/ml-explore/mlx-lm"""
    from mlx import core  # pyright: ignore[reportMissingImports]
    from mlx_lm.utils import load_model  # pyright: ignore[reportMissingImports]

    net, _ = load_model(Path(job["folder"]))
    net.set_dtype(core.float32)

    def run(ids: list[int]) -> np.ndarray:
        return log_softmax(np.array(net(core.array([ids]))[0]))

    return run


PROGRAMS = {"vllm": vllm, "mlx": mlx}


def log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    """(T, V) log-probabilities in float64."""
    shifted = logits_TV.astype(np.float64) - logits_TV.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def compare(program: Program, job: dict[str, Any]) -> dict[str, Any]:
    """Compare a loaded model with the job's `logits` on its `ids`. The difference is nan where the model gives no number."""
    from safetensors.numpy import load_file

    worst = []
    agree = positions = 0
    for ids, file in zip(job["ids"], job["logits"], strict=True):
        want, got = log_softmax(load_file(file)["logits"]), program(ids)
        given = ~np.isnan(got)
        worst.append(np.abs(want - got)[given].max() if given.any(-1).all() else np.nan)
        agree += int((want.argmax(-1) == np.where(given, got, -np.inf).argmax(-1)).sum())
        positions += len(ids)
    return {
        "max_abs_logprob_difference": float(np.max(worst)),
        "top1_agreement": agree / positions,
        "positions": positions,
    }


def main(job_file: Path) -> None:
    """Run the export of a job, and print one line of JSON with the results of `compare`."""
    job = json.loads(job_file.read_text(encoding="utf-8"))
    print(json.dumps(compare(PROGRAMS[job["program"]](job), job)), flush=True)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(Path(argument))
