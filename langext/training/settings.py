"""All configuration keys of a training. Stage train inherits them, and the training loop reads them."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from langext.architectures import families
from langext.context import Context, Runtime
from langext.errors import ConfigError
from langext.methods.penalties import AnyPenalty
from langext.methods.penalties.base import Penalty
from langext.spec import Spec
from langext.training.schedule import Kind, Schedule
from langext.training.selection import ForgettingBudget

if TYPE_CHECKING:
    from langext.architectures.precision import Precision


class Settings(Spec):
    """What a training reads, how long it runs, how it learns, and what it measures meanwhile."""

    steps: int = Field(gt=0)
    """Number of optimizer steps. More steps train longer on more text."""
    sequence_length: int = Field(1024, ge=16)
    """Tokens in a packed sequence. Documents in one sequence do not see each other. Longer sequences need more memory."""
    batch_sequences: int = Field(64, ge=1)
    """Sequences in one optimizer step, over all processes. More give a steadier gradient and take longer per step."""
    lr: float = Field(gt=0)
    """Peak learning rate. New blocks need far more (1e-3 to 1e-2) than full fine-tuning (1e-5 to 1e-4); low-rank changes need
    about 10 times as much as it, 15 times in less than 100 steps (https://thinkingmachines.ai/blog/lora/)."""
    schedule: Kind = "cosine"
    """How the learning rate falls after the warmup: cosine; wsd, which stays at the peak until the last decay_frac of the
    steps; or constant, which stays at the peak."""
    warmup_steps: int = Field(10, ge=0)
    """Steps in which the learning rate rises linearly from zero to the peak."""
    min_lr_frac: float = Field(0.1, ge=0, le=1)
    """The learning rate at the end of cosine and wsd, as a share of the peak."""
    decay_frac: float = Field(0.2, gt=0, le=1)
    """wsd: share of the steps, at the end, in which the learning rate falls."""
    original_frac: float = Field(0.1, ge=0, lt=1)
    """Share of training tokens in the original languages; 0.1 in the paper. Raise it to forget less and learn more slowly."""
    original_first_frac: float | None = Field(None, gt=0, lt=1)
    """original_frac for the first tenth of the steps, where models forget most; original_frac itself when not given."""
    shares: dict[str, float] = {}
    """Share of all training tokens, for single languages (eng_Latn) or sources (fra_Latn/wikipedia). Those that are not named
    divide the rest: original languages in equal parts of original_frac, the sources of a language by their size."""
    exhaustion: Literal["repeat", "stop"] = "repeat"
    """What to do when a source has been read once: repeat shuffles it and goes on; stop ends the training before that step."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay, for matrices only. Higher values pull weights more strongly towards zero."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the first and the second moment of the gradient. Higher values average over more steps."""
    clip: float = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down to it."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay per step of a running average of the weights, which is then what is measured and kept. Closer to 1 averages over
    more steps; no average when not given."""
    penalties: list[AnyPenalty] = []
    """Terms added to the loss, in addition to those of the method: local, domain_ce, ldifs, l2sp, each with its `weight`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 keeps the trainable weights in float32 as well, and everything else only in bf16. fp32 keeps all in float32. auto:
    bf16 on GPUs and on CPUs that compute in it, else fp32; a training goes on in the precision it began with or not at all."""
    result: Literal["last", "best"] = "last"
    """Which weights become the model: the last ones, or the best, from the evaluation with the fewest bits per byte in the new
    language."""
    forgetting_budget: ForgettingBudget | None = None
    """What the original languages may lose; the model gets the weights of the best evaluation within this budget."""
    log_every: int = Field(10, ge=1)
    """Steps between two lines of progress."""
    eval_every: int = Field(100, ge=1)
    """Steps between two measurements on held-out text. Lower values see changes earlier and take more time."""
    eval_bytes: int = Field(20_000, ge=1000)
    """Held-out bytes per language and domain that each measurement reads. More are more exact and take longer."""
    save_every: int = Field(100, ge=1)
    """Steps between two checkpoints. Higher values save time, and a killed training loses more steps."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of checkpoints that stay on disk during training, the newest ones. More need more disk."""

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

    def computes_in(self) -> "Precision":
        """`precision`, with auto as this machine decides it."""
        from langext.architectures import precision

        return precision.chosen(self.precision, self.runtime.gpus)

    def accumulate(self) -> int:
        """Micro-batches per optimizer step and process. Raises ConfigError when the batch cannot be divided evenly."""
        whole, processes, micro = self.batch_sequences, self.runtime.processes, self.runtime.micro_batch
        if whole % (processes * micro):
            raise ConfigError(f"batch_sequences {whole} is no multiple of {processes} processes x micro_batch {micro}")
        return whole // (processes * micro)

    def keeps_prefix(self, first: int, config: Any) -> bool:
        """True when the states that enter layer `first`, the lowest that learns, may be read instead of computed."""
        watched = any(penalty.reads_states for penalty in self.penalties)
        random = getattr(config, "attention_dropout", 0.0)  # dropout gives other states each time
        between = 0 < first < config.num_hidden_layers
        return self.runtime.prefix_cache == "auto" and between and not watched and not random

    def check_length(self, config: Any) -> None:
        """Raise ConfigError when sequences are longer than a base with this transformers config has positions."""
        positions = families.positions(config)
        if positions is not None and self.sequence_length > positions:
            raise ConfigError(
                f"sequence_length is {self.sequence_length}, and the base has {positions} positions (max_position_embeddings)",
                at=("sequence_length",),
            )

    def check_text(self, ctx: Context, trained: Collection[str], measured: Collection[str]) -> None:
        """Raise ConfigError when shares, original_frac, forgetting_budget or result need text that is not there.

        `trained` are the sources (`<language>/<domain>`) with text to train on, `measured` those with held-out text.
        """
        from langext.data import mixture

        fracs = [self.original_frac] if self.original_first_frac is None else [self.original_first_frac, self.original_frac]
        for frac in fracs:
            mixture.shares(dict.fromkeys(trained, 1), ctx.language, ctx.original_languages, frac, self.shares)
        self.check_heldout(ctx, measured)

    def check_heldout(self, ctx: Context, measured: Collection[str]) -> None:
        """Raise ConfigError when forgetting_budget or result needs held-out text of a language that is not in `measured`."""
        missing = set(ctx.languages) - {name.split("/")[0] for name in measured}
        if self.forgetting_budget and (unseen := [code for code in ctx.original_languages if code in missing]):
            raise ConfigError(
                f"forgetting_budget: there is no held-out text of {', '.join(unseen)} to measure what is forgotten",
                at=("forgetting_budget",),
            )
        if (self.forgetting_budget or self.result == "best") and ctx.language in missing:
            key = "result" if self.result == "best" else "forgetting_budget"
            raise ConfigError(f"{key}: there is no held-out text of {ctx.language} to find the best evaluation with", at=(key,))

    def rates(self, steps: int) -> Schedule:
        """The learning-rate schedule for a training of `steps` steps, as a factor of `lr`."""
        return Schedule(self.schedule, steps, self.warmup_steps, self.min_lr_frac, self.decay_frac)
