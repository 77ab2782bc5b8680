"""The Penalty contract: a frozen config that adds one term to the loss, whatever the method."""

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from langext.spec import ConfigError, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from langext.portion import Portion

Term = Callable[["Portion", "Tensor", "Tensor"], "Tensor"]
"""(portion, input_ids_BT, position_ids_BT) of the micro-batch that has just run -> its unweighted contribution, a scalar."""


class Penalty(Spec):
    """Subclass it, add `name: Literal["..."]`, and override both functions."""

    paper: ClassVar[str]
    """Where the penalty comes from."""
    name: Any
    """Chooses the penalty; a Literal in every subclass."""
    weight: float = Field(gt=0)
    """What the term is multiplied by. Raise it for less forgetting and less learning."""

    needs_original: ClassVar[bool] = True
    """Does it act on original-language text, so that there has to be some?"""

    def check(self, method: Any) -> None:
        """Raise ConfigError when this penalty means nothing for this method. Subclasses call this one too."""
        if self.name in method.own_penalties:
            raise ConfigError(f"{self.name}: {method.name} has this loss itself; set its weight with the method's alpha")

    @abstractmethod
    def attach(self, net: Any, method: Any, reference: Callable[[], Any]) -> Term:
        """Set up the term on the model as it is before training. `reference` loads a frozen copy of it."""
