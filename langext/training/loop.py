"""The training loop of stage train.

One function that reads from top to bottom; what it needs done is in the modules beside it. Everything it finds out goes to
metrics.jsonl; the report reads that.
"""

import math
import resource
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from langext.architectures import attention, families, recompute
from langext.artifacts import CHECKPOINTS, STOP, Corpus, Model
from langext.console import Bar, duration, say
from langext.context import Context
from langext.data import documents, tokens
from langext.data.mixture import Batch, Mixture, Phase, shares
from langext.evaluation import bpb
from langext.methods.penalties.base import Portion
from langext.models import loading
from langext.spec import ConfigError
from langext.training import checkpoints, engine, flops, objective
from langext.training.checkpoints import Checkpoints
from langext.training.metrics import Log, Tally
from langext.training.selection import Best, mean_ratio
from langext.training.settings import Settings
from langext.training.watch import Watch

if TYPE_CHECKING:
    from langext.methods.extended import LiveModel

FIRST_FRAC = 0.1
"""The part of the training that `original_first_frac` is about, https://arxiv.org/abs/2506.00288."""


def train(stage: Settings, ctx: Context, model: Model, corpus: Corpus) -> Model:
    """Train, resuming from a checkpoint if there is one, and write the delta."""
    if ctx.world_size != stage.runtime.processes:
        raise ConfigError(f"{ctx.world_size} processes were started, and runtime asks for {stage.runtime.processes}")
    device = engine.join_processes()
    config = engine.read_deepspeed(stage.runtime.deepspeed)
    zero = engine.zero_stage(config)
    torch.manual_seed(ctx.seed)
    dtype = torch.bfloat16 if stage.precision == "bf16" else torch.float32
    home = "cpu" if zero == 3 else str(device)  # ZeRO 3 takes each weight apart before it goes to its device
    live = loading.load(model, dtype, home, attention=stage.runtime.attention)
    method = live.method
    assert method is not None and loading.read_record(model).method is not None, "refused when planning"
    live.freeze()
    mixture, steps = _mixture(stage, ctx, corpus, live)
    schedule = stage.rates(steps)

    def base() -> Any:
        return loading.load(model, dtype, str(device), trained=False).net.requires_grad_(False)

    watch = Watch(ctx, live, loading.load_tokenizer(loading.read_record(model).base), base, _probes(stage, ctx, corpus))
    terms = {p.name: (p.weight, p.attach(live.net, method, base)) for p in stage.penalties}
    if stage.runtime.activation_checkpointing:
        live.net.activation_checkpointing_enable({"use_reentrant": False})
    if device.type == "cpu" and live.net.config._attn_implementation == "sdpa":
        attention.install(live.net)
    if not stage.runtime.compile:
        recompute.install(live.net)
    else:
        for block in families.blocks(live.net):
            block.compile()
    kept, best = Checkpoints(ctx.out / CHECKPOINTS, stage.keep_checkpoints), Best(ctx.out / CHECKPOINTS)
    found = kept.newest()
    layout = engine.layout(config, stage.precision == "bf16", stage.accumulate())
    source = found and (found if checkpoints.fits(found, ctx.world_size, layout) else checkpoints.universal(found))
    accumulate, micro = stage.accumulate(), stage.runtime.micro_batch
    learns = sum(p.numel() for p in live.net.parameters() if p.requires_grad)
    cost = flops.per_token(sum(p.numel() for p in live.net.parameters()), learns, live.net.config, stage.sequence_length)
    runner = engine.Engine(
        objective.Objective(live.net, method, terms), live.net, config, micro_batch=micro, accumulate=accumulate,
        clip=stage.clip, bf16=stage.precision == "bf16", peak=lambda name: method.own_lr(name) or stage.lr, betas=stage.betas,
        weight_decay=stage.weight_decay, ema=stage.ema, universal=source != found, monitor=stage.runtime.monitor, out=ctx.out,
    )  # fmt: skip
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "start": None}
    if found is not None and source is not None:
        state = runner.load(found, source)
    log, bar = Log(ctx, state["step"]), Bar("training", steps, shown=ctx.rank == 0)
    if state["step"]:
        log.say(f"  resuming at step {state['step']} of {steps}")
    stop = Stop(ctx)
    step_tokens = stage.batch_sequences * stage.sequence_length
    peak = (flops.peak(torch.cuda.get_device_name()) or 0) * ctx.world_size if device.type == "cuda" else 0
    began, first, start = time.monotonic() - state["seconds"], state["step"], state["start"]
    tally = Tally(ctx.languages, device, state.get("tally"), share=float(ctx.rank == 0))
    resumed, evaluating, seconds, last = time.monotonic(), 0.0, 0.0, steps

    for step in range(first, steps + 1):
        if step % stage.eval_every == 0 or step == steps:
            at = time.monotonic()
            with runner.averaged(), runner.gathered():
                figures, more = runner.from_first(watch.measure())
            start = start or {name: {"bits_per_byte": f["bits_per_byte"]} for name, f in figures.items()}
            log.write(step, "eval", figures, tokens=step * step_tokens, **more)
            runner.report(step * step_tokens, {f"bits_per_byte/{n}": f["bits_per_byte"] for n, f in figures.items()})
            if _leaves_budget(stage, ctx, figures, start, more.get("kl_to_base"), log):
                if stage.drift_budget and stage.drift_budget.then == "stop":
                    last = step
            elif stage.result == "best" or stage.drift_budget:
                with runner.averaged():
                    score = mean_ratio(figures, start, (ctx.language,))
                    best.offer(step, score, {"figures": figures, **more}, runner.masters, ctx.rank)
            evaluating += time.monotonic() - at
        seconds = time.monotonic() - began
        asked = runner.agree(stop.asked)
        if (step % stage.save_every == 0 and step > first) or asked:
            runner.save(kept, step, {"step": step, "seconds": seconds, "start": start, "tally": tally.state()})
        if asked:
            log.say(f"  stopped at step {step}; everything is saved. Run the same command again to go on.")
            sys.exit(128 + asked)
        if step == last:
            break

        live.net.train()
        torch.manual_seed(ctx.seed + 1_000_003 * (step + 1) + ctx.rank)  # so the state of the generators is (seed, step)
        originals = mixture.count(step, stage.batch_sequences, ctx.original_languages) * stage.sequence_length
        seen: list[tuple[Batch, torch.Tensor]] = []

        def micro_losses(step: int = step, originals: int = originals, seen: Any = seen) -> Iterator[torch.Tensor]:
            for batch in mixture.micro_batches(step, stage.batch_sequences, micro, ctx.rank, ctx.world_size):
                original_B = torch.tensor([name in ctx.original_languages for name in batch.languages], device=device)
                portion = Portion(original_B[:, None].expand(batch.labels.shape), originals, step_tokens, step / steps)
                tensors = (t.to(device, non_blocking=True) for t in (batch.input_ids, batch.labels, batch.position_ids))
                loss, losses_BT, penalties = runner(*tensors, portion)
                tally.add(batch, losses_BT, penalties)
                seen.append((batch, losses_BT))
                yield loss * accumulate * ctx.world_size  # DeepSpeed takes the mean over both; the loss is a sum
            tally.steps += 1

        factor = schedule.factor(step)
        try:
            norm = runner.step(micro_losses(), factor)
        except engine.NotFinite:
            raise ConfigError(_not_finite("loss", step, kept, _suspects(mixture, corpus, seen, runner))) from None
        if not math.isfinite(norm):
            raise ConfigError(_not_finite("gradient", step, kept, ""))
        bar.at(step + 1)
        if (step + 1) % stage.log_every == 0 or step == 0 or step + 1 == steps:
            figures = tally.take()
            speed = (step + 1 - first) * step_tokens / (time.monotonic() - resumed - evaluating)
            left = (steps - step - 1) * step_tokens / speed
            more = {"mfu": speed * cost / peak} if peak else {}
            log.write(
                step + 1, "train", figures, lr=stage.lr * factor, grad_norm=norm, tokens=(step + 1) * step_tokens,
                tokens_per_second=speed, eta_seconds=left, peak_memory_bytes=_peak_memory(device), **more,
            )  # fmt: skip
            runner.report((step + 1) * step_tokens, {**figures, "tokens_per_second": speed, "lr": stage.lr * factor, **more})
            shown = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
            log.say(f"  step {step + 1}/{steps}  {shown}  {speed:.0f} tokens/s  ETA {duration(left)}")

    bar.close()
    _finish(stage, ctx, model, runner, mixture, best, log, last, seconds)
    return Model(ctx.out)


