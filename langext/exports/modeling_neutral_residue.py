"""Llama with neutral residues: a gated residual block beside every feed-forward network.

    out = FFN(x) + g(x) * W_down( silu(W_gate x) * (W_up x) )

Talla, Grave and Jegou, https://arxiv.org/abs/2410.02744. Written by langext; needs transformers alone.
This file travels with the checkpoint and is loaded with trust_remote_code=True.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaMLP


class NeutralResidueConfig(LlamaConfig):
    """A Llama config with the blocks' width and gate."""

    model_type = "neutral_residue_llama"

    residue_size: int = 64
    residue_gate: str = "relu"


class NeutralResidue(nn.Module):
    """One gated block."""

    def __init__(self, config: NeutralResidueConfig):
        super().__init__()
        width, hidden = config.hidden_size, config.residue_size
        self.kind = config.residue_gate
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        if self.kind != "none":
            self.router = nn.Linear(width, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., width)."""
        out = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        if self.kind == "none":
            return out
        z = F.linear(x.float(), self.router.weight.float())
        if self.kind == "relu":
            gate = F.relu(z)
        else:
            gate = torch.sigmoid(z) * (z > 0) if self.kind == "hard_sigmoid" else torch.sigmoid(z)
        return gate.to(x.dtype) * out


class NeutralResidueMLP(LlamaMLP):
    """The base's feed-forward network with a block beside it."""

    def __init__(self, config: NeutralResidueConfig):
        super().__init__(config)
        self.neutral_residue = NeutralResidue(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) normed input -> (..., width)."""
        return super().forward(x) + self.neutral_residue(x)


class NeutralResidueModel(LlamaModel):
    """The decoder without its head."""

    config_class = NeutralResidueConfig
    _supports_attention_backend = True

    def __init__(self, config: NeutralResidueConfig):
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = NeutralResidueMLP(config)
        self.post_init()


class NeutralResidueForCausalLM(LlamaForCausalLM):
    """The decoder with its language-model head."""

    config_class = NeutralResidueConfig
    _supports_attention_backend = True

    def __init__(self, config: NeutralResidueConfig):
        super().__init__(config)
        self.model = NeutralResidueModel(config)
        self.post_init()
