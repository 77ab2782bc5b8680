"""LoRA: a low-rank change W + (alpha / r) B A of the linear maps, done by PEFT. https://arxiv.org/abs/2106.09685.

`fold` merges the change into the base's weights. Shapes: r is the rank, B is (out, r) and starts at zero, A is (r, in).
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from langext.architectures import families
from langext.methods import extension, layers
from langext.methods.base import Method
from langext.methods.extension import Extension
from langext.methods.layers import Layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from langext.architectures.stock import Stock

Linear = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTER = "default"  # the name that PEFT gives to a single adapter


class LowRank(Method):
    """Base class of the methods that change linear maps by a low-rank product B A."""

    rank: int = Field(64, ge=1, le=2**16)
    """Rank of each change. A higher rank learns more and costs more."""
    lora_alpha: float | None = Field(None, gt=0)
    """The product B A is multiplied by lora_alpha / rank. If not given, it equals the rank, so the factor is 1. Raise it for
    larger changes at the same learning rate."""
    targets: list[Linear] = Field(list(families.LINEARS), min_length=1)
    """Which linear maps of a block change; all seven if not given."""
    layers: Layers = "all"
    """Which blocks change: all, middle, a list of layer numbers from 0, or {top: n} for the n layers nearest to the output."""

    @property
    def scale(self) -> float:
        """The factor of the product B A."""
        return (self.lora_alpha or self.rank) / self.rank

    @property
    def reversible(self) -> bool:
        """True: the base's matrices do not change until `fold` merges the product into copies of them."""
        return True

    def check(self, config: Any) -> None:
        """Raise ConfigError if the base has no such layer."""
        super().check(config)
        layers.chosen(self.layers, config)

    def hang(self, model: Any, attribute: str, make: "Callable[[int, nn.Linear], Extension]") -> None:
        """Add what `make` makes of (stack, linear map) to every target, as `attribute`; outputs of both are added."""
        self.check(model.config)
        stack, blocks = extension.next_stack(model), families.blocks(model)
        for layer in layers.chosen(self.layers, model.config):
            for linear in families.linears(blocks[layer], tuple(self.targets)).values():
                change = make(stack, linear)
                linear.add_module(attribute, change)
                change.hang(linear, lambda _, inputs, output, change=change: output + change(inputs[0]))


class Lora(LowRank):
    """Low-rank adaptation of the linear maps."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2106.09685"
    name: Literal["lora"]

    def extend(self, model: Any) -> None:
        """Let PEFT wrap the linear maps, and add a switch to each of its wrappers."""
        from peft import LoraConfig, inject_adapter_in_model

        self.check(model.config)
        alpha = cast(Any, self.scale * self.rank)  # PEFT declares int, but accepts any number
        config = LoraConfig(
            r=self.rank, lora_alpha=alpha, target_modules=list(self.targets), lora_dropout=0.0, bias="none",
            layers_to_transform=layers.chosen(self.layers, model.config), layers_pattern="layers",
        )  # fmt: skip
        stack = extension.next_stack(model)
        inject_adapter_in_model(config, model, ADAPTER)
        for module in wrapped(model):
            switch = Extension(stack)
            module.add_module("switch", switch)

            # PEFT adds the output of lora_B to that of the linear map, so a zero from this hook switches the change off.
            def add(_: Any, __: Any, output: Any, switch: Extension = switch) -> Any:
                if not switch.on:
                    return output.new_zeros(()).expand_as(output)
                if switch.watched:
                    switch.note(output * self.scale)
                return None

            module.lora_B[ADAPTER].register_forward_hook(add)

    def trainable(self, name: str, config: Any) -> bool:
        """True for the low-rank factors A and B; the base does not learn."""
        return ".lora_A." in name or ".lora_B." in name

    def linear_parts(self) -> tuple[str, ...] | None:
        """The factors B: the change is proportional to them."""
        return (f".lora_B.{ADAPTER}.weight",)

    def fold(self, model: Any) -> "Stock":
        """The base's own architecture, with every change merged into its matrix and without PEFT's wrappers."""
        from peft.tuners.lora import LoraLayer

        from langext.architectures import stock

        def merged(block: Any) -> "dict[str, Tensor]":
            plain = stock.plain(block).items()
            tensors = {name.replace(".base_layer.", "."): tensor for name, tensor in plain if ".lora_" not in name}
            for name, module in block.named_modules():
                if isinstance(module, LoraLayer):
                    change: Any = module.get_delta_weight  # type: ignore[attr-defined]
                    tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + change(ADAPTER).detach()
            return tensors

        return stock.of(model, merged)


def wrapped(model: Any) -> list[Any]:
    """PEFT's wrappers around the linear maps of a model."""
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]
