"""Text that a model writes, the same way everywhere: the most likely next token, repetitions discouraged."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from langext.data import documents

REPETITION_PENALTY = 1.1
"""https://arxiv.org/abs/1909.05858, section 4.1: small models repeat themselves without."""


@dataclass(frozen=True)
class Generated:
    """What came of a prompt, and what it took."""

    text: str
    tokens: int
    seconds: float
    peak_bytes: int | None
    """The most of a GPU's memory beyond what was held before; None on a CPU."""


def generate(net: Any, tokenizer: Any, prompt: str, most: int) -> Generated:
    """Go on from a prompt for at most so many tokens."""
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
    """Ids of at most so many tokens after a prompt; fewer when the model ends the text."""
    out_1T = net.generate(
        input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=most, do_sample=False,
        repetition_penalty=REPETITION_PENALTY, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return out_1T[0, ids_1T.shape[1] :].tolist()
