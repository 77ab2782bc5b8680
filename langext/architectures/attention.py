"""Attention for training in bf16 on a CPU: the forward pass is PyTorch's, the backward pass is matrix products.

PyTorch's flash attention for CPUs takes five times as long backward as forward: a third of the backward pass of a small model.
Here the probabilities are worked out again, a block of queries at a time, by batched products in the precision of the inputs
(as transformers' eager attention does), and keys that come after a block are left out. Half the time; the error of the
gradients is 1.6 times that of flash attention (tests/test_attention.py).

Shapes: B batch, H heads, K heads of keys and values, T tokens, D width of a head, C queries in a block, E keys up to its end.
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
    """O = P V, P = softmax(scale Q K^T + bias)  ->  dV = P^T dO, dS = P (dP - sum P dP) with dP = dO V^T, dQ = scale dS K,
    dK = scale dS^T Q.
    """

    @staticmethod
    def forward(
        ctx: Any, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask_B1TT: Tensor | None, bias: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(q_BHTD, k_BKTD, v_BKTD, bias)
        ctx.scale, ctx.groups = scale, q_BHTD.shape[1] // k_BKTD.shape[1]
        k_BHTD, v_BHTD = (x.repeat_interleave(ctx.groups, 1) for x in (k_BKTD, v_BKTD))
        causal = mask_B1TT is None
        return F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, attn_mask=mask_B1TT, is_causal=causal, scale=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q_BHTD, k_BKTD, v_BKTD, bias = ctx.saved_tensors
        shape = q_BHTD.shape
        k_BHTD, v_BHTD = (x.repeat_interleave(ctx.groups, 1) for x in (k_BKTD, v_BKTD))
        q, k, v, do = (x.reshape(-1, *shape[2:]) for x in (q_BHTD, k_BHTD, v_BHTD, grads[0]))
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for at in range(0, shape[2], BLOCK_QUERIES):
            end = min(shape[2], at + BLOCK_QUERIES)
            q_C, do_C, k_E, v_E = q[:, at:end], do[:, at:end], k[:, :end], v[:, :end]
            p_CE = torch.softmax(torch.baddbmm(bias[:, at:end, :end], q_C, k_E.transpose(1, 2), alpha=ctx.scale), -1)
            dv[:, :end].baddbmm_(p_CE.transpose(1, 2), do_C)
            dp_CE = torch.bmm(do_C, v_E.transpose(1, 2))
            ds_CE = torch.ops.aten._softmax_backward_data(dp_CE, p_CE, -1, p_CE.dtype)
            dq[:, at:end] = torch.bmm(ds_CE, k_E).mul_(ctx.scale)
            dk[:, :end].baddbmm_(ds_CE.transpose(1, 2), q_C, alpha=ctx.scale)
        dk_BKTD, dv_BKTD = (x.view(*k_BKTD.shape[:2], ctx.groups, *shape[2:]).sum(2) for x in (dk, dv))
        return dq.view(shape), dk_BKTD, dv_BKTD, None, None, None


class _Bias:
    """(B H or 1, T, T) zero where a query sees a key, minus infinity elsewhere; made once for all layers that share a mask."""

    def __init__(self) -> None:
        self.mask: Any = None
        self.key: Any = None
        self.value: Any = None

    def of(self, mask_B1TT: Tensor | None, q_BHTD: Tensor) -> Tensor:
        batch, heads, tokens, _ = q_BHTD.shape
        key = (batch, heads, tokens, q_BHTD.dtype)
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
    """(B, H, T, D) causal attention; a boolean mask, if given, says what a query sees and has nothing after the diagonal."""
    return _CausalAttention.apply(q_BHTD, k_BKTD, v_BKTD, mask_B1TT, _bias.of(mask_B1TT, q_BHTD), scale)  # type: ignore[return-value]


def _forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """What transformers calls: (B, H, T, D) queries, keys and values of fewer heads -> (B, T, H, D)."""
    ours = torch.is_grad_enabled() and query.requires_grad and query.dtype == torch.bfloat16 and not more.get("dropout")
    if not ours or (attention_mask is not None and attention_mask.dtype != torch.bool):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)  # type: ignore[return-value]
    scale = more.get("scaling")
    out = attend(query, key, value, attention_mask, query.shape[-1] ** -0.5 if scale is None else scale)
    return out.transpose(1, 2).contiguous(), None


def install(net: Any) -> None:
    """Let a model that computes with sdpa on a CPU train with this."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, _forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    net.set_attn_implementation(NAME)
