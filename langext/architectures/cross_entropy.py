"""Cross-entropy of a language-model head, computed chunk by chunk: a full (N, V) matrix of logits never exists.

Shapes: N tokens, D model width, V vocabulary, C tokens in a chunk.
"""

from typing import Any

import torch
from torch import Tensor

# In bf16 on a CPU, 128 is the fastest of 64, 128 and 256: 570, 610 and 550 tokens/s with SmolLM2-135M (vocabulary 49,152) on 2
# cores. In float32 it is twice as many.
CHUNK_TOKENS = {"cpu": 128, "cuda": 4096}


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear head, with the gradient computed already in the forward pass.

    The gradient of a chunk is computed while the logits of that chunk exist, so no logits are kept and none are computed twice.
    The idea is that of Liger Kernel's fused linear cross-entropy (https://arxiv.org/abs/2410.10989), here in plain PyTorch:
    loss = scale * sum(logsumexp(logits) - logits[label]),  dlogits = scale * (softmax(logits) - onehot(label)).
    """

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, scale: float, softcap: float | None,
        new_MD: Tensor | None, new_ids_M: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        dx_ND = torch.empty_like(x_ND) if needs_x else None
        # In float32, because every chunk adds to it: in bf16 the small terms of later chunks would be lost.
        dweight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        dnew_MD = torch.zeros_like(new_MD, dtype=torch.float32) if new_MD is not None and ctx.needs_input_grad[5] else None
        losses_N = torch.empty(x_ND.shape[0], dtype=torch.float32, device=x_ND.device)
        one = x_ND.dtype == torch.float32
        size = max(1, min(CHUNK_TOKENS.get(x_ND.device.type, 4096) * (1 + one), x_ND.shape[0]))
        # All chunks share these two buffers: they are the largest tensors here, and allocating them again takes time. In
        # float32 they are one, of twice as many tokens.
        low_CV = x_ND.new_empty(size, weight_VD.shape[0])
        wide_CV = low_CV if one else torch.empty_like(low_CV, dtype=torch.float32)
        for at in range(0, x_ND.shape[0], size):
            x_CD, labels_C = x_ND[at : at + size], labels_N[at : at + size]
            product_CV = torch.mm(x_CD, weight_VD.T, out=low_CV[: len(x_CD)])
            logits_CV = product_CV if one else wide_CV[: len(x_CD)].copy_(product_CV)
            bent_CV = torch.tanh(logits_CV / softcap) if softcap else None
            if bent_CV is not None and softcap:
                torch.mul(bent_CV, softcap, out=logits_CV)
            lse_C1 = torch.logsumexp(logits_CV, -1, keepdim=True)
            picked_C1 = labels_C.clamp(min=0)[:, None]  # gather needs a valid index also where the label is ignored
            counts_C1 = (labels_C >= 0)[:, None]
            losses_N[at : at + size] = ((lse_C1 - logits_CV.gather(1, picked_C1)) * counts_C1)[:, 0]
            if not (needs_x or needs_weight or dnew_MD is not None):
                continue
            # In place, because a third (C, V) buffer would cost as much as the logits. The logits are not needed any more.
            dlogits_CV = logits_CV.sub_(lse_C1).exp_()
            dlogits_CV.scatter_add_(1, picked_C1, -torch.ones_like(lse_C1))
            if bent_CV is not None:
                dlogits_CV *= 1 - bent_CV.square()
            # `scale` and ignored labels are applied to (C, D) tensors below, which are far smaller than (C, V) ones. `scale` is
            # applied in float32: rounded to bf16, 1 / tokens would make every gradient wrong by up to 0.4 % in the same way.
            d_CV = dlogits_CV if one else product_CV.copy_(dlogits_CV)
            if dx_ND is not None:
                dx_ND[at : at + size] = (d_CV @ weight_VD).float() * (counts_C1 * scale)
            if dweight_VD is not None:
                dweight_VD += (d_CV.T @ (x_CD * counts_C1)).float()
            if dnew_MD is not None and new_ids_M is not None:
                dnew_MD += (d_CV[:, new_ids_M].T @ (x_CD * counts_C1)).float()
        pairs = ((dweight_VD, weight_VD), (dnew_MD, new_MD))
        rows = [None if d is None or of is None else (d * scale).to(of.dtype) for d, of in pairs]
        ctx.save_for_backward(dx_ND, *rows)
        ctx.mark_non_differentiable(losses_N)
        return losses_N.sum() * scale, losses_N

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        up = grads[0]
        dx, dweight, dnew = (None if saved is None else saved * up.to(saved.dtype) for saved in ctx.saved_tensors)
        return dx, dweight, None, None, None, dnew, None


def cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, scale: float, softcap: float | None = None,
    new: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`scale` * the summed cross-entropy of a linear head (a scalar), and the loss of each token, (N,) in nats.

    A token with a negative label has the loss zero. `softcap` is the value of `families.softcap`. The scalar has gradients for
    `x_ND` and `weight_VD`, where they require them; the losses of single tokens have none. `new` are rows of `weight_VD` that
    learn while all others are frozen, (M, D), and their ids (M,): then these get gradients, and `weight_VD` gets none.
    """
    learn = torch.is_grad_enabled()  # nothing is worked out that nobody needs
    new_MD, new_ids_M = new if new is not None and learn else (None, None)
    if not learn or new is not None:
        weight_VD = weight_VD.detach()
    return _ChunkedCrossEntropy.apply(x_ND, weight_VD, labels_N, scale, softcap, new_MD, new_ids_M)  # type: ignore[return-value]
