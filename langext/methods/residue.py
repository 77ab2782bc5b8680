"""The block beside a feed-forward network, and what the methods made of it have in common.

    out = FFN(x) + g(x) * A(x)      A(x) = W_down( act(W_gate x) * (W_up x) )      g(x) = gate(w . x), one scalar per token

`act` is the activation of the base's own feed-forward network: SiLU, or GELU in Gemma.
Shapes: B batch, T tokens, D model width, H block width, L layers.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from langext.architectures import families, folding, recompute, vocabulary
from langext.methods import extension, gates, layers
from langext.methods.base import Method
from langext.methods.extension import Extension
from langext.methods.gates import GATES, GateName
from langext.methods.layers import Layers
from langext.spec import ConfigError

if TYPE_CHECKING:
    from langext.architectures.stock import Stock


# What a feed-forward network's module calls its blocks, hence part of every parameter name in a delta.
ATTRIBUTE = "residues"
MAX_FRAC = 2.0


class Router(nn.Linear):
    """w . x in float32, like the routers of the export targets: near z = 0 the rounding of bf16 would open other tokens."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, 1)."""
        return recompute.score(input, self.weight)


class Residue(Extension):
    """One block, gated or not. Keeps what the penalties and the diagnostics need of its last forward pass."""

    def __init__(self, stack: int, layer: int, width: int, hidden: int, gate: GateName, act: nn.Module):
        super().__init__(stack)
        self.layer = layer
        self.gate: GateName = gate
        self.act = act
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.router = Router(width, 1, bias=False) if gates.has(gate) else None
        self.z_BT: Tensor | None = None
        """What the gate's activation was applied to, with its graph; kept while `watched`."""
        self.gate_BT: Tensor | None = None
        """Gate values, without a graph."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) normed input of the feed-forward network -> (B, T, D) to be added to its output."""
        if self.router is None:
            out_BTD = self._block(x_BTD)
            self.gate_BT = torch.ones_like(out_BTD[..., 0]).detach()
        else:
            z_BT1 = self.router(x_BTD)
            gate_BT1 = GATES[self.gate].value(z_BT1).to(x_BTD.dtype)
            self.gate_BT = gate_BT1[..., 0].detach()
            if self.watched:
                self.z_BT = z_BT1[..., 0]
            if torch.is_grad_enabled() or not GATES[self.gate].closes:
                out_BTD = gate_BT1 * self._block(x_BTD)
            else:
                out_BTD = self._only_open(x_BTD, gate_BT1)
        self.note(out_BTD)
        return out_BTD

    def _block(self, x: Tensor) -> Tensor:
        return self.down_proj(recompute.gated(self.gate_proj(x), self.up_proj(x), self.act))

    def _only_open(self, x_BTD: Tensor, gate_BT1: Tensor) -> Tensor:
        """Inference: the matrix products are done for open tokens alone, and not at all when none is open."""
        out_BTD = torch.zeros_like(x_BTD)
        open_BT = gate_BT1[..., 0] != 0
        if open_BT.any():
            out_BTD[open_BT] = gate_BT1[open_BT] * self._block(x_BTD[open_BT])
        return out_BTD


def stacks(model: Any) -> list[dict[int, Residue]]:
    """Layer -> block of every extension of a model, the first added first."""
    found = [m for m in extension.extensions(model) if isinstance(m, Residue)]
    return [{m.layer: m for m in found if m.stack == k} for k in sorted({m.stack for m in found})]


def base_parameters(model: Any) -> int:
    """Parameters of the base: neither extensions nor new vocabulary rows."""
    added = {id(p) for module in extension.extensions(model) for p in module.parameters()}
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if id(p) not in added and not name.endswith(vocabulary.NEW_ROWS))


