"""Let a model write text. Rule: always greedy (the most likely next token) with a repetition penalty, so results compare."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import Any

import torch
from torch import Tensor

from langext.architectures import families
from langext.data import documents
from langext.errors import ConfigError
from langext.evaluation.scores import GenerationSpeed, Sample
from langext.methods.extended import LiveModel

REPETITION_PENALTY = 1.1
"""https://arxiv.org/abs/1909.05858, section 4.1. Without it small models repeat themselves; a higher value prevents more."""


@dataclass(frozen=True)
class Generated:
    """The text written after a prompt, and what it cost."""

    text: str
    tokens: int
    seconds: float
    peak_bytes: int | None
    """Highest GPU memory during generation, minus the memory in use before it; None on a CPU."""


def fits(net: Any, tokenizer: Any, prompt: str) -> bool:
    """True when the model has positions left after the prompt."""
    return _left(net, documents.encode(tokenizer, [prompt])[0]) > 0


def refuse_long(net: Any, tokenizer: Any, prompts: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError for one of the prompts, which are by language, that leaves the model no position for a text."""
    for prompt in (prompt for texts in prompts.values() for prompt in texts):
        _room(net, prompt, documents.encode(tokenizer, [prompt])[0])


def _left(net: Any, ids: Sequence[int]) -> float:
    return (families.positions(net.config) or inf) - len(ids)


def _room(net: Any, prompt: str, ids: Sequence[int]) -> float:
    """The number of positions left after the prompt with these ids. Raises ConfigError when there is none."""
    left = _left(net, ids)
    if left < 1:
        raise ConfigError(f"prompts: {prompt[:40]!r}... has {len(ids)} tokens, and the model {len(ids) + left} positions")
    return left


def generate(net: Any, tokenizer: Any, prompt: str, most: int) -> Generated:
    """Continue a prompt by at most `most` tokens; measures time and memory.

    The text ends earlier where the model has no more positions. Raises ConfigError for a prompt that fills all of them.
    """
    device = net.get_input_embeddings().weight.device
    (row,) = documents.encode(tokenizer, [prompt])
    ids_1T, most = torch.tensor([row], device=device), int(min(most, _room(net, prompt, row)))
    held = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    started = time.monotonic()
    ids = continue_greedily(net, tokenizer, ids_1T, most)
    seconds = time.monotonic() - started
    peak = torch.cuda.max_memory_allocated(device) - held if device.type == "cuda" else None
    return Generated(tokenizer.decode(ids, skip_special_tokens=True).strip(), len(ids), seconds, peak)


@torch.no_grad()
def continue_greedily(net: Any, tokenizer: Any, ids_1T: Tensor, most: int) -> list[int]:
    """The ids of at most `most` tokens after a prompt of shape (1, T); fewer when the model ends the text."""
    out_1T = net.generate(
        input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=most, do_sample=False,
        repetition_penalty=REPETITION_PENALTY, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return out_1T[0, ids_1T.shape[1] :].tolist()


def write_samples(
    live: LiveModel, find_base: Callable[[], Any] | None, prompts: Mapping[str, Sequence[str]], most: int
) -> tuple[list[Sample], GenerationSpeed | None]:
    """Continue the prompts of each language by at most `most` tokens, and measure the speed, also beside the base.

    `find_base` gives the base as `net`, `tokenizer` and the context `as_itself()` within which `net` is the base; None if
    there is none. ([], None) without prompts. A prompt that fits the model alone, because the base needs more tokens for it,
    is not timed on the base.
    """
    every = [(code, prompt) for code, texts in prompts.items() for prompt in texts]
    if not every:
        return [], None
    base = find_base() if find_base else None

    def of_base(prompt: str, most: int) -> Generated | None:
        if base is None or not fits(base.net, base.tokenizer, prompt):
            return None
        with base.as_itself():
            return generate(base.net, base.tokenizer, prompt, most)

    generate(live.net, live.tokenizer, every[0][1], 2)  # not timed: the first call sets things up
    of_base(every[0][1], 2)
    samples, ours, ratios = [], [], []
    for number, (code, prompt) in enumerate(every):
        then = of_base(prompt, most) if number % 2 else None  # base and model take turns in going first
        now = generate(live.net, live.tokenizer, prompt, most)
        then = then or of_base(prompt, most)
        samples.append(Sample(language=code, prompt=prompt, text=now.text))
        ours.append(now)
        if then and then.tokens == now.tokens:  # equal lengths, so that the prompt has the same share of the time
            ratios.append(then.seconds / now.seconds)
    weights = sum(p.numel() * p.element_size() for p in live.net.parameters())
    peaks = [row.peak_bytes for row in ours if row.peak_bytes is not None]
    return samples, GenerationSpeed(
        tokens_per_second=median(row.tokens / row.seconds for row in ours), tokens=sum(row.tokens for row in ours),
        weights_bytes=weights, peak_bytes=weights + max(peaks) if peaks else None, device=live.net.device.type,
        of_base=ratios,
    )  # fmt: skip
