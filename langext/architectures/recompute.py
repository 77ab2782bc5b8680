"""Norms, gated activations and gate scores that save memory: the backward pass keeps only their inputs and recomputes the rest.

By default autograd keeps every intermediate tensor of a norm or an activation, several of them in float32, and reads each one
again in the backward pass. Here the backward pass is one formula. The forward pass must equal the module's own bit by bit.
Shapes: (..., D) states, (..., F) hidden units.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from langext.architectures import families


class _Norm(torch.autograd.Function):
    """RMS norm. Forward: y = s n with n = x r, r = 1 / sqrt(mean x^2 + eps), s = weight + plus.

    Backward: dx = r (s dy - n mean(s dy n)), ds = sum dy n.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, own: Callable[[Tensor], Tensor], plus: float, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.plus, ctx.eps = plus, eps
        return own(x)  # the module's own code, because the families round at different places

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        h = x.float()
        r = torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + ctx.eps)
        n = h.mul_(r) if h is not x else h * r  # float() returns x itself if x is in float32, and x must not change
        dweight = None
        if ctx.needs_input_grad[1]:
            dweight = (grads[0].float() * n).flatten(0, -2).sum(0).to(weight.dtype)
        sdy = grads[0].float() * (weight.float() + ctx.plus)
        mean = (sdy * n).mean(-1, keepdim=True)
        return sdy.sub_(n.mul_(mean)).mul_(r).to(x.dtype), dweight, None, None, None


class _Gated(torch.autograd.Function):
    """Forward: y = act(g) u. Backward: dg = act'(g) u dy, du = act(g) dy."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, u: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(g, u)
        ctx.act = act
        return act(g) * u

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        g, u = ctx.saved_tensors
        with torch.enable_grad():  # autograd gives act'(g) for any activation, so no formula for each one is needed
            again = g.detach().requires_grad_()
            a = ctx.act(again)
        (dg,) = torch.autograd.grad(a, again, grads[0] * u)
        return dg, grads[0] * a.detach(), None


class _Score(torch.autograd.Function):
    """Product of x and the rows of a weight, in float32. Only x in its own precision is kept, no copy of it in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return nn.functional.linear(x.float(), weight.float())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = (grads[0] @ weight.float()).to(x.dtype) if ctx.needs_input_grad[0] else None
        dweight = None
        if ctx.needs_input_grad[1]:
            dweight = (grads[0].flatten(0, -2).T @ x.float().flatten(0, -2)).to(weight.dtype)
        return dx, dweight


def gated(g: Tensor, u: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    """act(g) * u, (..., F) like both inputs. Keeps nothing but g and u for the backward pass."""
    return _Gated.apply(g, u, act) if torch.is_grad_enabled() else act(g) * u  # type: ignore[return-value]


def score(x: Tensor, weight: Tensor) -> Tensor:
    """(..., N) products of (..., D) states and (N, D) rows, computed in float32 and returned in float32."""
    return _Score.apply(x, weight)  # type: ignore[return-value]


def install(net: Any) -> None:
    """Replace, in place, the forward functions of a model's RMS norms and feed-forward networks by the ones of this file."""
    for module in net.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _norm(module, families.of(net.config).norm_plus)
    for ffn in families.ffns(net):
        ffn.forward = _ffn(ffn)


def _norm(module: Any, plus: float) -> Callable[[Tensor], Tensor]:
    own, eps = module.forward, getattr(module, "variance_epsilon", None) or module.eps  # families use either name

    def forward(x: Tensor) -> Any:
        return _Norm.apply(x, module.weight, own, plus, eps) if torch.is_grad_enabled() else own(x)

    return forward


def _ffn(ffn: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: ffn.down_proj(gated(ffn.gate_proj(x), ffn.up_proj(x), ffn.act_fn))
