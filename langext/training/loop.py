"""The training loop of stage train: evaluate, save, step, log, until the last step. What it needs is built in setup.py.

Everything it finds out goes to metrics.jsonl; the report reads that.
"""

import math
import resource
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from langext.artifacts import STOP, Corpus, Model
from langext.console import Bar, duration
from langext.context import Context
from langext.data import documents
from langext.data.mixture import Batch
from langext.methods.penalties.base import Portion
from langext.models import loading
from langext.spec import RunFailed
from langext.summaries import TrainSummary
from langext.training import engine
from langext.training.metrics import Log, Tally
from langext.training.selection import Evaluation, mean_ratio
from langext.training.settings import Settings
from langext.training.setup import Session, set_up


def train(settings: Settings, ctx: Context, model: Model, corpus: Corpus) -> Model:
    """Train, resuming from a checkpoint if there is one, and write the delta."""
    loop = Loop(set_up(settings, ctx, model, corpus))
    loop.run()
    loop.finish(model)
    return Model(ctx.out)


class Loop:
    """A training at work: where it is, what it has counted, and when it began."""

    def __init__(self, session: Session):
        self.session, self.settings, self.ctx, self.engine = session, session.settings, session.ctx, session.engine
        state = session.state
        self.first: int = state["step"]
        self.last = session.steps
        """The step it ends at; an exhausted budget brings it forward."""
        self.start: dict[str, float] | None = state["start"]
        """Bits per byte of the first evaluation, by set."""
        self.log, self.bar = Log(self.ctx, self.first), Bar("training", session.steps, shown=self.ctx.rank == 0)
        if self.first:
            self.log.say(f"  resuming at step {self.first} of {session.steps}")
        self.stop = Stop(self.ctx)
        self.tally = Tally(self.ctx.languages, session.device, state.get("tally"), share=float(self.ctx.rank == 0))
        self.resumed = time.monotonic()
        self.began = self.resumed - state["seconds"]
        self.evaluating = 0.0
        """Seconds spent on evaluations, which do not count for the speed of training."""
        self.seconds = 0.0
        self.evaluation: Evaluation | None = None

    def run(self) -> None:
        """All steps that are left. Leaves the process, with everything saved, when it is asked to stop."""
        for step in range(self.first, self.session.steps + 1):
            if step % self.settings.eval_every == 0 or step == self.session.steps:
                self._evaluate(step)
            self.seconds = time.monotonic() - self.began
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
        """Measure held-out text; keep the weights if they are the best so far, and end where the budget is used up."""
        at = time.monotonic()
        with self.engine.averaged(), self.engine.gathered():
            found: Evaluation = self.engine.from_first(self.session.watch.measure())
        now = found.bits_per_byte
        self.start, self.evaluation = self.start or now, found
        tokens = step * self.session.step_tokens
        self.log.evaluation(step, tokens, found)
        self.engine.report(tokens, {f"bits_per_byte/{name}": value for name, value in now.items()})
        budget = self.settings.forgetting_budget
        if budget and self._exceeds_budget(found):
            if budget.then == "stop":
                self.last = step
        elif self.settings.result == "best" or budget:
            score = mean_ratio(now, self.start, (self.ctx.language,))
            with self.engine.averaged():
                self.session.best.offer(step, score, found, self.engine.masters, self.ctx.rank)
        self.evaluating += time.monotonic() - at

    def _exceeds_budget(self, found: Evaluation) -> bool:
        budget = self.settings.forgetting_budget
        assert budget is not None and self.start is not None
        increase = mean_ratio(found.bits_per_byte, self.start, self.ctx.original_languages) - 1
        if budget.kept(increase, found.kl_to_base):
            return False
        kl = f", KL {found.kl_to_base:.4f} nats per token" if found.kl_to_base is not None else ""
        self.log.say(f"  beyond the forgetting budget: original bits per byte {increase:+.2%}{kl}")
        return True

    def _step(self, step: int, factor: float) -> float:
        """One optimizer step at `factor` of the peak rates; the gradient's norm. Raises RunFailed when it is not finite."""
        session, settings, ctx = self.session, self.settings, self.ctx
        session.live.net.train()
        torch.manual_seed(ctx.seed + 1_000_003 * (step + 1) + ctx.rank)  # so the state of the generators is (seed, step)
        originals = session.mixture.count(step, settings.batch_sequences, ctx.original_languages) * settings.sequence_length
        accumulate = settings.accumulate()
        seen: list[tuple[Batch, torch.Tensor]] = []

        def losses() -> Iterator[torch.Tensor]:
            whole, micro = settings.batch_sequences, settings.runtime.micro_batch
            for batch in session.mixture.micro_batches(step, whole, micro, ctx.rank, ctx.world_size):
                original_B = torch.tensor([name in ctx.original_languages for name in batch.languages], device=session.device)
                original_BT = original_B[:, None].expand(batch.labels.shape)
                portion = Portion(original_BT, originals, session.step_tokens, step / session.steps)
                ids = (batch.input_ids, batch.labels, batch.position_ids)
                loss, losses_BT, penalties = self.engine(*(t.to(session.device, non_blocking=True) for t in ids), portion)
                self.tally.add(batch, losses_BT, penalties)
                seen.append((batch, losses_BT))
                yield loss * accumulate * ctx.world_size  # DeepSpeed takes the mean over both; the loss is a sum
            self.tally.steps += 1

        try:
            norm = self.engine.step(losses(), factor)
        except engine.NotFinite:
            raise RunFailed(self._not_finite("loss", step, self._suspects(seen))) from None
        if not math.isfinite(norm):
            raise RunFailed(self._not_finite("gradient", step, ""))
        return norm

    def _log(self, step: int, factor: float, norm: float) -> None:
        """One line of metrics and one on the terminal. `step` counts the steps that are done."""
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
        """Write the delta, the record and the summary: of the last weights, or of the best where these are asked for."""
        settings, ctx, best = self.settings, self.ctx, self.session.best
        selects = settings.result == "best" or settings.forgetting_budget is not None
        chosen = best.kept if selects else None
        with self.engine.averaged():
            delta = self.engine.masters()
        if ctx.rank:
            return
        within = bool(chosen) if settings.forgetting_budget else None
        if chosen:
            delta = best.weights()
            said = " within the forgetting budget" if within else ""
            self.log.say(f"  the model is that of step {chosen.step}, the best evaluation{said}")
        elif selects:
            self.log.say("  warning: no evaluation was a number and within the budget; the model is that of the last step")
        loading.save_delta(ctx.out, delta)
        loading.write_record(ctx.out, loading.read_record(model))
        found = chosen.evaluation if chosen else self.evaluation
        assert found is not None, "the last step is always evaluated"
        seen = self.session.mixture.cut(self.last * settings.batch_sequences)
        ctx.report(
            TrainSummary(
                lr=settings.lr, penalties=[penalty.name for penalty in settings.penalties], steps=self.last,
                result_step=chosen.step if chosen else self.last, within_budget=within,
                tokens=self.last * self.session.step_tokens, seconds=round(self.seconds, 1),
                tokens_per_second=self.log.last["train"].get("tokens_per_second"), epochs=seen.epochs(), shares=seen.shares(),
                bits_per_byte=found.bits_per_byte, kl_to_base=found.kl_to_base, dead_layers=found.dead_layers,
                weights=found.weights,
            )
        )  # fmt: skip

    def _suspects(self, seen: list[tuple[Batch, torch.Tensor]]) -> str:
        """The documents of the sequences whose loss is not finite; of all of the step when it is a penalty that is not."""
        rows = [
            (index, bool(row.isfinite().all()))
            for batch, losses_BT in seen
            for index, row in zip(batch.indices, losses_BT, strict=True)
        ]
        bad = [index for index, fine in rows if not fine] or [index for index, _ in rows]
        named: dict[str, set[int]] = {}
        for part in self.engine.everywhere([self.session.mixture.documents(i) for i in bad]):
            for source, numbers in part:
                named.setdefault(source, set()).update(numbers)
        names = {source: documents.identifiers(self.session.corpus, source, sorted(n)) for source, n in named.items()}
        return "\n".join(f"{source}: {', '.join(ids)}" for source, ids in names.items())

    def _not_finite(self, what: str, step: int, suspects: str) -> str:
        steps = self.session.checkpoints.steps()
        saved = f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"
        read = f"\nDocuments in it:\n{suspects}" if suspects else ""
        return f"the {what} is not finite at step {step + 1}; {saved}. Try a lower lr with --redo, or look at the text.{read}"


def _peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU's memory, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Stop:
    """Notes SIGINT, SIGTERM and the stop file, so that the loop can save and leave between two steps."""

    def __init__(self, ctx: Context) -> None:
        self.file, self.signal = ctx.out / STOP, 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: Any) -> None:
        self.signal = number

    @property
    def asked(self) -> int:
        """The number of the signal; 0 while nobody has asked."""
        if not self.signal and self.file.is_file():
            return int(self.file.read_text(encoding="utf-8") or signal.SIGTERM)
        return self.signal
