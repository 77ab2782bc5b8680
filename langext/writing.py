"""Text that a model writes, the same way everywhere: the most likely next token, repetitions discouraged."""

from typing import Any

import torch
from torch import Tensor

REPETITION_PENALTY = 1.1
"""https://arxiv.org/abs/1909.05858, section 4.1: small models repeat themselves without."""


@torch.no_grad()
def go_on(net: Any, tokenizer: Any, ids_1T: Tensor, most: int) -> list[int]:
    """Ids of at most so many tokens after a prompt; fewer when the model ends the text."""
    out_1T = net.generate(
        input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=most, do_sample=False,
        repetition_penalty=REPETITION_PENALTY, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return out_1T[0, ids_1T.shape[1] :].tolist()
