"""The training loop of stage train: evaluate, save, step, log, until the last step. setup.py builds what the loop needs.

The one rule: every measurement goes to metrics.jsonl, and the report reads only that file.
"""

import math
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch

from langext.artifacts import STOP, Corpus, Model, read_metrics
from langext.console import Bar, duration
from langext.context import Context
from langext.data import documents
from langext.data.mixture import Batch
from langext.errors import RunFailed
from langext.methods.penalties.base import MicroBatch
from langext.models import loading
from langext.summaries import TrainSummary
from langext.training import engine
from langext.training.metrics import Log, Tally
from langext.training.selection import Evaluation, Kept, least_forgotten, mean_ratio
from langext.training.settings import Settings
from langext.training.setup import Session, set_up


def train(settings: Settings, ctx: Context, model: Model, corpus: Corpus) -> Model:
    """Train the model, resume from a checkpoint if there is one, and write the delta. Returns the trained model.

    Raises ConfigError when the settings do not fit the text or the processes, and RunFailed when a loss or a gradient is not
    finite, or when no evaluation can become the model. Ends the process with exit code 128 + signal when it is asked to stop.
    """
    loop = Loop(set_up(settings, ctx, model, corpus))
    loop.run()
    loop.finish(model)
    return Model(ctx.out)


