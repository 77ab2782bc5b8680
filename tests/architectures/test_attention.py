"""The backward pass of attention on a CPU, and of norms and gated units, against autograd's own in float64."""

import pytest
import torch
from torch.nn import functional as F
from toy import FAMILIES, make_base

from langext.architectures import attention, recompute


def masks(tokens):
    causal = torch.ones(2, 1, tokens, tokens, dtype=torch.bool).tril()
    packed = causal.clone()
    packed[0, :, 70:, :70] = False
    return {"causal": None, "packed": packed}


def gradients(attend, inputs, up, dtype):
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    return torch.autograd.grad(attend(*leaves), leaves, up.to(dtype))


@pytest.mark.parametrize("mask", ["causal", "packed"])
@pytest.mark.parametrize("tokens", [100, 300])
def test_gradients_of_attention(mask, tokens):
    """Exact in float64, and in bf16 not twice as far from that as PyTorch's."""
    generator = torch.Generator().manual_seed(1)
    q, k, v, up = (torch.randn(2, heads, tokens, 16, generator=generator) * 2 for heads in (6, 2, 2, 6))
    seen = masks(tokens)[mask]

    def stock(q, k, v):
        k, v = k.repeat_interleave(3, 1), v.repeat_interleave(3, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None, scale=0.25)

    def ours(q, k, v):
        return attention.attend(q, k, v, seen, 0.25)

    expected = gradients(stock, (q, k, v), up, torch.float64)
    exact = gradients(ours, (q, k, v), up, torch.float64)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(exact, expected, strict=True))
    for a, b, reference in zip(*(gradients(f, (q, k, v), up, torch.bfloat16) for f in (ours, stock)), expected, strict=True):
        assert (a.double() - reference).norm() < 2.5 * (b.double() - reference).norm() < 0.05 * reference.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_recomputes_is_the_same_model(family):
    """Forward bit for bit, gradients to rounding, of every parameter, and with attention where the family has it."""
    nets = [make_base(family, 320).float() for _ in range(2)]
    recompute.install(nets[1])
    ids = torch.randint(0, 320, (2, 24), generator=torch.Generator().manual_seed(2))
    losses = [net(input_ids=ids, labels=ids).loss for net in nets]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for (name, one), two in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, atol=1e-6 * one.grad.abs().max().clamp(min=1).item() + 1e-6), name
        assert one.grad.abs().sum() > 0


def test_attention_is_used_in_training_alone():
    nets = [make_base("llama", 320) for _ in range(2)]
    attention.install(nets[1])
    ids = torch.randint(0, 320, (2, 24), generator=torch.Generator().manual_seed(2))
    positions = torch.cat([torch.arange(10), torch.arange(14)]).expand(2, -1)
    with torch.no_grad():
        plain = [net(input_ids=ids, position_ids=positions, use_cache=False).logits for net in nets]
        assert torch.equal(*plain)
        cached = [net.generate(input_ids=ids, max_new_tokens=5, do_sample=False, pad_token_id=0) for net in nets]
        assert torch.equal(*cached)
    trained = [net(input_ids=ids, position_ids=positions, use_cache=False).logits for net in nets]
    assert torch.equal(*trained) and torch.equal(trained[1], plain[1])
    for logits in trained:
        logits.float().square().mean().backward()
    one, two = (net.model.layers[0].self_attn.k_proj.weight.grad.float() for net in nets)
    assert 0 < (one - two).norm() < 0.05 * one.norm()