def _finish(
    stage: Settings, ctx: Context, model: Model, runner: engine.Engine, mixture: Mixture, best: Best, log: Log, step: int,
    seconds: float,
) -> None:  # fmt: skip
    """Write the delta, the record and the summary."""
    chosen = best.kept if stage.result == "best" or stage.drift_budget else None
    with runner.averaged():
        delta = runner.masters()
    if ctx.rank:
        return
    if chosen:
        delta = best.weights()
        within = " within the drift budget" if stage.drift_budget else ""
        log.say(f"  the model is that of step {chosen['step']}, the best evaluation{within}")
    loading.save_delta(ctx.out, delta)
    loading.write_record(ctx.out, loading.read_record(model))
    kept = chosen["evaluation"] if chosen else log.last["eval"]
    seen = mixture.cut(step * stage.batch_sequences)
    ctx.summary.update(
        steps=step,
        result_step=chosen["step"] if chosen else step,
        tokens=step * stage.batch_sequences * stage.sequence_length,
        seconds=round(seconds, 1),
        tokens_per_second=log.last["train"].get("tokens_per_second"),
        epochs=seen.epochs(),
        shares=seen.shares(),
        bits_per_byte=kept["figures"],
        kl_to_base=kept.get("kl_to_base"),
        dead_layers=kept.get("dead_layers"),
        weights=kept["weights"],
    )


