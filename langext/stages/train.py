"""Stage train: trains on a mixture of new and original text, with the penalties of the method, under DeepSpeed."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from langext import ready
from langext.artifacts import CHECKPOINTS, Corpus, Model
from langext.console import warn
from langext.context import Context
from langext.errors import ConfigError
from langext.methods.base import Method
from langext.stages.base import Stage
from langext.training.settings import Settings

WATCHING = {"eval_every", "eval_bytes", "log_every", "save_every", "keep_checkpoints"}
"""Keys that decide how often a training measures, logs and saves."""
DECIDING = {"eval_every", "eval_bytes"}
"""Those of them that decide which weights are kept, where the best ones are."""


class Train(Settings, Stage):
    """Train the weights that the method makes trainable."""

    parallel: ClassVar[bool] = True
    needs_extension: ClassVar[bool] = True
    uses: Literal["train"]

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """Raise ConfigError when sequences or attention do not fit the base, or a penalty not the method or the text."""
        if not given:
            return
        if self.runtime.attention == "sdpa" and getattr(config, "attn_logit_softcapping", None):
            raise ConfigError("runtime.attention: sdpa leaves out this base's softcap; use auto or eager", at=("runtime",))
        replayed = self.original_frac > 0 or bool(self.original_first_frac)
        for number, penalty in enumerate(self.penalties):
            try:
                penalty.check(given[-1])
            except ConfigError as error:
                raise ConfigError(str(error), at=("penalties", number)) from None
            if penalty.needs_original and not replayed:
                raise ConfigError(f"{penalty.name} acts on original text, and original_frac is 0", at=("penalties", number))
        if given[-1].own_penalties and not replayed:
            raise ConfigError(
                f"the local loss of {given[-1].name} acts on original text, and original_frac is 0; raise it, or set the "
                "method's local_loss to none",
                at=("original_frac",),
            )
        if config is not None:
            self.check_length(config)

    def check(self, ctx: Context) -> None:
        """Raise ConfigError when the settings do not fit each other, the DeepSpeed file, or the memory of this machine."""
        from langext.data import mixture
        from langext.training import deepspeed_file
        from langext.training.checkpoints import Checkpoints

        config = deepspeed_file.read(self.runtime.deepspeed)
        zero = deepspeed_file.zero_stage(config)
        if self.runtime.deepspeed not in ready.names("deepspeed", ".json"):  # DeepSpeed's import takes long
            from langext.training import engine

            engine.check_zero(self.runtime.deepspeed, config)
        self.accumulate()
        mixture.check_size(self.steps * self.batch_sequences)
        if self.warmup_steps > self.steps:
            problem = f"warmup_steps is {self.warmup_steps} and steps {self.steps}: the learning rate never reaches its peak"
            if "warmup_steps" in self.model_fields_set:
                raise ConfigError(problem, at=("warmup_steps",))
            warn(f"{self.name or self.uses}: {problem}; give a smaller warmup_steps")
        # A training in float32 that was begun elsewhere goes on in it, whatever this machine would begin with.
        if zero == 0 and self.computes_in() == "bf16" and not Checkpoints(ctx.out / CHECKPOINTS, 1).steps():
            raise ConfigError(
                f"{self.runtime.deepspeed}: ZeRO stage 0 keeps no float32 masters of bf16 weights; use stage 1, which on one "
                "process does the same with them, or precision fp32",
                at=("runtime", "deepspeed"),
            )
        if zero == 3 and self.ema:
            raise ConfigError("ema needs ZeRO stage 0, 1 or 2; stage 3 shares out the weights it would average", at=("ema",))
        for number, penalty in enumerate(self.penalties):
            if zero == 3 and penalty.reads_weights:
                raise ConfigError(
                    f"{penalty.name} needs ZeRO stage 0, 1 or 2; stage 3 shares out weights that it reads by itself",
                    at=("penalties", number),
                )
        if self.runtime.attention == "flash_attention_2" and self.precision == "fp32":
            raise ConfigError(
                "runtime.attention: flash_attention_2 computes in bf16 only; use sdpa", at=("runtime", "attention")
            )
        if self.runtime.attention == "flash_attention_2" and self.runtime.micro_batch > 1:
            raise ConfigError(
                "runtime.attention: with flash_attention_2 transformers keeps packed documents apart only when a batch is one "
                "sequence; set runtime.micro_batch to 1 (and a longer sequence_length), or use sdpa",
                at=("runtime", "micro_batch"),
            )

    def choices(self) -> dict[str, Any]:
        """The deciding fields, without the keys in `WATCHING`; evaluations decide where the best one becomes the model."""
        chooses = self.result == "best" or self.forgetting_budget is not None
        left_out = WATCHING - DECIDING if chooses else WATCHING
        return {key: value for key, value in super().choices().items() if key not in left_out}

    def prepare(self, ctx: Context, **inputs: Any) -> None:
        """Turn the training text into token ids, once for all trainings with this text and tokenizer."""
        from langext.data import tokens
        from langext.models import loading

        tokenizer = loading.load_tokenizer(loading.tokenizer_folder(inputs["model"]))
        tokens.tokenise(ctx.tokens, inputs["corpus"], tokenizer, ctx.languages)

    def tidy(self, out: Path) -> None:
        """Delete the checkpoints."""
        import shutil

        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)

    def run(self, ctx: Context, model: Model, corpus: Corpus) -> Model:
        """Train the model, resume from a checkpoint if there is one, and write the delta."""
        from langext.training.loop import train

        return train(self, ctx, model, corpus)
