"""Neutral residues: a gated residual block beside every feed-forward network, near zero on the original language.

    out = FFN(x) + g(x) * A(x)      A(x) = W_down( silu(W_gate x) * (W_up x) )      g(x) = act(w . x), one scalar per token

Talla, Grave and Jegou, "Neutral Residues: Revisiting Adapters for Model Extension", https://arxiv.org/abs/2410.02744.
The backbone is frozen. A local loss, the L1 norm of what the block adds on original-language tokens, keeps it neutral there.

Shapes: B batch, T tokens, D model width, H block width, L layers.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from langext import families
from langext.methods.base import Method
from langext.spec import ConfigError

Gate = Literal["relu", "sigmoid", "hard_sigmoid", "none"]

# What the feed-forward network's module is told to call the block, hence part of every parameter name in a delta.
ATTRIBUTE = "neutral_residue"


class NeutralResidue(nn.Module):
    """One gated block. Keeps what the local loss and the diagnostics need of its last forward pass."""

    def __init__(self, width: int, hidden: int, gate: Gate):
        super().__init__()
        self.kind: Gate = gate
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.router = None if gate == "none" else nn.Linear(width, 1, bias=False)
        self.added_BT: Tensor | None = None
        """Mean absolute value over D of what the block added, with its graph while training."""
        self.gate_BT: Tensor | None = None
        """Gate values, without a graph."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) normed input of the feed-forward network -> (B, T, D) to be added to its output."""
        if self.router is None:
            out_BTD = self._block(x_BTD)
            self.gate_BT = torch.ones_like(out_BTD[..., 0]).detach()
        else:
            # In float32 like the routers of the export targets: near z = 0 the rounding of bf16 would open other tokens.
            z_BT1 = F.linear(x_BTD.float(), self.router.weight.float())
            gate_BT1 = _open(z_BT1, self.kind).to(x_BTD.dtype)
            self.gate_BT = gate_BT1[..., 0].detach()
            if torch.is_grad_enabled() or self.kind == "sigmoid":
                out_BTD = gate_BT1 * self._block(x_BTD)
            else:
                out_BTD = self._only_open(x_BTD, gate_BT1)
        self.added_BT = out_BTD.float().abs().mean(-1)
        return out_BTD

    def _block(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    def _only_open(self, x_BTD: Tensor, gate_BT1: Tensor) -> Tensor:
        """Inference: the matrix products are done for open tokens alone, and not at all when none is open."""
        out_BTD = torch.zeros_like(x_BTD)
        open_BT = gate_BT1[..., 0] != 0
        if open_BT.any():
            out_BTD[open_BT] = gate_BT1[open_BT] * self._block(x_BTD[open_BT])
        return out_BTD


def _open(z: Tensor, kind: Gate) -> Tensor:
    if kind == "relu":
        return F.relu(z)
    return torch.sigmoid(z) * (z > 0) if kind == "hard_sigmoid" else torch.sigmoid(z)


def _last(kept: Tensor | None) -> Tensor:
    assert kept is not None, "the model has not run yet"
    return kept


def residues(model: Any) -> list[NeutralResidue]:
    """The blocks of an extended model, first layer first."""
    return [getattr(ffn, ATTRIBUTE) for ffn in families.ffns(model)]


def _add_residue(ffn: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + getattr(ffn, ATTRIBUTE)(inputs[0])


class NeutralResidues(Method):
    """Gated residual blocks that stay near zero on the original language."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.02744"
    name: Literal["neutral_residues"]
    gate: Gate = "relu"
    """relu is the paper's. sigmoid and hard_sigmoid (zero below 0.5) export to stock architectures; none is the ablation."""
    extra_params_frac: float | None = Field(None, gt=0, le=2)
    """Size of all blocks together as a share of the base's parameters; 0.2 when `width` is not given either."""
    width: int | None = Field(None, ge=1)
    """Hidden units of each block, instead of `extra_params_frac`. More learn more and cost more."""
    init: Literal["low_variance", "lecun", "he"] = "low_variance"
    """Variance of the input weights: 1/(D L) (the paper's), 1/D (faster in short runs) or 2/D. The output starts at zero."""
    local_loss: Literal["l1", "none"] = "l1"
    """The penalty on original-language tokens: mean over layers and tokens of |g(x) A(x)|_1 / D."""
    alpha: float = Field(0.01, ge=0)
    """Weight of the local loss. Raise it for less forgetting and less learning."""

    @model_validator(mode="after")
    def _one_size(self) -> "NeutralResidues":
        if self.width is not None and self.extra_params_frac is not None:
            raise ValueError("give width or extra_params_frac, not both")
        return self

    def hidden(self, config: Any, num_base: int) -> int:
        """Width H of each block: frac * P / (3 D L), rounded to 64, or to 256 from D = 1024 on (quantised kernels want it)."""
        if self.width is not None:
            return self.width
        exact = (self.extra_params_frac or 0.2) * num_base / (3 * config.hidden_size * config.num_hidden_layers)
        step = 256 if config.hidden_size >= 1024 else 64
        return max(step, round(exact / step) * step)

    def check(self, config: Any) -> None:
        """The block's inner activation is SiLU; a native export needs the base's to be the same."""
        families.of(config)
        if config.hidden_act != "silu":
            raise ConfigError(f"neutral_residues needs a base with SiLU activations, this one has {config.hidden_act!r}")

    def extend(self, model: Any) -> None:
        """Attach a block to every feed-forward network by a forward hook, so that no base parameter changes its name."""
        self.check(model.config)
        hidden = self.hidden(model.config, model.num_parameters())
        depth, width = model.config.num_hidden_layers, model.config.hidden_size
        variance = {"low_variance": 1 / (width * depth), "lecun": 1 / width, "he": 2 / width}[self.init]
        for ffn in families.ffns(model):
            like = next(ffn.parameters())
            block = NeutralResidue(width, hidden, self.gate).to(device=like.device, dtype=like.dtype)
            if like.device.type != "meta":
                for name, weight in block.named_parameters():
                    if name == "down_proj.weight":
                        nn.init.zeros_(weight)
                    else:
                        with torch.no_grad():  # drawn in float32, so that the draw does not depend on the base's precision
                            weight.copy_(torch.randn(weight.shape) * variance**0.5)
            ffn.add_module(ATTRIBUTE, block)
            ffn.register_forward_hook(_add_residue)

    def trainable(self, name: str) -> bool:
        """Only the blocks learn."""
        return f".{ATTRIBUTE}." in name

    def penalty(self, model: Any, original_BT: Tensor) -> dict[str, Tensor]:
        """Alpha * mean over layers and original-language tokens of |g(x) A(x)|_1 / D."""
        if self.local_loss == "none" or self.alpha == 0:
            return {}
        share_BT = original_BT.float() / original_BT.sum().clamp(min=1)
        layers = [(_last(block.added_BT) * share_BT).sum() for block in residues(model)]
        return {"local": self.alpha * torch.stack(layers).mean()}

    def diagnostics(self, model: Any) -> dict[str, Tensor]:
        """`gate` and `open` (1.0 where the gate is not zero; above one half for a sigmoid), each (L, B, T)."""
        gate_LBT = torch.stack([_last(block.gate_BT).float() for block in residues(model)])
        return {"gate": gate_LBT, "open": (gate_LBT > (0.5 if self.gate == "sigmoid" else 0)).float()}
