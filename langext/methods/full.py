"""Full fine-tuning: every parameter learns, or all but those of some layers. The baseline that learns most and forgets most."""

from typing import Annotated, Any, ClassVar, Literal

from langext.methods.base import Method
from langext.methods.layers import AnyLayers, numbers
from langext.spec import LATER


class Full(Method):
    """Continued pretraining of all weights."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2004.10964"
    name: Literal["full"]
    freeze: Annotated[AnyLayers, LATER] = None
    """Layers that do not learn, with all that is in them, norms too: middle (as https://arxiv.org/abs/2606.00284 freezes them),
    all, a list of layer numbers from 0, or {top: n}. The embeddings, the head and the last norm always learn. More frozen
    layers forget less and learn less."""

    def check(self, config: Any) -> None:
        """Raise ConfigError if the base has no such layer."""
        super().check(config)
        numbers(self.freeze, config.num_hidden_layers, "freeze")

    def trainable(self, name: str, config: Any) -> bool:
        """True for every parameter outside the frozen layers."""
        place = self.layer(name, config)
        return place is None or place[0] not in numbers(self.freeze, place[1], "freeze")
