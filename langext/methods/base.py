"""The contract of a method: a frozen config that extends a model. Other code asks it for all that differs between methods."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from langext.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

    from langext.architectures.stock import Stock
    from langext.methods.calibrate import Calibrate
    from langext.methods.extension import Extension
    from langext.methods.gates import GateName
    from langext.methods.penalties.base import MicroBatch


class Method(Spec):
    """Base class of all methods; its functions describe full fine-tuning.

    A subclass adds `name: Literal["..."]` and its own fields, and overrides what differs from full fine-tuning.
    """

    paper: ClassVar[str]
    """URL of the paper that describes the method."""
    name: Any
    """The name that chooses the method; every subclass has a Literal here."""
    stackable: ClassVar[bool] = False
    """True if this method can extend a model that already has an extension by a stackable method."""
    copies: ClassVar[bool] = False
    """True if what it adds begins as copies of the base's weights."""

    def check(self, config: Any) -> None:
        """Raise ConfigError if these settings cannot be applied to a model with this transformers config."""
        from langext.architectures import families

        families.of(config)

    def extend(self, model: Any) -> None:
        """Add modules in place. Right after this, the model computes exactly what it computed before.

        Apart from the random start of new matrices, the result depends only on the settings and the model. So a later process
        can build the same modules again and load a delta into them.
        """

    def trainable(self, name: str, config: Any) -> bool:
        """True if the parameter with this name learns. Not called for new vocabulary rows, which always learn."""
        return True

    def constant(self, name: str) -> bool:
        """True if the parameter with this name is part of the extension but does not learn.

        It gets its value before the training, and a delta holds it beside the parameters that learn.
        """
        return False

    @property
    def block_gate(self) -> "GateName | None":
        """The gate of the blocks that this method adds; None if it adds no blocks."""
        return None

    @property
    def calibration(self) -> "Calibrate | None":
        """How the gates are calibrated before the training; None if the method has none that are."""
        return None

    @property
    def own_penalties(self) -> tuple[str, ...]:
        """Names of those losses of `penalty` that need text in an original language."""
        return ()

    def peak_lr(self, name: str, lr: float) -> float:
        """Peak learning rate of the parameter with this name; `lr` is that of the training."""
        return lr

    def decays(self, name: str) -> bool:
        """True if weight decay may pull the parameter with this name towards zero. Only matrices decay at all."""
        return True

    @property
    def reversible(self) -> bool:
        """True if the extended model still contains the base unchanged, so that `off` can restore it."""
        return False

    def extensions(self, model: Any) -> "list[Extension]":
        """The modules that this method added to the model, if it is the newest extension."""
        from langext.methods import extension

        return extension.newest(model)

    def off(self, model: Any) -> AbstractContextManager[None]:
        """A context in which the model computes what it computed before this method was added. Needs `reversible`."""
        from langext.methods import extension

        assert self.reversible, f"{self.name} changes the base's own weights"
        return extension.switched_off(self.extensions(model))

    def penalty(self, model: Any, micro_batch: "MicroBatch") -> "dict[str, Tensor]":
        """Name -> scalar loss for the last forward pass, already multiplied by its weight; {} if the method has none."""
        return {}

    def read_outside(self, model: Any) -> "list[Tensor]":
        """Parameters that `penalty` or `figures` read themselves. Under ZeRO 3 they are made whole for that."""
        return []

    def diagnostics(self, model: Any) -> "dict[str, Tensor]":
        """Name -> (L, B, T) values of the last forward pass, one for each layer and token; {} if the method has none."""
        return {}

    def figures(self, model: Any) -> dict[str, float]:
        """Name -> number that describes the present weights, for the training log; {} if the method has none."""
        return {}

    def linear_parts(self) -> tuple[str, ...] | None:
        """Name endings of the parameters that LiNeS scales: the change of the base is proportional to them.

        () means that LiNeS scales the difference of every trainable parameter from its start. None means that the change cannot
        be scaled layer by layer.
        """
        return ()

    def layer(self, name: str, config: Any) -> tuple[int, int] | None:
        """(index, depth): the layer of a parameter, counted from 0, and the number of layers, both in the exported model.

        None for a parameter outside the layers. `config` is the base's.
        """
        parts = name.split(".")
        if "layers" not in parts:
            return None
        return int(parts[parts.index("layers") + 1]), config.num_hidden_layers

    def dense(self) -> bool:
        """True if `fold` returns a model with the shapes of the base, so that it can be merged with other such models."""
        return True

    def layer_types(self, config: Any) -> list[str] | None:
        """The kind of attention of each layer of the folded model; None if all layers have the same kind."""
        return getattr(config, "layer_types", None)

    def obstacle(self, config: Any) -> str:
        """The reason why no stock architecture can compute this method on a base with this config; "" if one can."""
        return ""

    def architecture(self, config: Any) -> str:
        """The architecture of the model that `fold` returns, in words."""
        return "the base's own architecture"

    def fold(self, model: Any) -> "Stock":
        """A model of a stock architecture that computes the same function. `model` itself stays as it is."""
        from langext.architectures import stock

        return stock.of(model)