class Loop:
    """A running training: its current step, its counts and its times."""

    def __init__(self, session: Session):
        self.session, self.settings, self.ctx, self.engine = session, session.settings, session.ctx, session.engine
        state = session.state
        self.first: int = state["step"]
        self.last = session.steps
        """The step at which training ends; earlier when the forgetting budget is used up."""
        self.start: dict[str, float] | None = state["start"]
        """Bits per byte in the first evaluation, by `<language>/<domain>`; None before it."""
        self.log, self.bar = Log(self.ctx, self.first), Bar("training", session.steps, shown=self.ctx.rank == 0)
        if self.first:
            self.log.say(f"  resuming at step {self.first} of {session.steps}")
        self.stop = Stop(self.ctx)
        # A checkpoint has the sums of all processes, so only rank 0 takes them back; else each process would add them again.
        self.tally = Tally(self.ctx.languages, session.device, state.get("tally"), share=float(self.ctx.rank == 0))
        self.resumed = time.monotonic()
        # Moved back by the seconds of earlier attempts, so that `seconds` counts the whole training.
        self.began = self.resumed - state["seconds"]
        self.evaluating = 0.0
        """Seconds spent on evaluations since the start or resume; they do not count for the training speed."""
        self.seconds = 0.0
        self.evaluation: Evaluation | None = None

    def run(self) -> None:
        """Make all remaining steps. When asked to stop, save everything and end the process."""
        for step in range(self.first, self.session.steps + 1):
            if step % self.settings.eval_every == 0 or step == self.session.steps:
                self._evaluate(step)
            self.seconds = time.monotonic() - self.began
            # A signal may reach one process earlier than another; all must leave at the same step.
            asked = self.engine.agree(self.stop.asked)
            if (step % self.settings.save_every == 0 and step > self.first) or asked:
                state = {"step": step, "seconds": self.seconds, "start": self.start, "tally": self.tally.state()}
                self.engine.save(self.session.checkpoints, step, state)
            if asked:
                self.log.say(f"  stopped at step {step}; everything is saved. Run the same command again to go on.")
                sys.exit(128 + asked)
            if step == self.last:
                break
            factor = self.session.schedule.factor(step)
            norm = self._step(step, factor)
            self.bar.at(step + 1)
            if (step + 1) % self.settings.log_every == 0 or step == 0 or step + 1 == self.session.steps:
                self._log(step + 1, factor, norm)
        self.bar.close()

    def _evaluate(self, step: int) -> None:
        """Measure held-out text. Keep the weights if they are the best so far; end training when the budget is used up.

        Raises RunFailed when the first measurement is not a finite number, because nothing can be compared with it.
        """
        at = time.monotonic()
        with self.engine.averaged(), self.engine.gathered():
            measured: Evaluation = self.engine.from_first(self.session.watch.measure())
        now, broken = measured.bits_per_byte, measured.broken
        if broken and self.start is None:
            raise RunFailed(f"{broken} before any training: the weights overflow; with precision fp32 they may not")
        self.start, self.evaluation = self.start or now | self.session.base_bits, measured
        tokens = step * self.session.step_tokens
        self.log.evaluation(step, tokens, measured)
        self.engine.report(tokens, {f"bits_per_byte/{name}": value for name, value in now.items()})
        if broken:
            self.log.say(f"  warning: {broken}; these weights cannot become the model. Try a lower lr.")
        budget = self.settings.forgetting_budget
        if budget and self._exceeds_budget(measured):
            if budget.then == "stop":
                self.last = step
        elif (self.settings.result == "best" or budget) and not broken:
            score = mean_ratio(now, self.start, (self.ctx.language,))
            with self.engine.averaged():
                self.session.best.offer(step, score, measured, self.engine.masters, self.ctx.rank)
        self.evaluating += time.monotonic() - at

    def _exceeds_budget(self, measured: Evaluation) -> bool:
        """True when the original languages have lost more than the budget allows; says so in the log."""
        budget = self.settings.forgetting_budget
        assert budget is not None and self.start is not None
        increase = mean_ratio(measured.bits_per_byte, self.start, self.ctx.original_languages) - 1
        if budget.kept(increase, measured.kl_to_base):
            return False
        kl = f", KL {measured.kl_to_base:.4f} nats per token" if measured.kl_to_base is not None else ""
        self.log.say(f"  beyond the forgetting budget: original bits per byte {increase:+.2%}{kl}")
        return True

    def _step(self, step: int, factor: float) -> float:
        """Make one optimizer step at `factor` times the peak learning rates and return the norm of the gradient.

        Raises RunFailed when the loss or the norm is not finite.
        """
        session, settings, ctx = self.session, self.settings, self.ctx
        session.live.net.train()
        # Seeded anew in each step: a resumed training then draws the same numbers, without saving the generators' state.
        torch.manual_seed(ctx.seed + 1_000_003 * (step + 1) + ctx.rank)
        originals = session.mixture.count(step, settings.batch_sequences, ctx.original_languages) * settings.sequence_length
        accumulate = settings.accumulate()
        seen: list[tuple[Batch, torch.Tensor]] = []

        def losses() -> Iterator[torch.Tensor]:
            whole, micro = settings.batch_sequences, settings.runtime.micro_batch
            for batch in session.mixture.micro_batches(step, whole, micro, ctx.rank, ctx.world_size):
                original_B = torch.tensor([name in ctx.original_languages for name in batch.languages], device=session.device)
                original_BT = original_B[:, None].expand(batch.labels.shape)
                micro_batch = MicroBatch(original_BT, originals, session.step_tokens, step / session.steps)
                fields = (batch.input_ids, batch.labels, batch.position_ids)
                ids, labels, positions = (t.to(session.device, non_blocking=True) for t in fields)
                states = session.prefix.states(batch, ids, positions) if session.prefix else None
                loss, losses_BT, penalties = self.engine(ids, labels, positions, micro_batch, states)
                self.tally.add(batch, losses_BT, penalties)
                seen.append((batch, losses_BT))
                yield loss * accumulate * ctx.world_size  # a sum; DeepSpeed divides by both
            # Reached when the engine has taken all losses: a step that fails before that is not counted.
            self.tally.steps += 1

        try:
            norm = self.engine.step(losses(), factor)
        except engine.NotFinite:
            raise RunFailed(self._not_finite("loss", step, self._suspects(seen))) from None
        if not math.isfinite(norm):
            raise RunFailed(self._not_finite("gradient", step, ""))
        return norm

    def _log(self, step: int, factor: float, norm: float) -> None:
        """Write one line to metrics.jsonl and one to the terminal. `step` is the number of finished steps."""
        session, tokens = self.session, step * self.session.step_tokens
        losses = self.tally.take()
        speed = (step - self.first) * session.step_tokens / (time.monotonic() - self.resumed - self.evaluating)
        left = (session.steps - step) * session.step_tokens / speed
        lr = self.settings.lr * factor
        more = {"mfu": speed * session.flops_per_token / session.peak_flops} if session.peak_flops else {}
        self.log.training(
            step, losses, lr=lr, grad_norm=norm, tokens=tokens, tokens_per_second=speed, eta_seconds=left,
            peak_memory_bytes=_peak_memory(session.device), **more,
        )  # fmt: skip
        self.engine.report(tokens, {**losses, "tokens_per_second": speed, "lr": lr, **more})
        shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self.log.say(f"  step {step}/{session.steps}  {shown}  {speed:.0f} tokens/s  ETA {duration(left)}")

    def finish(self, model: Model) -> None:
        """Write the delta, the record and the summary, of the last weights or of the best ones, as the settings say.

        Raises RunFailed when there is no such evaluation, or when that of the last weights is not a finite number.
        """
        settings, ctx, best = self.settings, self.ctx, self.session.best
        chosen = self._chosen()
        # Before the other ranks leave: every process takes part in gathering the weights.
        with self.engine.averaged():
            delta = self.engine.masters()
        if ctx.rank:
            return
        if chosen:
            delta = best.weights()
        # Read from the input: the engine keeps only what learns whole, and constants are what they were.
        loading.save_delta(ctx.out, delta | loading.constants(model))
        loading.write_record(ctx.out, loading.read_record(model))
        result = chosen.evaluation if chosen else self.evaluation
        assert result is not None, "the last step is always evaluated"
        seen = self.session.mixture.cut(self.last * settings.batch_sequences)
        ctx.report(
            TrainSummary(
                lr=settings.lr, precision=self.session.precision, steps=self.last,
                penalties=[penalty.name for penalty in settings.penalties],
                result_step=chosen.step if chosen else self.last, within_budget=True if settings.forgetting_budget else None,
                tokens=self.last * self.session.step_tokens, seconds=round(self.seconds, 1),
                tokens_per_second=self.log.tokens_per_second, epochs=seen.epochs(), shares=seen.shares(),
                bits_per_byte=result.bits_per_byte, kl_to_base=result.kl_to_base, dead_layers=result.dead_layers,
                weights=result.weights,
            )
        )  # fmt: skip

    def _chosen(self) -> Kept | None:
        """The evaluation whose weights become the model; None for the last weights. Says which one it is.

        Raises RunFailed when nothing can become the model.
        """
        settings = self.settings
        if settings.result == "last" and not settings.forgetting_budget:
            assert self.evaluation is not None, "the last step is always evaluated"
            if self.evaluation.broken:
                raise RunFailed(f"{self.evaluation.broken} at the last step; {self._saved()}. Try a lower lr with --redo.")
            return None
        chosen = self.session.best.kept
        limit = " within the forgetting budget" if settings.forgetting_budget else ""
        if chosen and chosen.step:
            self.log.say(f"  the model is that of step {chosen.step}, the best evaluation{limit}")
            return chosen
        rows = [row for row in read_metrics(self.log.path) if row["kind"] == "eval" and (row["step"] or not chosen)]
        assert self.start is not None
        least = f"; smallest increase seen: {least_forgotten(rows, self.start, self.ctx.original_languages)}" if limit else ""
        if chosen:
            self.log.say(f"  warning: no training step made it better{limit}{least}; the model is the untrained one of step 0")
            return chosen
        raise RunFailed(
            f"no evaluation is{limit or ' a finite number'}{least}; {self._saved()}. Allow more, or forget less (a lower lr, a "
            "larger original_frac), with --redo."
        )

    def _suspects(self, seen: list[tuple[Batch, torch.Tensor]]) -> str:
        """The documents of the sequences whose loss is not finite, one line per source.

        Names all documents of the step when no single loss is bad, which means that a penalty is not finite.
        """
        rows = [
            (index, bool(row.isfinite().all()))
            for batch, losses_BT in seen
            for index, row in zip(batch.indices, losses_BT, strict=True)
        ]
        bad = [index for index, fine in rows if not fine]
        if not self.engine.agree(len(bad)):
            bad = [index for index, _ in rows]
        named: dict[str, set[int]] = {}
        for part in self.engine.everywhere([self.session.mixture.documents(i) for i in bad]):
            for source, numbers in part:
                named.setdefault(source, set()).update(numbers)
        names = {source: documents.identifiers(self.session.corpus, source, sorted(n)) for source, n in named.items()}
        return "\n".join(f"{source}: {', '.join(ids)}" for source, ids in names.items())

    def _saved(self) -> str:
        steps = self.session.checkpoints.steps()
        return f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"

    def _not_finite(self, what: str, step: int, suspects: str) -> str:
        read = f"\nDocuments in it:\n{suspects}" if suspects else ""
        advice = "Try a lower lr with --redo, or look at the text."
        return f"the {what} is not finite at step {step + 1}; {self._saved()}. {advice}{read}"


def _peak_memory(device: torch.device) -> int:
    """Most memory used so far, in bytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # ru_maxrss is in bytes on macOS and in KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Stop:
    """Remembers SIGINT, SIGTERM, SIGUSR1 and the stop file, so that the loop can save and leave between two steps."""

    def __init__(self, ctx: Context) -> None:
        self.file, self.signal = ctx.out / STOP, 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # Slurm may send any to its tasks
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: Any) -> None:
        self.signal = number

    @property
    def asked(self) -> int:
        """The number of the signal that asks to stop; 0 while there is none."""
        if not self.signal and self.file.is_file():
            with suppress(FileNotFoundError):  # `langext run` removes it when it starts anew
                return int(self.file.read_text(encoding="utf-8") or signal.SIGTERM)
        return self.signal
