"""A script for a fresh process: load an export as a stranger would, and compare it with what is expected.

The one rule: nothing here imports langext. `verify.run` copies this file and architectures/precision.py into one folder and
runs the copy there. Shapes: T tokens, V vocabulary.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BATCH = 4
"""Texts in one forward pass."""


class _NoLangext:
    """An import hook that refuses langext, as on a machine where it was never installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("langext", "tokenizer_tools"):
            raise ImportError(f"{name} must not be needed here")
        return None


@torch.no_grad()
def logits(net: Any, ids: list[list[int]]) -> Iterator[Tensor]:
    """Yield the (T, V) logits of each text of token ids, in order."""
    for at in range(0, len(ids), BATCH):
        rows = ids[at : at + BATCH]
        longest = max(map(len, rows))
        # Padding at the end needs no mask: attention is causal, so no token of a text sees what comes after it.
        batch = net(input_ids=torch.tensor([row + [0] * (longest - len(row)) for row in rows]), use_cache=False).logits
        # clone: a slice would keep the logits of the whole batch in memory.
        yield from (logits_TV[: len(row)].clone() for logits_TV, row in zip(batch, rows, strict=True))


@torch.no_grad()
def greedy(net: Any, ids: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Continue the first half of each text greedily: at most `new_tokens` token ids, up to and with an end-of-text token.

    Only the logits decide. Settings in the model's own generation config, such as repetition penalties, are not used.
    """
    from transformers import GenerationConfig

    own, net.generation_config = net.generation_config, GenerationConfig(pad_token_id=0)
    prompts = [row[: max(1, len(row) // 2)] for row in ids]
    longest = max(map(len, prompts))
    # Padding at the start, so that every prompt ends where its continuation begins.
    fill = [[0] * (longest - len(prompt)) for prompt in prompts]
    out = net.generate(
        input_ids=torch.tensor([pad + prompt for pad, prompt in zip(fill, prompts, strict=True)]),
        attention_mask=torch.tensor([pad + [1] * len(prompt) for pad, prompt in zip(fill, prompts, strict=True)]),
        max_new_tokens=new_tokens, do_sample=False,
    )  # fmt: skip
    net.generation_config = own
    stops = net.config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    rows = out[:, longest:].tolist()
    return [row[: next((i + 1 for i, token in enumerate(row) if token in stops), len(row))] for row in rows]


@torch.no_grad()
def cached(net: Any, row: list[int], half: int) -> Tensor | None:
    """(T - half, V) logits of the tokens after the first `half`, computed with a key-value cache of those first tokens.

    None for GraniteMoeHybrid in transformers 4.57, which has a cache only within `generate`.
    """
    cache = net(input_ids=torch.tensor([row[:half]]), use_cache=True).past_key_values
    if cache is None:
        return None
    return net(input_ids=torch.tensor([row[half:]]), past_key_values=cache, use_cache=True).logits[0]


def largest(values: list[float]) -> float:
    """The largest value; nan if any value is nan."""
    # Python's max() would skip a nan that is not the first value.
    return torch.tensor(values, dtype=torch.float64).max().item()


def compare(net: Any, tokenizer: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Compare what a model computes with what the job expects.

    `job`: `ids`, `texts`, `greedy` and `logits` as in `verify.Expected`, `cut` (most tokens of a text) and `new_tokens`.
    Returns the fields of `ExportSummary` that describe a comparison; logits have no unit, KL is in nats per token.
    """
    from safetensors.torch import load_file

    ids = job["ids"]
    tokenized_equal = 0
    kl = agree = tokens = 0.0
    worst, worst_log, cached_worst, std = [0.0], [0.0], [0.0], [0.0]
    for i, got in enumerate(logits(net, ids)):
        want = load_file(job["logits"][i])["logits"]
        plain = tokenizer(job["texts"][i], add_special_tokens=False, split_special_tokens=True).input_ids
        tokenized_equal += plain[: job["cut"]] == ids[i]
        half = max(1, len(ids[i]) // 2)
        # A text of one token has nothing after its first half.
        if len(ids[i]) > half and (tail := cached(net, ids[i], half)) is not None:
            cached_worst.append((tail - want[half:]).abs().max().item())
        worst.append((got - want).abs().max().item())
        log_want, log_got = want.log_softmax(-1), got.log_softmax(-1)
        worst_log.append((log_want - log_got).abs().max().item())
        kl += (log_want.exp() * (log_want - log_got)).sum().item()
        agree += (want.argmax(-1) == got.argmax(-1)).sum().item()
        tokens += len(ids[i])
        std.append(want.std().item())
    continued = greedy(net, ids, job["new_tokens"])
    return {
        "max_abs_difference": largest(worst), "max_abs_difference_cached": largest(cached_worst),
        "kl_per_token_nats": kl / tokens, "max_abs_logprob_difference": largest(worst_log), "top1_agreement": agree / tokens,
        "greedy_equal": sum(a == b for a, b in zip(continued, job["greedy"], strict=True)), "tokenized_equal": tokenized_equal,
        "texts": len(ids), "tokens": int(tokens), "logit_std": largest(std), "loads_as": type(net).__name__,
    }  # fmt: skip


def main(job_file: Path) -> None:
    """Load the export of a job, and print one line of JSON with the results of `compare`."""
    import precision  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job = json.loads(job_file.read_text(encoding="utf-8"))
    whole, trust = job["whole_model"], {"trust_remote_code": job["remote"]}
    dtype = torch.float32 if whole else precision.WEIGHTS
    net: Any = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=dtype, **trust).eval()
    # A model that does not fit into memory in float32 stays as stored; each block is widened while it runs.
    if not whole:
        precision.in_float32(precision.parts(net), whole)
    tokenizer = AutoTokenizer.from_pretrained(job["folder"], **trust)
    print(json.dumps(compare(net, tokenizer, job)), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.meta_path.insert(0, _NoLangext())  # type: ignore[arg-type]
    for argument in sys.argv[1:]:
        main(Path(argument))
