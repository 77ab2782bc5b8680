"""The block beside a feed-forward network, and the base class of the methods that add such blocks.

    out = FFN(x) + g(x) * A(x)      A(x) = W_down( act(W_gate x) * (W_up x) )      g(x) = gate(w . x), one scalar per token

`act` is the activation of the base's own feed-forward network: SiLU, or GELU in Gemma. A gate with a threshold t is
g(x) = gate(w . x - t); its w and t do not learn.
Shapes: B batch, T tokens, D model width, H block width, L layers.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from langext.architectures import families, folding, recompute, vocabulary
from langext.errors import ConfigError
from langext.methods import extension, gates, layers
from langext.methods.base import Method
from langext.methods.extension import Extension
from langext.methods.gates import GATES, GateName
from langext.methods.layers import Layers

if TYPE_CHECKING:
    from langext.architectures.stock import Stock


# What a feed-forward network's module calls its blocks, hence part of every parameter name in a delta.
ATTRIBUTE = "residues"
ROUTER = "router"
"""What a block calls its gate."""
MAX_FRAC = 2.0
MOST_GATHERED = 0.9
"""Share of open tokens above which a block is computed for all tokens: picking them out would take longer (measured)."""


class Router(nn.Linear):
    """Computes z = w . x, or z = w . x - t with a threshold t, in float32, as the routers of the export targets do.

    The weight is w, the bias -t. In bf16, rounding near z = 0 would open the gate for other tokens than in an export. A
    training in bf16, and every export, rounds w and t to bf16: whoever sets them must choose numbers that bf16 has exactly.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, 1) in float32."""
        if self.bias is None:
            return recompute.score(input, self.weight)
        # Detached: neither w nor t learns. Added behind the product: in float32, w . x - t > 0 exactly where w . x > t.
        return recompute.score(input.detach(), self.weight) + self.bias.float()


class Residue(Extension):
    """One block, with or without a gate. Keeps the values of its last forward pass that penalties and diagnostics need."""

    def __init__(self, stack: int, layer: int, width: int, hidden: int, gate: GateName, act: nn.Module):
        super().__init__(stack)
        self.layer = layer
        self.gate: GateName = gate
        self.act = act
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.router = Router(width, 1, bias=GATES[gate].threshold) if gates.has(gate) else None
        self.z_BT: Tensor | None = None
        """(B, T) input z of the gate in the last forward pass, with gradients; kept only if `watched`."""
        self.gate_BT: Tensor | None = None
        """(B, T) values of the gate in the last forward pass, without gradients."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) normed input of the feed-forward network -> (B, T, D) to be added to that network's output."""
        if self.router is None:
            out_BTD = self._block(x_BTD)
            self.gate_BT = torch.ones_like(out_BTD[..., 0]).detach()
        else:
            z_BT1 = self.router(x_BTD)
            gate_BT1 = GATES[self.gate].value(z_BT1).to(x_BTD.dtype)
            self.gate_BT = gate_BT1[..., 0].detach()
            if self.watched:
                self.z_BT = z_BT1[..., 0]
            out_BTD = self._open_alone(x_BTD, gate_BT1) if GATES[self.gate].closes else None
            if out_BTD is None:
                out_BTD = gate_BT1 * self._block(x_BTD)
        self.note(out_BTD)
        return out_BTD

    def _block(self, x: Tensor) -> Tensor:
        return self.down_proj(recompute.gated(self.gate_proj(x), self.up_proj(x), self.act))

    def _open_alone(self, x_BTD: Tensor, gate_BT1: Tensor) -> Tensor | None:
        """The gated output, with matrix products for tokens whose gate is open alone; None where all tokens are no slower.

        Other tokens get exact zeros. A closed gate has no gradient either, so the backward pass is that of all tokens.
        """
        learns = torch.is_grad_enabled()
        # The number of open tokens is not known before: a compiled graph would end here, and a GPU would be waited for in every
        # layer. Most tokens of a training are open, so there is little to win (docs/performance.md).
        if torch.compiler.is_compiling() or (learns and x_BTD.device.type != "cpu"):
            return None
        rows_K = gate_BT1.flatten().nonzero()[:, 0]  # K open tokens
        if not len(rows_K) and not learns and not hasattr(self.down_proj.weight, "ds_id"):
            return torch.zeros_like(x_BTD)
        if learns and len(rows_K) > MOST_GATHERED * gate_BT1.numel():
            return None
        # Under ZeRO 3, whose weights have a `ds_id`, also for no token at all: every process must use the same modules.
        out_KD = gate_BT1.flatten(0, -2).index_select(0, rows_K) * self._block(x_BTD.flatten(0, -2).index_select(0, rows_K))
        return torch.zeros_like(x_BTD).flatten(0, -2).index_copy(0, rows_K, out_KD).view_as(x_BTD)


def stacks(model: Any) -> list[dict[int, Residue]]:
    """One mapping layer -> block for each extension of a model, in the order in which the extensions were added."""
    blocks = [m for m in extension.extensions(model) if isinstance(m, Residue)]
    return [{m.layer: m for m in blocks if m.stack == k} for k in sorted({m.stack for m in blocks})]


def uncalibrated(model: Any) -> bool:
    """True if the newest blocks all have rows and thresholds as `Parallel.extend` made them: closed for any text."""
    routers = [block.router for block in stacks(model)[-1].values()]
    return all(r is not None and r.bias is not None and bool((r.bias == -1).all()) and not r.weight.any() for r in routers)


