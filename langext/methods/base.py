"""The Method contract: a frozen config that extends a model."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from langext.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

    from langext.architectures.stock import Stock
    from langext.methods.extension import Extension
    from langext.methods.gates import GateName
    from langext.methods.penalties.base import Portion


class Method(Spec):
    """Subclass it, add `name: Literal["..."]` and your fields, and override what differs from full fine-tuning."""

    paper: ClassVar[str]
    """Where the method comes from."""
    name: Any
    """Chooses the method; a Literal in every subclass."""
    stackable: ClassVar[bool] = False
    """Can it be added to a model that has a stackable extension already?"""

    def check(self, config: Any) -> None:
        """Raise ConfigError when these settings cannot be applied to a model with this transformers config."""
        from langext.architectures import families

        families.of(config)

    def extend(self, model: Any) -> None:
        """Add modules in place. Right after it the model computes exactly what the base computes.

        Everything but the random start of new matrices is a function of the base alone, so that a delta can be loaded.
        """

    def trainable(self, name: str, config: Any) -> bool:
        """Does the parameter of this name learn? New vocabulary rows always do and are not asked about."""
        return True

    @property
    def block_gate(self) -> "GateName | None":
        """The gate of the blocks that this method adds; None when it adds none."""
        return None

    @property
    def own_penalties(self) -> tuple[str, ...]:
        """Names of the losses that `penalty` gives and that act on original-language text."""
        return ()

    def own_lr(self, name: str) -> float | None:
        """Peak learning rate of this parameter where it is not the training's."""
        return None

    @property
    def reversible(self) -> bool:
        """Does the extended model still hold the base, so that `off` can bring it back?"""
        return False

    def extensions(self, model: Any) -> "list[Extension]":
        """The modules that this method added to the model."""
        from langext.methods import extension

        return extension.newest(model)

    def off(self, model: Any) -> AbstractContextManager[None]:
        """Within it the model computes what it did before this method. Only for a `reversible` one."""
        from langext.methods import extension

        assert self.reversible, f"{self.name} changes the base's own weights"
        return extension.switched_off(self.extensions(model))

    def penalty(self, model: Any, portion: "Portion") -> "dict[str, Tensor]":
        """Named scalar losses of the last forward pass, already weighted."""
        return {}

    def diagnostics(self, model: Any) -> "dict[str, Tensor]":
        """Per-layer figures of the last forward pass, each (L, B, T); {} if there are none."""
        return {}

    def figures(self, model: Any) -> dict[str, float]:
        """Figures about the weights themselves, by name."""
        return {}

    def linear_parts(self) -> tuple[str, ...] | None:
        """Ends of the names of parameters that the change of the base is proportional to, for LiNeS.

        () means all trainable ones, measured from where they started; None that the change cannot be scaled layer by layer.
        """
        return ()

    def layer(self, name: str, config: Any) -> tuple[int, int] | None:
        """(index, depth) of the layer that a parameter lies in, counted from 0 in the model as exported; None outside.

        `config` is the base's.
        """
        parts = name.split(".")
        if "layers" not in parts:
            return None
        return int(parts[parts.index("layers") + 1]), config.num_hidden_layers

    def dense(self) -> bool:
        """Does `fold` give a model with the base's own shapes, so that models of several such methods can be merged?"""
        return True

    def layer_types(self, config: Any) -> list[str] | None:
        """What kind of attention each layer of the folded model has; None where the base has one kind."""
        return getattr(config, "layer_types", None)

    def obstacle(self, config: Any) -> str:
        """Why no stock architecture computes this method on a base of this config; empty when one does."""
        return ""

    def architecture(self, config: Any) -> str:
        """In words, what `fold` makes."""
        return "the base's own architecture"

    def fold(self, model: Any) -> "Stock":
        """The same function as a model of a stock architecture. `model` stays as it is."""
        from langext.architectures import stock

        return stock.of(model)
