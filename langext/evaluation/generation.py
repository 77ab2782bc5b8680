"""Let a model write text. Rule: always greedy (the most likely next token) with a repetition penalty, so results compare."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from langext.data import documents

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


def generate(net: Any, tokenizer: Any, prompt: str, most: int) -> Generated:
    """Continue a prompt by at most `most` tokens; measures time and memory."""
    device = net.get_input_embeddings().weight.device
    ids_1T = torch.tensor(documents.encode(tokenizer, [prompt]), device=device)
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
