"""Attention for training in bf16 on a CPU. The forward pass stays PyTorch's own; only the backward pass is replaced.

PyTorch's flash attention for CPUs needs five times as long for the backward pass as for the forward pass, which is a third of
the whole backward pass of a small model. The backward pass here computes the attention probabilities again, one block of
queries at a time. It uses batched matrix products in the precision of the inputs, as transformers' eager attention does, and
skips the keys that come after the block. It takes half the time of flash attention; the error of its gradients is 1.6 times
that of flash attention (tests/architectures/test_attention.py).

Shapes: B batch, H query heads, K key and value heads, T tokens, D width of a head, C queries in a block, E keys up to the end
of the block.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "langext_cpu"
BLOCK_QUERIES = 128


class _CausalAttention(torch.autograd.Function):
    """Forward: O = P V with P = softmax(S), S = scale Q K^T + bias.

    Backward: dV = P^T dO, dP = dO V^T, dS = P (dP - sum P dP), dQ = scale dS K, dK = scale dS^T Q.
    """

    @staticmethod
    def forward(
        ctx: Any, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask_B1TT: Tensor | None, bias: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(q_BHTD, k_BKTD, v_BKTD, bias)
        ctx.scale, ctx.groups = scale, q_BHTD.shape[1] // k_BKTD.shape[1]
        # To save memory, the repeated keys and values are not kept: the backward pass repeats them again.
        k_BHTD, v_BHTD = (x.repeat_interleave(ctx.groups, 1) for x in (k_BKTD, v_BKTD))
        causal = mask_B1TT is None
        return F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, attn_mask=mask_B1TT, is_causal=causal, scale=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q_BHTD, k_BKTD, v_BKTD, bias = ctx.saved_tensors
        shape = q_BHTD.shape
        k_BHTD, v_BHTD = (x.repeat_interleave(ctx.groups, 1) for x in (k_BKTD, v_BKTD))
        # bmm and baddbmm take one batch dimension only, so batch and heads become one.
        q, k, v, do = (x.reshape(-1, *shape[2:]) for x in (q_BHTD, k_BHTD, v_BHTD, grads[0]))
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for at in range(0, shape[2], BLOCK_QUERIES):
            end = min(shape[2], at + BLOCK_QUERIES)  # no query of this block sees a key from `end` on
            q_C, do_C, k_E, v_E = q[:, at:end], do[:, at:end], k[:, :end], v[:, :end]
            p_CE = torch.softmax(torch.baddbmm(bias[:, at:end, :end], q_C, k_E.transpose(1, 2), alpha=ctx.scale), -1)
            dv[:, :end].baddbmm_(p_CE.transpose(1, 2), do_C)
            dp_CE = torch.bmm(do_C, v_E.transpose(1, 2))
            # PyTorch's own kernel for dS: one pass over the block instead of three element-wise operations.
            ds_CE = torch.ops.aten._softmax_backward_data(dp_CE, p_CE, -1, p_CE.dtype)
            dq[:, at:end] = torch.bmm(ds_CE, k_E).mul_(ctx.scale)
            dk[:, :end].baddbmm_(ds_CE.transpose(1, 2), q_C, alpha=ctx.scale)
        # Several query heads read the same key head, so the gradients of the repeated heads are summed.
        dk_BKTD, dv_BKTD = (x.view(*k_BKTD.shape[:2], ctx.groups, *shape[2:]).sum(2) for x in (dk, dv))
        return dq.view(shape), dk_BKTD, dv_BKTD, None, None, None


class _Bias:
    """Keeps the last additive mask, so that all layers with the same mask share one."""

    def __init__(self) -> None:
        self.mask: Any = None
        self.key: Any = None
        self.value: Any = None

    def of(self, mask_B1TT: Tensor | None, q_BHTD: Tensor) -> Tensor:
        """(B H, T, T), or (1, T, T) without a mask: zero where a query sees a key, minus infinity elsewhere."""
        batch, heads, tokens, _ = q_BHTD.shape
        key = (batch, heads, tokens, q_BHTD.dtype)
        # Masks are compared by identity: transformers hands one object to all layers, and comparing values would be slow.
        if self.value is None or mask_B1TT is not self.mask or key != self.key:
            if mask_B1TT is None:
                seen = torch.ones(1, tokens, tokens, dtype=torch.bool).tril()
            else:
                seen = mask_B1TT.expand(batch, heads, tokens, tokens).reshape(-1, tokens, tokens)
            self.value = torch.zeros(seen.shape, dtype=q_BHTD.dtype).masked_fill_(~seen, float("-inf"))
            self.mask, self.key = mask_B1TT, key
        return self.value


_bias = _Bias()


def attend(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask_B1TT: Tensor | None, scale: float) -> Tensor:
    """(B, H, T, D) output of causal attention, with gradients for queries, keys and values.

    A mask is boolean: True where a query sees a key. It must be False for every key after the query. None means that a query
    sees all keys up to its own position.
    """
    return _CausalAttention.apply(q_BHTD, k_BKTD, v_BKTD, mask_B1TT, _bias.of(mask_B1TT, q_BHTD), scale)  # type: ignore[return-value]


def _forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """(B, T, H, D) attention in the form that transformers calls: (B, H, T, D) queries, (B, K, T, D) keys and values."""
    # Everything that `attend` does not cover goes to transformers: inference, other precisions, dropout, masks of numbers.
    covered = torch.is_grad_enabled() and query.requires_grad and query.dtype == torch.bfloat16 and not more.get("dropout")
    if not covered or (attention_mask is not None and attention_mask.dtype != torch.bool):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)  # type: ignore[return-value]
    scale = more.get("scaling")
    out = attend(query, key, value, attention_mask, query.shape[-1] ** -0.5 if scale is None else scale)
    return out.transpose(1, 2).contiguous(), None


def install(net: Any) -> None:
    """Make a transformers model use this attention. It must run on a CPU and use transformers' "sdpa" attention so far."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, _forward)
    # Without a mask function of the same name, transformers would build no mask for this attention.
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    net.set_attn_implementation(NAME)
