"""The Penalty contract: a frozen config that adds one term to the loss, whatever the method."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from torch import Tensor

from langext.spec import ConfigError, Spec

if TYPE_CHECKING:
    from torch import Tensor

    pass

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
    reads_weights: ClassVar[bool] = False
    """Does it read weights outside the model's own forward pass? ZeRO 3 shares them out, so that there is nothing to read."""

    def check(self, method: Any) -> None:
        """Raise ConfigError when this penalty means nothing for this method. Subclasses call this one too."""
        if self.name in method.own_penalties:
            raise ConfigError(f"{self.name}: {method.name} has this loss itself; set its weight with the method's alpha")

    @abstractmethod
    def attach(self, net: Any, method: Any, reference: Callable[[], Any]) -> Term:
        """Set up the term on the model as it is before training. `reference` loads a frozen copy of it."""


@dataclass(frozen=True)
class Portion:
    """One micro-batch's part of an optimizer step."""

    original_BT: Tensor
    """Which tokens are of an original language; the others are of the new one."""
    num_original: int
    """Original-language tokens in the whole step."""
    num_tokens: int
    """Tokens in the whole step."""
    done: float
    """Share of the training's steps that lie behind, in [0, 1)."""

    def original_mean(self, values_BT: Tensor) -> Tensor:
        """This part's contribution to the mean over the step's original-language tokens."""
        return (values_BT * self.original_BT).sum() / max(1, self.num_original)

    def mean(self, values_BT: Tensor) -> Tensor:
        """This part's contribution to the mean over all tokens of the step."""
        return values_BT.sum() / self.num_tokens

    def once(self, value: Tensor) -> Tensor:
        """This part's contribution to a value that does not depend on tokens."""
        return value * (self.original_BT.numel() / self.num_tokens)