def _mixture(stage: Settings, ctx: Context, corpus: Corpus, live: "LiveModel") -> tuple[Mixture, int]:
    """The order of all sequences, and the number of steps that it is enough for."""
    files = tokens.tokenise(ctx, corpus, live.tokenizer)
    sizes = {name: file.num_sequences(stage.sequence_length) for name, file in files.items()}
    small = [name for name, size in sizes.items() if not size and len(files[name].tokens)]
    if small and ctx.rank == 0:
        say(f"  left out, with less than one sequence of {stage.sequence_length} tokens: {', '.join(small)}")
    sizes = {name: size for name, size in sizes.items() if size}
    codes = {name.split("/")[0] for name in sizes}
    if ctx.language not in codes:
        raise ConfigError(f"less than one sequence of {stage.sequence_length} tokens of {ctx.language} to train on")
    originals = [code for code in ctx.original_languages if code in codes]
    if (stage.original_frac or stage.original_first_frac) and not originals:
        raise ConfigError(
            f"original_frac is {stage.original_frac}, but there is no training text of {', '.join(ctx.original_languages)}; "
            "add a source or set original_frac to 0"
        )
    total = stage.steps * stage.batch_sequences
    early = round(FIRST_FRAC * stage.steps) * stage.batch_sequences if stage.original_first_frac else 0
    phases = [
        Phase(count, shares(sizes, ctx.language, originals, frac, stage.shares))
        for count, frac in ((early, stage.original_first_frac or 0.0), (total - early, stage.original_frac))
        if count
    ]
    used = {name: files[name] for name in sizes}
    mixture = Mixture(used, phases, ctx.language, stage.sequence_length, ctx.seed)
    steps = stage.steps
    if stage.exhaustion == "stop" and mixture.first_repeat() < total:
        steps = mixture.first_repeat() // stage.batch_sequences
        name, _ = mixture.place(mixture.first_repeat())
        if not steps:
            raise ConfigError(f"exhaustion is stop, and {name} is not enough for one step")
        if ctx.rank == 0:
            say(f"  {name} is read once after {steps} of {stage.steps} steps; training ends there (exhaustion: stop)")
        mixture = mixture.cut(steps * stage.batch_sequences)
    if ctx.rank == 0:
        epochs, part = mixture.epochs(), mixture.shares()
        shown = ", ".join(f"{name} {part[name]:.0%} ({epochs[name]:.2f} epochs)" for name in used)
        say(f"  {len(mixture) * stage.sequence_length:,} tokens: {shown}")
    return mixture, steps


def _probes(stage: Settings, ctx: Context, corpus: Corpus) -> dict[str, list[str]]:
    """Held-out passages by `<language>/<domain>`."""
    found = documents.heldout(corpus, ctx.languages)
    return {name: bpb.passages(texts, 1000, stage.eval_bytes) for name, texts in found.items()}


def _leaves_budget(stage: Settings, ctx: Context, figures: Any, start: Any, kl: float | None, log: Log) -> bool:
    if stage.drift_budget is None:
        return False
    increase = mean_ratio(figures, start, ctx.original_languages) - 1
    if stage.drift_budget.kept(increase, kl):
        return False
    shown = f", KL {kl:.4f} nats per token" if kl is not None else ""
    log.say(f"  beyond the drift budget: original bits per byte {increase:+.2%}{shown}")
    return True


def _suspects(mixture: Mixture, corpus: Corpus, seen: list[tuple[Batch, torch.Tensor]], runner: engine.Engine) -> str:
    """The documents of the sequences whose loss is not finite; of all of the step when it is a penalty that is not."""
    rows = [
        (index, bool(row.isfinite().all()))
        for batch, losses_BT in seen
        for index, row in zip(batch.indices, losses_BT, strict=True)
    ]
    bad = [index for index, fine in rows if not fine] or [index for index, _ in rows]
    named: dict[str, set[int]] = {}
    for source, numbers in (found for part in runner.everywhere([mixture.documents(i) for i in bad]) for found in part):
        named.setdefault(source, set()).update(numbers)
    return "\n".join(f"{name}: {', '.join(documents.identifiers(corpus, name, sorted(n)))}" for name, n in named.items())


def _not_finite(what: str, step: int, kept: Checkpoints, suspects: str) -> str:
    steps = kept.steps()
    saved = f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"
    read = f"\nDocuments in it:\n{suspects}" if suspects else ""
    return f"the {what} is not finite at step {step + 1}; {saved}. Try a lower lr with --redo, or look at the text.{read}"


def _peak_memory(device: torch.device) -> int:
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
