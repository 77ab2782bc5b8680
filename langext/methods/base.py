"""The Method contract: a frozen config that extends a model."""

from typing import TYPE_CHECKING, Any, ClassVar

from langext.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor


class Method(Spec):
    """Subclass it, add `name: Literal["..."]` and your fields, and override what differs from full fine-tuning."""

    paper: ClassVar[str]
    """Where the method comes from."""

    def check(self, config: Any) -> None:
        """Raise ConfigError when these settings cannot be applied to a model with this transformers config."""

    def extend(self, model: Any) -> None:
        """Add modules in place. Right after it the model computes exactly what the base computes."""

    def trainable(self, name: str) -> bool:
        """Does the parameter of this name learn? New vocabulary rows always do and are not asked about."""
        return True

    def penalty(self, model: Any, original_BT: "Tensor") -> dict[str, "Tensor"]:
        """Named scalar losses of the last forward pass, already weighted. `original_BT` marks original-language tokens."""
        return {}

    def diagnostics(self, model: Any) -> dict[str, "Tensor"]:
        """Per-layer figures of the last forward pass, each (L, B, T); {} if there are none."""
        return {}