def base_parameters(model: Any) -> int:
    """Number of parameters of the base, without extensions and new vocabulary rows."""
    added = {id(p) for module in extension.extensions(model) for p in module.parameters()}
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if id(p) not in added and not name.endswith(vocabulary.NEW_ROWS))


class Parallel(Method):
    """Base class of the methods that add blocks beside the feed-forward networks. The base is frozen."""

    stackable: ClassVar[bool] = True
    gate: Any
    """Gate of the blocks, a GateName."""
    extra_params_frac: float | None = Field(None, gt=0, le=MAX_FRAC)
    """Size of all blocks together, as a share of the base's parameters. More learn more and cost more. 0.2 if neither this nor
    `width` is given."""
    width: int | None = Field(None, ge=1, le=2**20)
    """Number of hidden units of each block, instead of `extra_params_frac`. More learn more and cost more."""
    layers: Layers = "all"
    """Which layers get a block: all, middle, a list of layer numbers from 0, or {top: n} for the n layers nearest to the
    output."""
    init: Literal["low_variance", "lecun", "he"] = "low_variance"
    """Variance of the random input weights: low_variance 1/(D L) (that of the paper), lecun 1/D (learns faster in short runs),
    he 2/D; D is the model width, L the number of layers. The output weights start at zero."""

    @model_validator(mode="after")
    def _one_size(self) -> "Parallel":
        if self.width is not None and self.extra_params_frac is not None:
            raise ValueError("give width or extra_params_frac, not both")
        return self

    @property
    def reversible(self) -> bool:
        """True: the base itself does not change."""
        return True

    def linear_parts(self) -> tuple[str, ...] | None:
        """None: a block does not change the base's weights, so there is no change to scale."""
        return None

    def dense(self) -> bool:
        """False: the blocks of several languages are stacked, not merged."""
        return False

    def hidden(self, config: Any, num_base: int) -> int:
        """Width H of each block: `width`, or frac * P / (3 D L), where P = `num_base` and L counts the layers with a block.

        The second is rounded to a multiple of 64, or of 256 if D is at least 1024 (quantised kernels need that).
        """
        if self.width is not None:
            return self.width
        num_blocks = len(layers.chosen(self.layers, config))
        exact = (self.extra_params_frac or 0.2) * num_base / (3 * config.hidden_size * num_blocks)
        step = 256 if config.hidden_size >= 1024 else 64
        return max(step, round(exact / step) * step)

    def check(self, config: Any) -> None:
        """Raise ConfigError if the base has no such layer."""
        super().check(config)
        layers.chosen(self.layers, config)

    def extend(self, model: Any) -> None:
        """Attach the blocks with forward hooks, so that no parameter of the base changes its name."""
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
                    nn.init.zeros_(weight)  # a new block adds exactly zero
                elif self.constant(f".{ATTRIBUTE}.{name}"):  # closed for every input until it is calibrated: w = 0, t = 1
                    nn.init.constant_(weight, -1.0 if name == "router.bias" else 0.0)
                elif weight.device.type != "meta":
                    with torch.no_grad():  # drawn in float32, so that the draw does not depend on the base's precision
                        weight.copy_(torch.randn(weight.shape) * variance**0.5)
            if not hasattr(ffn, ATTRIBUTE):
                ffn.add_module(ATTRIBUTE, nn.ModuleDict())
            getattr(ffn, ATTRIBUTE)[str(stack)] = block
            block.hang(ffn, lambda _, inputs, output, block=block: output + block(inputs[0]))

    def prepare(self, block: Residue) -> None:
        """Choose what a new block keeps of its forward passes. A hook for subclasses; here it keeps nothing more."""

    def trainable(self, name: str, config: Any) -> bool:
        """True for the parameters of blocks, but for calibrated gates; the base does not learn."""
        return f".{ATTRIBUTE}." in name and not self.constant(name)

    def constant(self, name: str) -> bool:
        """True for the rows and thresholds of gates that have a threshold."""
        return GATES[self.block_gate].threshold and f".{ATTRIBUTE}." in name and f".{ROUTER}." in name

    def decays(self, name: str) -> bool:
        """False for gates: a row that decays opens and closes for other tokens than it has learnt to."""
        return f".{ROUTER}." not in name

    def diagnostics(self, model: Any) -> dict[str, Tensor]:
        """`gate`, the values of the gates, and `open`, 1.0 where a gate counts as open and else 0.0; each (L, B, T).

        A gate counts as open above zero; for a sigmoid, above one half. Layers without a block are zero. {} without a gate.
        """
        if not gates.has(self.gate):
            return {}
        by_layer = stacks(model)[-1]
        values = {layer: block.gate_BT for layer, block in by_layer.items() if block.gate_BT is not None}
        assert len(values) == len(by_layer), "the model has not run yet"
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
        """The stock architecture that can compute this gate, in words."""
        return folding.architecture(gates.weights([self.gate]), config)

    def obstacle(self, config: Any) -> str:
        """The reason why no stock architecture can compute this gate on this base; "" if one can."""
        return gates.obstacle([self.gate], config)

    def fold(self, model: Any) -> "Stock":
        """A wider feed-forward network (without gates) or a mixture of experts, for all extensions of the model.

        Raises ConfigError if no stock architecture can compute these gates.
        """
        by_layer = stacks(model)
        # The gates are read from the blocks, because earlier extensions may have other gates than this one.
        names: list[GateName] = [next(iter(stack.values())).gate for stack in by_layer]
        if obstacle := gates.obstacle(names, model.config):
            raise ConfigError(obstacle)
        return folding.fold(model, by_layer, gates.weights(names))
