"""Llama with neutral residues: gated residual blocks beside every feed-forward network.

    out = FFN(x) + sum over blocks of g(x) * W_down( act(W_gate x) * (W_up x) )

Talla, Grave and Jegou, https://arxiv.org/abs/2410.02744. Written by langext.

This file is part of the checkpoint and is loaded with trust_remote_code=True. It needs only torch and transformers.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaMLP


class NeutralResidueConfig(LlamaConfig):
    """The base's config plus `residues`: for every extension a dict with its `gate`, `size` (hidden units) and `layers`."""

    model_type = "neutral_residue_llama"

    residues: list | None = None


GATES = {
    "relu": F.relu,
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": lambda z: torch.sigmoid(z) * (z > 0),
    "threshold": lambda z: (z > 0).to(z.dtype),
    "none": torch.ones_like,
}
"""Name of a gate -> its value for z = w . x, where w is the row of the router."""
CLOSING = ("relu", "hard_sigmoid", "threshold")
"""Gates that are exactly zero for some inputs. A block does nothing for a token whose gate is zero."""
THRESHOLD = ("threshold",)
"""Gates of z = w . x - t, where -t is the bias of the router."""


class Router(nn.Module):
    """The row w of a gate, and -t where it has a threshold t. No nn.Linear: programs that replace those lose its weight."""

    def __init__(self, width: int, threshold: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.zeros(1)) if threshold else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., 1): z, in float32, because rounding it to a lower precision could open or close a gate."""
        z = F.linear(x.float(), self.weight.float())
        return z if self.bias is None else z + self.bias.float()


class NeutralResidue(nn.Module):
    """One residual block with its gate."""

    def __init__(self, width: int, hidden: int, gate: str):
        super().__init__()
        self.kind = gate
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        if gate != "none":
            self.router = Router(width, gate in THRESHOLD)

    def forward(self, x: torch.Tensor, out: torch.Tensor, act: nn.Module) -> torch.Tensor:
        """(..., width) input x of the feed-forward network, and its output -> that output plus the gated output of the block.

        Without gradients, the block is computed only for tokens whose gate is not zero.
        """
        if self.kind == "none":
            return out + self.block(x, act)
        gate = GATES[self.kind](self.router(x)).to(x.dtype)
        # The shortcut below has shapes that depend on the data: a compiler cannot trace it.
        if self.kind not in CLOSING or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return out + gate * self.block(x, act)
        rows = gate.flatten().nonzero()[:, 0]
        if not len(rows):
            return out
        gate, x = gate.flatten(0, -2)[rows], x.flatten(0, -2)[rows]
        added = (gate * self.block(x, act)).to(out.dtype)  # autocast makes another precision of one of them
        return out.flatten(0, -2).index_add(0, rows, added).view_as(out)

    def block(self, x: torch.Tensor, act: nn.Module) -> torch.Tensor:
        """(..., width) -> (..., width): the output before it is multiplied by the gate."""
        return self.down_proj(act(self.gate_proj(x)) * self.up_proj(x))


class NeutralResidueMLP(LlamaMLP):
    """The base's feed-forward network, with the residual blocks of its layer added to the output."""

    def __init__(self, config: NeutralResidueConfig, layer: int):
        super().__init__(config)
        self.residues = nn.ModuleDict()
        for i, extension in enumerate(config.residues or []):
            if layer in extension["layers"]:
                self.residues[str(i)] = NeutralResidue(config.hidden_size, extension["size"], extension["gate"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) input after the norm -> (..., width) sum of the network's output and all blocks' outputs."""
        out = super().forward(x)
        for block in self.residues.values():
            out = block(x, out, self.act_fn)
        return out


class NeutralResidueModel(LlamaModel):
    """The decoder without its language-model head."""

    config_class = NeutralResidueConfig
    _supports_attention_backend = True

    def __init__(self, config: NeutralResidueConfig):
        super().__init__(config)
        for i, layer in enumerate(self.layers):
            layer.mlp = NeutralResidueMLP(config, i)
        self.post_init()


class NeutralResidueForCausalLM(LlamaForCausalLM):
    """The decoder with its language-model head."""

    config_class = NeutralResidueConfig
    _supports_attention_backend = True

    def __init__(self, config: NeutralResidueConfig):
        super().__init__(config)
        self.model = NeutralResidueModel(config)
        self.post_init()
