"""Stage train: language-model loss on a mixture of new and original text plus the method's penalties, under DeepSpeed.

The loop is one function that reads from top to bottom. Everything it logs goes to metrics.jsonl; the report reads that.
"""

import math
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from langext.artifacts import CHECKPOINTS, Corpus, Model
from langext.console import duration, say
from langext.methods.base import Method
from langext.metrics import Log, Tally
from langext.penalties import AnyPenalty
from langext.penalties.base import Penalty
from langext.portion import Portion
from langext.spec import ConfigError
from langext.stage import Context, Stage

if TYPE_CHECKING:
    from langext.mixture import Mixture
    from langext.modeling import LiveModel


class Train(Stage):
    """Train what the method made trainable."""

    parallel: ClassVar[bool] = True
    needs_extension: ClassVar[bool] = True
    uses: Literal["train"]
    steps: int = Field(gt=0)
    """Optimizer steps."""
    sequence_length: int = Field(1024, ge=16)
    """Tokens in a packed sequence. Documents in it do not see each other."""
    batch_sequences: int = Field(64, ge=1)
    """Sequences in one optimizer step, over all processes."""
    lr: float = Field(gt=0)
    """Peak learning rate. New blocks want far more (1e-3 to 1e-2) than full fine-tuning (1e-5 to 1e-4)."""
    warmup_steps: int = Field(10, ge=0)
    """Steps of linear warmup from zero."""
    min_lr_frac: float = Field(0.1, ge=0, le=1)
    """The cosine schedule ends at this share of the peak."""
    original_frac: float = Field(0.1, ge=0, lt=1)
    """Share of training tokens in the original languages. The paper's p = 0.1."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decays."""
    clip: float = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    penalties: list[AnyPenalty] = []
    """Terms added to the loss beside the method's own: local, domain_ce, ldifs, l2sp, each with its `weight`."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16 keeps float32 masters of what learns."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of progress."""
    eval_every: int = Field(100, ge=1)
    """Steps between measurements of bits per byte on held-out text."""
    eval_bytes: int = Field(20_000, ge=1000)
    """Held-out bytes per language and domain that are measured during training."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints."""

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

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """Every penalty means something for the method."""
        for number, penalty in enumerate(self.penalties if given else ()):
            try:
                penalty.check(given[-1])
            except ConfigError as error:
                raise ConfigError(str(error), at=("penalties", number)) from None

    def check(self, ctx: Context) -> None:
        """The DeepSpeed file is readable, and the batch can be shared out."""
        from langext.engine import read_deepspeed

        read_deepspeed(self.runtime.deepspeed)
        self.accumulate()

    def tidy(self, out: Path) -> None:
        """Drop the checkpoints."""
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)

    def accumulate(self) -> int:
        """Micro-batches per optimizer step and process. Raises ConfigError when the batch cannot be cut evenly."""
        whole, processes, micro = self.batch_sequences, self.runtime.processes, self.runtime.micro_batch
        if whole % (processes * micro):
            raise ConfigError(f"batch_sequences {whole} is no multiple of {processes} processes x micro_batch {micro}")
        return whole // (processes * micro)

    def lr_at(self, step: int) -> float:
        """Learning rate of the 0-based `step`: linear warmup, then cosine down to min_lr_frac * lr at the last step."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - 1 - self.warmup_steps)
        return self.lr * (self.min_lr_frac + (1 - self.min_lr_frac) * (1 + math.cos(math.pi * min(1.0, done))) / 2)

    def run(self, ctx: Context, model: Model, corpus: Corpus) -> Model:
        """Train, resuming from a checkpoint if there is one, and write the delta."""
        import torch

        from langext import engine, losses, modeling
        from langext.diagnostics import Watch

        device = engine.join_processes()
        torch.manual_seed(ctx.seed)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        live = modeling.load(model, dtype, str(device))
        method = live.method
        assert method is not None and modeling.read_record(model).method is not None, "refused when planning"
        live.freeze()
        if self.runtime.activation_checkpointing:
            live.net.activation_checkpointing_enable({"use_reentrant": False})
        mixture = self._mixture(ctx, corpus, live)
        probes = self._probes(ctx, corpus)
        accumulate = self.accumulate()

        def base() -> Any:
            return modeling.load(model, dtype, str(device), trained=False).net.requires_grad_(False)

        watch = Watch(ctx, live, modeling.load_tokenizer(modeling.read_record(model).base), base, probes)
        terms = {p.name: (p.weight, p.attach(live.net, method, base)) for p in self.penalties}
        runner = engine.Engine(
            losses.Objective(live.net, method, terms), live.net, engine.read_deepspeed(self.runtime.deepspeed),
            micro_batch=self.runtime.micro_batch, accumulate=accumulate, clip=self.clip, bf16=self.precision == "bf16",
            peak=lambda name: method.own_lr(name) or self.lr, betas=self.betas, weight_decay=self.weight_decay,
        )  # fmt: skip
        state = runner.load(ctx.out / CHECKPOINTS) or {"step": 0, "seconds": 0.0}
        log = Log(ctx, state["step"])
        if state["step"]:
            log.say(f"  resuming at step {state['step']} of {self.steps}")
        stop = Stop()
        step_tokens = self.batch_sequences * self.sequence_length
        began, first = time.monotonic() - state["seconds"], state["step"]
        tally = Tally()
        resumed, evaluating, seconds = time.monotonic(), 0.0, 0.0

        for step in range(first, self.steps + 1):
            if step % self.eval_every == 0 or step == self.steps:
                at = time.monotonic()
                figures, more = watch.measure()
                log.write(step, "eval", figures, tokens=step * step_tokens, **more)
                evaluating += time.monotonic() - at
            seconds = time.monotonic() - began
            asked = runner.agree(stop.asked)
            if (step % self.save_every == 0 and step > first) or asked:
                runner.save(ctx.out / CHECKPOINTS, step, {"step": step, "seconds": seconds})
            if asked:
                log.say(f"  stopped at step {step}; everything is saved. Run the same command again to go on.")
                sys.exit(128 + asked)
            if step == self.steps:
                break

            live.net.train()
            originals = mixture.count(step, self.batch_sequences, ctx.original_languages) * self.sequence_length
            rate = self.lr_at(step)

            def micro_losses(step: int = step, originals: int = originals) -> Iterator[torch.Tensor]:
                micro = self.runtime.micro_batch
                for batch in mixture.micro_batches(step, self.batch_sequences, micro, ctx.rank, ctx.world_size):
                    original_B = torch.tensor([name in ctx.original_languages for name in batch.languages], device=device)
                    original_BT = original_B[:, None].expand(batch.labels.shape)
                    portion = Portion(original_BT, originals, step_tokens, step / self.steps)
                    tensors = (t.to(device) for t in (batch.input_ids, batch.labels, batch.position_ids))
                    loss, losses_BT, penalties = runner(*tensors, portion)
                    tally.add(batch, losses_BT, penalties)
                    yield loss * accumulate * ctx.world_size  # DeepSpeed takes the mean over both; the loss is a sum
                tally.steps += 1

            norm = runner.step(micro_losses(), rate / self.lr)
            if not math.isfinite(norm):
                kept = f"the last checkpoint is of step {step // self.save_every * self.save_every}"
                raise ConfigError(f"the gradient is not finite at step {step + 1}; {kept}. Try a lower lr.")
            if (step + 1) % self.log_every == 0 or step == 0 or step + 1 == self.steps:
                figures = tally.take()
                training = time.monotonic() - resumed - evaluating
                speed = (step + 1 - first) * step_tokens / training
                left = (self.steps - step - 1) * step_tokens / speed
                log.write(step + 1, "train", figures, lr=rate, grad_norm=norm, tokens_per_second=speed, eta_seconds=left)
                shown = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
                log.say(f"  step {step + 1}/{self.steps}  {shown}  {speed:.0f} tokens/s  ETA {duration(left)}")

        self._finish(ctx, model, runner, mixture, log, seconds)
        return Model(ctx.out)

    def _finish(self, ctx: Context, model: Model, runner: Any, mixture: "Mixture", log: Log, seconds: float) -> None:
        from langext import modeling

        delta = runner.masters()
        if ctx.rank:
            return
        modeling.save_delta(ctx.out, delta)
        modeling.write_record(ctx.out, modeling.read_record(model))
        last = log.last["eval"]
        ctx.summary.update(
            steps=self.steps,
            tokens=len(mixture) * self.sequence_length,
            seconds=round(seconds, 1),
            tokens_per_second=log.last["train"].get("tokens_per_second"),
            epochs=mixture.epochs(),
            shares={name: float((mixture.owner == k).mean()) for k, name in enumerate(mixture.names)},
            bits_per_byte=last["figures"],
            kl_to_base=last.get("kl_to_base"),
            dead_layers=last.get("dead_layers"),
            weights=last["weights"],
        )

    def _mixture(self, ctx: Context, corpus: Corpus, live: "LiveModel") -> "Mixture":
        from langext import documents
        from langext.mixture import Mixture

        files = {code: documents.tokenise(ctx, corpus, code, live.tokenizer) for code in ctx.languages}
        sizes = {code: file.num_sequences(self.sequence_length) for code, file in files.items()}
        originals = [code for code in ctx.original_languages if sizes[code]]
        if not sizes[ctx.language]:
            raise ConfigError(f"less than one sequence of {self.sequence_length} tokens of {ctx.language} to train on")
        if self.original_frac and not originals:
            raise ConfigError(
                f"original_frac is {self.original_frac}, but there is no training text of {', '.join(ctx.original_languages)}; "
                "add a source or set original_frac to 0"
            )
        weights = {ctx.language: 1 - self.original_frac}
        weights |= {code: self.original_frac / len(originals) for code in originals}
        used = {code: files[code] for code in weights}
        mixture = Mixture(used, weights, self.sequence_length, self.steps * self.batch_sequences, ctx.seed)
        if ctx.rank == 0:
            shown = ", ".join(f"{c} {weights[c]:.0%}, {epochs:.2f} epochs" for c, epochs in mixture.epochs().items())
            say(f"  {len(mixture) * self.sequence_length:,} tokens: {shown}")
        return mixture

    def _probes(self, ctx: Context, corpus: Corpus) -> dict[str, list[str]]:
        """Held-out passages by `<language>/<domain>`."""
        from langext import bpb, documents

        found = documents.heldout(corpus, ctx.languages)
        return {name: bpb.passages(texts, 1000, self.eval_bytes) for name, texts in found.items()}


class Stop:
    """Notes SIGINT and SIGTERM, so that the loop can save and leave between two steps."""

    def __init__(self) -> None:
        self.asked = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: Any) -> None:
        self.asked = number
