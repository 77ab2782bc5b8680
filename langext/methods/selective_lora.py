"""Selective LoRA: low-rank changes, each switched on or off by a number that is learnt, one for each linear map.

    W = W0 + 1[s >= tau] (alpha / r) B A        loss + lambda * mean |s|

Akbarian Bafghi et al., https://arxiv.org/abs/2501.15377. The indicator I = 1[s >= tau] comes from TAPS,
https://arxiv.org/abs/2203.16708: one scalar s for each map, with a straight-through gradient (dI/ds = 1). A change that is off
at the end of the training is dropped.

Shapes: r is the rank, B is (out, r) and starts at zero, A is (r, in).
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from langext.methods.extension import Extension
from langext.methods.lora import LowRank
from langext.methods.penalties.base import MicroBatch

if TYPE_CHECKING:
    from langext.architectures.stock import Stock

ATTRIBUTE = "selective_lora"
INITIAL_S = 0.15  # the value in the code of TAPS


class _Indicator(torch.autograd.Function):
    """1[s >= tau] in the forward pass; the backward pass hands the gradient on to s unchanged."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, tau: float) -> Tensor:
        return (s.to(torch.bfloat16) >= tau).to(s.dtype)  # rounding a stored s to bf16 must not switch a change

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0], None


class SelectiveLowRank(Extension):
    """The low-rank change of one linear map, with its indicator s."""

    def __init__(self, stack: int, linear: nn.Linear, rank: int, scale: float, tau: float):
        super().__init__(stack)
        self.scale, self.tau = scale, tau
        like: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, **like))
        self.s = nn.Parameter(torch.full((1,), INITIAL_S, **like))
        if not self.lora_A.is_meta:  # uniform of variance 1 / (3 in), as PEFT starts its A; drawn in float32
            bound = linear.in_features**-0.5
            self.lora_A.data.copy_(torch.empty(self.lora_A.shape).uniform_(-bound, bound))

    @property
    def active(self) -> bool:
        """True if the change is on: s, rounded to bf16, is at least tau."""
        return bool((self.s.to(torch.bfloat16) >= self.tau).item())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) input of the linear map -> (..., out) to be added to its output."""
        # In training the product is computed also when the change is off: s needs its gradient to switch on again.
        if not torch.is_grad_enabled() and not self.active:
            out = x.new_zeros(()).expand(*x.shape[:-1], self.lora_B.shape[0])
        else:
            out = _Indicator.apply(self.s, self.tau) * ((x @ self.lora_A.T) @ self.lora_B.T * self.scale)
        self.note(out)
        return out

    def change(self) -> Tensor:
        """(out, in) matrix to be added to W0; zeros if the change is off."""
        return (self.lora_B @ self.lora_A) * self.scale if self.active else torch.zeros_like(self.lora_B @ self.lora_A)


class SelectiveLora(LowRank):
    """LoRA with a cost for every change that is on, so that only useful changes stay on."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2501.15377"
    name: Literal["selective_lora"]
    tau: float = Field(0.1, gt=0, lt=INITIAL_S)
    """A change is on while its s is at least tau. All s start at 0.15, so all changes start on: one that starts off gets no
    gradient. Raise it to switch changes off sooner."""
    sparsity: float = Field(1.0, ge=0)
    """Weight lambda of the mean of |s| in the loss. Raise it for fewer active changes."""
    warmup_frac: float = Field(0.1, ge=0, lt=1)
    """Share of the training steps at the start that have no sparsity term, so that all changes can begin to learn."""
    s_lr: float = Field(1e-3, gt=0)
    """Peak learning rate of s. With Adam, s moves by about this much in a step, so about 0.05 / s_lr steps (with the default
    tau) can switch a change off. Raise it to switch sooner."""

    def extend(self, model: Any) -> None:
        """Attach a change to every target with a forward hook."""
        self.hang(model, ATTRIBUTE, lambda stack, linear: SelectiveLowRank(stack, linear, self.rank, self.scale, self.tau))

    def trainable(self, name: str, config: Any) -> bool:
        """True for the factors A and B and for s; the base does not learn."""
        return f".{ATTRIBUTE}." in name

    def peak_lr(self, name: str, lr: float) -> float:
        """`s_lr` for s; the learning rate of the training for the factors."""
        return self.s_lr if name.endswith(f".{ATTRIBUTE}.s") else lr

    def read_outside(self, model: Any) -> list[Tensor]:
        """The indicators' s, for the sparsity term and the number of active changes."""
        return [change.s for change in self._changes(model)]

    def penalty(self, model: Any, micro_batch: MicroBatch) -> dict[str, Tensor]:
        """The sparsity term lambda * mean |s|; {} during the warmup."""
        if self.sparsity == 0 or micro_batch.done < self.warmup_frac:
            return {}
        return {"sparsity": micro_batch.once(self.sparsity * torch.cat([m.s.abs() for m in self._changes(model)]).mean())}

    def figures(self, model: Any) -> dict[str, float]:
        """`active_blocks`, the number of changes that are on, and `blocks`, the number of all changes."""
        changes = self._changes(model)
        return {"active_blocks": float(sum(c.active for c in changes)), "blocks": float(len(changes))}

    def linear_parts(self) -> tuple[str, ...] | None:
        """The factors B: the change is proportional to them."""
        return (f".{ATTRIBUTE}.lora_B",)

    def fold(self, model: Any) -> "Stock":
        """The base's own architecture: active changes are added to their matrices, the others are dropped."""
        from langext.architectures import stock

        def merged(block: Any) -> dict[str, Tensor]:
            tensors = {n: t for n, t in stock.plain(block).items() if f".{ATTRIBUTE}." not in n}
            for name, module in block.named_modules():
                if isinstance(change := getattr(module, ATTRIBUTE, None), SelectiveLowRank):
                    tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + change.change().detach()
            return tensors

        return stock.of(model, merged)

    def _changes(self, model: Any) -> list[SelectiveLowRank]:
        return [m for m in self.extensions(model) if isinstance(m, SelectiveLowRank)]
