"""The contract of a penalty: a frozen config that adds one term to the loss, for every method that it fits."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from langext.errors import ConfigError
from langext.spec import Spec

Term = Callable[["MicroBatch", Tensor, Tensor], Tensor]
"""(micro_batch, input_ids_BT, position_ids_BT) of the micro-batch that has just run -> its part of the term: a scalar, before
`weight` is applied."""


class Penalty(Spec):
    """Base class of all penalties. A subclass adds `name: Literal["..."]`, overrides `attach` and may override `check`."""

    paper: ClassVar[str]
    """URL of the paper that describes the penalty."""
    name: Any
    """The name that chooses the penalty; every subclass has a Literal here."""
    weight: float = Field(gt=0)
    """Factor of the term in the loss. Raise it for less forgetting and less learning."""

    needs_original: ClassVar[bool] = True
    """True if the penalty acts on original-language text, so that the training needs such text."""
    reads_states: ClassVar[bool] = False
    """True if the penalty reads the states of layers that may not learn, so that every step must compute them."""
    reads_weights: ClassVar[bool] = False
    """True if the penalty reads weights outside the model's own forward pass. Under ZeRO 3 the weights are split between
    processes, so such a penalty cannot work there."""

    def check(self, method: Any) -> None:
        """Raise ConfigError if this penalty makes no sense with this method. A subclass that overrides it calls it too."""
        if self.name in method.own_penalties:
            raise ConfigError(f"{self.name}: {method.name} has this loss itself; set its weight with the method's alpha")

    @abstractmethod
    def attach(self, net: Any, method: Any, reference: Callable[[], Any]) -> Term:
        """The term for a training of `net`, called when the model still has its weights from before the training.

        `reference` loads a frozen copy of that model.
        """


@dataclass(frozen=True)
class MicroBatch:
    """The part that one micro-batch has in an optimizer step.

    An optimizer step adds up its micro-batches, so each function here returns a scalar whose sum over the micro-batches is the
    value for the step.
    """

    original_BT: Tensor
    """(B, T) boolean: True for tokens in an original language, False for tokens in the new language."""
    num_original: int
    """Number of original-language tokens in the whole step."""
    num_tokens: int
    """Number of tokens in the whole step."""
    done: float
    """Share of the training's steps that are over, in [0, 1)."""

    def original_mean(self, values_BT: Tensor) -> Tensor:
        """The contribution of this micro-batch to the mean of a value over the original-language tokens of the step."""
        return (values_BT * self.original_BT).sum() / max(1, self.num_original)

    def mean(self, values_BT: Tensor) -> Tensor:
        """The contribution of this micro-batch to the mean of a value over all tokens of the step."""
        return values_BT.sum() / self.num_tokens

    def once(self, value: Tensor) -> Tensor:
        """The contribution of this micro-batch to a value that does not depend on tokens: its share of the step's tokens."""
        return value * (self.original_BT.numel() / self.num_tokens)
