"""LoRA: a low-rank change W + (alpha / r) B A of the linear maps, by PEFT. https://arxiv.org/abs/2106.09685.

Merges into the base's weights. Shapes: r rank, B of (out, r) starts at zero, A of (r, in).
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from langext.architectures import families
from langext.methods import extension, layers
from langext.methods.base import Method
from langext.methods.extension import Extension
from langext.methods.layers import Layers

if TYPE_CHECKING:
    from torch import Tensor

    from langext.architectures.stock import Stock

Linear = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTER = "default"  # PEFT's name for the only adapter there is


class LowRank(Method):
    """Fields of the methods that change linear maps by low-rank products."""

    rank: int = Field(64, ge=1)
    """Rank of each change. More learns more and costs more."""
    lora_alpha: float | None = Field(None, gt=0)
    """The product is multiplied by lora_alpha / rank; equal to the rank (a factor of 1) when not given."""
    targets: list[Linear] = Field(list(families.LINEARS), min_length=1)
    """Which linear maps of a block change; all seven when not given."""
    layers: Layers = "all"
    """Which blocks: all, a list of layer numbers from 0, or {top: n} for the n layers nearest to the output."""

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return (self.lora_alpha or self.rank) / self.rank

    @property
    def reversible(self) -> bool:
        """The base's matrices are untouched until they are merged."""
        return True

    def check(self, config: Any) -> None:
        """The base has the layers that are asked for."""
        super().check(config)
        layers.chosen(self.layers, config)


class Lora(LowRank):
    """Low-rank adaptation of the linear maps."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2106.09685"
    name: Literal["lora"]

    def extend(self, model: Any) -> None:
        """Let PEFT wrap the linear maps, and make its wrappers switchable."""
        from peft import LoraConfig, inject_adapter_in_model

        self.check(model.config)
        alpha = cast(Any, self.scale * self.rank)  # PEFT says int and takes any number
        config = LoraConfig(
            r=self.rank, lora_alpha=alpha, target_modules=list(self.targets), lora_dropout=0.0, bias="none",
            layers_to_transform=layers.chosen(self.layers, model.config), layers_pattern="layers",
        )  # fmt: skip
        stack = extension.next_stack(model)
        inject_adapter_in_model(config, model, ADAPTER)
        for module in wrapped(model):
            switch = Extension(stack)
            module.add_module("switch", switch)

            def add(_: Any, __: Any, output: Any, switch: Extension = switch) -> Any:
                if not switch.on:
                    return output.new_zeros(()).expand_as(output)
                if switch.watched:
                    switch.note(output * self.scale)
                return None

            module.lora_B[ADAPTER].register_forward_hook(add)

    def trainable(self, name: str, config: Any) -> bool:
        """Only the low-rank factors learn."""
        return ".lora_A." in name or ".lora_B." in name

    def linear_parts(self) -> tuple[str, ...] | None:
        """The change is proportional to B."""
        return (f".lora_B.{ADAPTER}.weight",)

    def fold(self, model: Any) -> "Stock":
        """Merge every change into its matrix and take the wrappers away."""
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
    """PEFT's wrappers around linear maps."""
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]
