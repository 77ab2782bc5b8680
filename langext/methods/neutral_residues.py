"""Neutral residues: a gated residual block beside every feed-forward network, near zero on the original language.

Talla, Grave and Jegou, "Neutral Residues: Revisiting Adapters for Model Extension", https://arxiv.org/abs/2410.02744.
The base is frozen. A local loss, the L1 norm of what a block adds on original-language tokens, keeps that addition near zero.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from langext.methods import gates
from langext.methods.calibrate import Calibrate
from langext.methods.gates import GATES, GateName
from langext.methods.penalties import domain_ce, local
from langext.methods.penalties.base import MicroBatch
from langext.methods.residue import ROUTER, Parallel, Residue
from langext.spec import LATER

LocalLoss = Literal["l1", "domain_ce", "none"]
Init = Literal["low_variance", "lecun", "he"]


def _usual_loss(gate: GateName | None) -> LocalLoss:
    """The local loss of blocks with this gate, where the user names none."""
    return "none" if gate is not None and GATES[gate].threshold else "l1"


def _usual_init(gate: GateName | None) -> Init:
    """The start of blocks with this gate, where the user names none."""
    return "he" if gate is not None and GATES[gate].threshold else "low_variance"


class NeutralResidues(Parallel):
    """Gated residual blocks that stay near zero on the original language."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.02744"
    name: Literal["neutral_residues"]
    gate: GateName = "threshold"
    """Gate of the blocks. threshold is 1 where w . x > t and else 0; its w and t are calibrated on the base before the training
    and do not learn. relu is that of the paper, elu that of its first version. sigmoid and hard_sigmoid (zero where the sigmoid
    is below 0.5) learn and can be exported to stock architectures. none is for an ablation."""
    init: Init = Field(default_factory=lambda given: _usual_init(given.get("gate")))
    """Variance of the random input weights: low_variance 1/(D L) (that of the paper), lecun 1/D, he 2/D (learns faster); D is
    the model width, L the number of layers. The output weights start at zero. If not given, he with the gate threshold, and
    low_variance with the others."""
    local_loss: LocalLoss = Field(default_factory=lambda given: _usual_loss(given.get("gate")))
    """l1: the mean over layers and original-language tokens of |g(x) A(x)|_1 / D. domain_ce: the mean over all tokens of the
    cross-entropy between sigmoid(z) and the token's language (1 new, 0 original), for the gates sigmoid and hard_sigmoid. l1 if
    not given, but none with the gate threshold: it is closed on the original language anyway. With l1 its blocks also learn to
    add little to those original-language tokens that it opens for."""
    alpha: float = Field(0.01, ge=0)
    """Weight of the local loss. Raise it for less forgetting and less learning."""
    calibrate: Annotated[Calibrate, LATER] = Calibrate()
    """How rows and thresholds are found before the training, for the gate threshold."""
    gate_lr_factor: Annotated[float, Field(gt=0), LATER] = 1.0
    """Learning rate of the gates, as a multiple of that of the training. To tell languages apart is another task than to learn
    one: https://arxiv.org/abs/2605.19028 takes 5 for gates that begin closed. Higher values open and close gates faster."""

    @model_validator(mode="after")
    def _gate_and_loss(self) -> "NeutralResidues":
        if self.local_loss == "domain_ce" and not GATES[self.gate].is_probability:
            probable = ", ".join(name for name, gate in GATES.items() if gate.is_probability)
            raise ValueError(f"local_loss domain_ce needs a gate that is a probability ({probable}), not {self.gate}")
        if self.calibrate != Calibrate() and not GATES[self.gate].threshold:
            raise ValueError(f"calibrate is for the gate threshold, not {self.gate}")
        if self.gate_lr_factor != 1 and (not gates.has(self.gate) or GATES[self.gate].threshold):
            raise ValueError(f"gate_lr_factor is for gates that learn, and gate is {self.gate}")
        return self

    def peak_lr(self, name: str, lr: float) -> float:
        """`gate_lr_factor` times the learning rate of the training for the gates; that of the training for the rest."""
        return lr * self.gate_lr_factor if f".{ROUTER}." in name else lr

    @property
    def calibration(self) -> Calibrate | None:
        """`calibrate`, for a gate with a threshold."""
        return self.calibrate if GATES[self.gate].threshold else None

    @property
    def own_penalties(self) -> tuple[str, ...]:
        """The name of the local loss; () if it is switched off."""
        return (
            ()
            if self.local_loss == "none" or self.alpha == 0
            else ({"l1": "local", "domain_ce": "domain_ce"}[self.local_loss],)
        )

    def prepare(self, block: Residue) -> None:
        """Make the block keep the values that the local loss reads."""
        block.watched = self.local_loss != "none" and self.alpha > 0

    def penalty(self, model: Any, micro_batch: MicroBatch) -> dict[str, Tensor]:
        """The local loss, multiplied by `alpha`."""
        if self.local_loss == "none" or self.alpha == 0:
            return {}
        name, value = ("local", local.value) if self.local_loss == "l1" else ("domain_ce", domain_ce.value)
        return {name: self.alpha * value(self.extensions(model), micro_batch)}
