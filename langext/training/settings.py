"""Every key of a training. Stage train has them, and the loop reads them."""

from typing import Literal

from pydantic import Field, field_validator

from langext.context import Runtime
from langext.methods.penalties import AnyPenalty
from langext.methods.penalties.base import Penalty
from langext.spec import ConfigError, Spec
from langext.training.schedule import Kind, Schedule
from langext.training.selection import ForgettingBudget


class Settings(Spec):
    """What is trained on, for how long, how, and what is watched on the way."""

    steps: int = Field(gt=0)
    """Optimizer steps."""
    sequence_length: int = Field(1024, ge=16)
    """Tokens in a packed sequence. Documents in it do not see each other."""
    batch_sequences: int = Field(64, ge=1)
    """Sequences in one optimizer step, over all processes."""
    lr: float = Field(gt=0)
    """Peak learning rate. New blocks want far more (1e-3 to 1e-2) than full fine-tuning (1e-5 to 1e-4)."""
    schedule: Kind = "cosine"
    """How the rate goes down after the warmup: cosine; wsd, the peak until the last decay_frac of the steps; or constant."""
    warmup_steps: int = Field(10, ge=0)
    """Steps of linear warmup from zero."""
    min_lr_frac: float = Field(0.1, ge=0, le=1)
    """cosine and wsd end at this share of the peak."""
    decay_frac: float = Field(0.2, gt=0, le=1)
    """wsd: share of the steps, the last ones, in which the rate goes down."""
    original_frac: float = Field(0.1, ge=0, lt=1)
    """Share of training tokens in the original languages. The paper's p = 0.1."""
    original_first_frac: float | None = Field(None, gt=0, lt=1)
    """That share in the first tenth of the steps, where most is forgotten, if it is to be another one there."""
    shares: dict[str, float] = {}
    """Shares of all training tokens of single languages (eng_Latn) or sources (fra_Latn/wikipedia). What is not named gets the
    rest: original languages equal parts of original_frac, sources of a language by their size."""
    exhaustion: Literal["repeat", "stop"] = "repeat"
    """When a source has been read once: shuffle it anew and go on, or end the training before that step."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay, of matrices alone."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decays."""
    clip: float = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay, in every step, of a running average of the weights; the average is what is measured and kept."""
    penalties: list[AnyPenalty] = []
    """Terms added to the loss beside the method's own: local, domain_ce, ldifs, l2sp, each with its `weight`."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16 keeps float32 masters of what learns, and everything else in bf16 alone."""
    result: Literal["last", "best"] = "last"
    """Which weights become the model: the last ones, or those of the evaluation with the fewest bits per byte of the new
    language."""
    forgetting_budget: ForgettingBudget | None = None
    """What the original languages may lose; the model becomes the best evaluation within it."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of progress."""
    eval_every: int = Field(100, ge=1)
    """Steps between measurements of bits per byte on held-out text."""
    eval_bytes: int = Field(20_000, ge=1000)
    """Held-out bytes per language and domain that are measured during training."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints stay on disk while training."""

    @field_validator("betas")
    @classmethod
    def _betas(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("betas must be in [0, 1)")
        return value

    @field_validator("penalties")
    @classmethod
    def _once(cls, value: list[Penalty]) -> list[Penalty]:
        names = [penalty.name for penalty in value]
        if len(set(names)) < len(names):
            raise ValueError("each penalty can be given once")
        return value

    @field_validator("shares")
    @classmethod
    def _shares(cls, value: dict[str, float]) -> dict[str, float]:
        if odd := [name for name, share in value.items() if not 0 <= share <= 1]:
            raise ValueError(f"the share of {odd[0]} must be between 0 and 1")
        return value

    runtime: Runtime = Runtime()
    """Where and how fast the training runs."""

    def accumulate(self) -> int:
        """Micro-batches per optimizer step and process. Raises ConfigError when the batch cannot be cut evenly."""
        whole, processes, micro = self.batch_sequences, self.runtime.processes, self.runtime.micro_batch
        if whole % (processes * micro):
            raise ConfigError(f"batch_sequences {whole} is no multiple of {processes} processes x micro_batch {micro}")
        return whole // (processes * micro)

    def rates(self, steps: int) -> Schedule:
        """The learning rate over so many steps, as a factor of `lr`."""
        return Schedule(self.schedule, steps, self.warmup_steps, self.min_lr_frac, self.decay_frac)