class Parallel(Method):
    """Blocks beside the feed-forward networks. The backbone is frozen."""

    stackable: ClassVar[bool] = True
    gate: Any
    """A GateName."""
    extra_params_frac: float | None = Field(None, gt=0, le=MAX_FRAC)
    """Size of all blocks together as a share of the base's parameters; 0.2 when `width` is not given either."""
    width: int | None = Field(None, ge=1)
    """Hidden units of each block, instead of `extra_params_frac`. More learn more and cost more."""
    layers: Layers = "all"
    """Where blocks are added: all, a list of layer numbers from 0, or {top: n} for the n layers nearest to the output."""
    init: Literal["low_variance", "lecun", "he"] = "low_variance"
    """Variance of the input weights: 1/(D L) (the paper's), 1/D (faster in short runs) or 2/D. The output starts at zero."""

    @model_validator(mode="after")
    def _one_size(self) -> "Parallel":
        if self.width is not None and self.extra_params_frac is not None:
            raise ValueError("give width or extra_params_frac, not both")
        return self

    @property
    def reversible(self) -> bool:
        """The base is untouched."""
        return True

    def linear_parts(self) -> tuple[str, ...] | None:
        """What a block adds is not a change of the base's weights."""
        return None

    def dense(self) -> bool:
        """Blocks of several languages are stacked, not merged."""
        return False

    def hidden(self, config: Any, num_base: int) -> int:
        """Width H of each block: frac * P / (3 D L), rounded to 64, or to 256 from D = 1024 on (quantised kernels want it)."""
        if self.width is not None:
            return self.width
        num_blocks = len(layers.chosen(self.layers, config))
        exact = (self.extra_params_frac or 0.2) * num_base / (3 * config.hidden_size * num_blocks)
        step = 256 if config.hidden_size >= 1024 else 64
        return max(step, round(exact / step) * step)

    def check(self, config: Any) -> None:
        """The base has the layers that are asked for."""
        super().check(config)
        layers.chosen(self.layers, config)

    def extend(self, model: Any) -> None:
        """Attach the blocks by forward hooks, so that no parameter of the base changes its name."""
        self.check(model.config)
        hidden = self.hidden(model.config, base_parameters(model))
        depth, width = model.config.num_hidden_layers, model.config.hidden_size
        variance = {"low_variance": 1 / (width * depth), "lecun": 1 / width, "he": 2 / width}[self.init]
        stack, ffns = extension.next_stack(model), families.ffns(model)
        for layer in layers.chosen(self.layers, model.config):
            ffn: Any = ffns[layer]
            like = ffn.gate_proj.weight
            block = Residue(stack, layer, width, hidden, self.gate, ffn.act_fn).to(device=like.device, dtype=like.dtype)
            self.prepare(block)
            for name, weight in block.named_parameters():
                if name == "down_proj.weight":
                    nn.init.zeros_(weight)
                elif weight.device.type != "meta":
                    with torch.no_grad():  # drawn in float32, so that the draw does not depend on the base's precision
                        weight.copy_(torch.randn(weight.shape) * variance**0.5)
            if not hasattr(ffn, ATTRIBUTE):
                ffn.add_module(ATTRIBUTE, nn.ModuleDict())
            getattr(ffn, ATTRIBUTE)[str(stack)] = block
            block.hang(ffn, lambda _, inputs, output, block=block: output + block(inputs[0]))

    def prepare(self, block: Residue) -> None:
        """Set up what is to be kept of a block's forward pass."""

    def trainable(self, name: str, config: Any) -> bool:
        """Only the blocks learn."""
        return f".{ATTRIBUTE}." in name

    def diagnostics(self, model: Any) -> dict[str, Tensor]:
        """`gate` and `open` (1.0 where the gate is above zero, or above one half for a sigmoid), each (L, B, T).

        Both are zero in layers without a block. {} without a gate.
        """
        if not gates.has(self.gate):
            return {}
        found = stacks(model)[-1]
        values = {layer: block.gate_BT for layer, block in found.items() if block.gate_BT is not None}
        assert len(values) == len(found), "the model has not run yet"
        nothing = torch.zeros_like(next(iter(values.values())), dtype=torch.float32)
        depth = model.config.num_hidden_layers
        gate_LBT = torch.stack([values[i].float() if i in values else nothing for i in range(depth)])
        open_LBT = gate_LBT > GATES[self.block_gate].open_above
        return {"gate": gate_LBT, "open": open_LBT.float()}

    @property
    def block_gate(self) -> GateName:
        """The gate of the blocks."""
        return self.gate

    def architecture(self, config: Any) -> str:
        """The stock architecture that fits this gate."""
        return folding.architecture(gates.weights([self.gate]), config)

    def obstacle(self, config: Any) -> str:
        """See `gates.obstacle`."""
        return gates.obstacle([self.gate], config)

    def fold(self, model: Any) -> "Stock":
        """A wider feed-forward network or a mixture of experts, by gate."""
        by_layer = stacks(model)
        names: list[GateName] = [next(iter(stack.values())).gate for stack in by_layer]
        if obstacle := gates.obstacle(names, model.config):
            raise ConfigError(obstacle)
        return folding.fold(model, by_layer, gates.weights(names))
