"""Builds everything that a training needs before its first step: model, text, measurements, engine, checkpoint.

The one rule: the order in `set_up` matters; its comments say why.
"""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from langext.architectures import attention, families, precision, recompute, streaming
from langext.architectures.precision import Precision
from langext.artifacts import BASE, CHECKPOINTS, TOKENS, Corpus, Model, read_base
from langext.console import say, warn
from langext.context import Context
from langext.data import documents, mixture, tokens
from langext.data.mixture import Mixture, Phase
from langext.errors import ConfigError
from langext.evaluation import bpb
from langext.methods import residue
from langext.methods.base import Method
from langext.methods.extended import LiveModel
from langext.models import loading
from langext.training import checkpoints, deepspeed_file, engine, flops, prefix
from langext.training.checkpoints import Checkpoints
from langext.training.engine import Engine
from langext.training.engine_settings import EngineSettings
from langext.training.objective import Objective
from langext.training.prefix import Prefix
from langext.training.schedule import Schedule
from langext.training.selection import BestWeights
from langext.training.settings import Settings
from langext.training.watch import Watch

FIRST_FRAC = 0.1
"""Share of the steps, at the start, for which `original_first_frac` holds. https://arxiv.org/abs/2506.00288"""


@dataclass(frozen=True)
class Session:
    """A training that is ready to run."""

    settings: Settings
    ctx: Context
    corpus: Corpus
    live: LiveModel
    method: Method
    device: torch.device
    precision: Precision
    mixture: Mixture
    steps: int
    """Optimizer steps; fewer than in the settings when the text ends before (`exhaustion: stop`)."""
    schedule: Schedule
    watch: Watch
    base_bits: dict[str, float]
    """Bits per byte of original text by the base, from which a forgetting budget counts; {} where there is none to count."""
    engine: Engine
    prefix: Prefix | None
    """What is read instead of computing the layers below the first one that learns; None when they are computed."""
    checkpoints: Checkpoints
    best: BestWeights
    state: dict[str, Any]
    """State of the loop from the checkpoint that the training resumes from; the state of step 0 without a checkpoint."""
    flops_per_token: float
    peak_flops: float
    """Peak FLOP/s of all devices together; 0 when it is not known."""

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step, over all processes."""
        return self.settings.batch_sequences * self.settings.sequence_length


def set_up(settings: Settings, ctx: Context, model: Model, corpus: Corpus) -> Session:
    """Build everything and load the newest intact checkpoint, if there is one.

    Raises ConfigError when settings, processes and text do not fit together, and RunFailed when every checkpoint is damaged.
    """
    if ctx.world_size != settings.runtime.processes:
        raise ConfigError(f"{ctx.world_size} processes were started, and runtime asks for {settings.runtime.processes}")
    device = engine.join_processes()
    _check_base(model)
    deepspeed = deepspeed_file.read(settings.runtime.deepspeed)
    torch.manual_seed(ctx.seed)
    kept = Checkpoints(ctx.out / CHECKPOINTS, settings.keep_checkpoints)
    newest = kept.newest()
    computes_in = _precision(settings, newest)
    dtype = precision.DTYPES[computes_in]
    # The whole model may not fit on the device of a process: ZeRO 3 leaves each its part.
    home = "cpu" if deepspeed_file.zero_stage(deepspeed) == 3 else str(device)
    live, method = _live(settings, model, dtype, home)
    order, steps = _mixture(settings, ctx, corpus, live)

    frozen = partial(_frozen, settings, dtype, home, device)
    probes = _probes(settings, ctx, corpus)
    # Measured before the engine takes memory, and only once: a checkpoint has it.
    counts = settings.forgetting_budget and settings.forgetting_budget.bpb and not newest
    base_bits = _base_bits(ctx, probes, frozen(Model(model.path.parent / BASE))) if counts else {}
    # Penalties look at the model as it was loaded, so they come before `_install` changes it.
    terms = {p.name: (p.weight, p.attach(live.net, method, lambda: frozen(model).net)) for p in settings.penalties}
    _install(settings, live, device)
    engine_settings = _engine_settings(settings, ctx, deepspeed, computes_in)
    # One process decides for all: on a shared disk they can see different things for a while.
    fits = newest is None or checkpoints.on_first(lambda: checkpoints.fits(newest, ctx.world_size, engine_settings.layout))
    source = newest if fits or newest is None else checkpoints.universal(newest)
    # Counted before the engine takes over: under ZeRO 3 it leaves only empty tensors behind.
    learns = sum(p.numel() for p in live.net.parameters() if p.requires_grad)
    total = sum(p.numel() for p in live.net.parameters())
    cost = flops.per_token(total, learns, live.net.config, settings.sequence_length)
    # DeepSpeed may partition the weights, and nothing above could read them then.
    first = prefix.first_learning(live.net, live.trainable)
    objective = Objective(live.net, method, terms, first)
    runner = Engine(
        objective, live.net, engine_settings, lambda name: method.peak_lr(name, settings.lr), universal=source != newest
    )
    # After DeepSpeed has moved the model to its device, because the base runs there; before the weights of a checkpoint come.
    with runner.gathered():
        before = live.tokenizer if live.had_rows else loading.load_tokenizer(loading.read_record(model).base)
        watch = Watch(ctx, live, before, lambda: frozen(model).net, probes)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "start": None}
    if newest is not None and source is not None:
        state = runner.load(newest, source)
    on_gpu = device.type == "cuda"
    return Session(
        settings, ctx, corpus, live, method, device, computes_in, order, steps, settings.rates(steps), watch,
        runner.from_first(base_bits), runner,
        _prefix(settings, ctx, model, corpus, live, order, first, runner), kept,
        checkpoints.on_first(lambda: BestWeights(ctx.out / CHECKPOINTS)), state, cost,
        (flops.peak(torch.cuda.get_device_name()) or 0) * ctx.world_size if on_gpu else 0,
    )  # fmt: skip


def _check_base(model: Model) -> None:
    """Raise ConfigError, in every process, when the base is not on the machine of one of them."""
    folder = loading.read_record(model).base
    lacking: list[str] = [""] * distributed.get_world_size()
    distributed.all_gather_object(lacking, "" if folder.is_dir() else socket.gethostname())
    if names := [name for name in dict.fromkeys(lacking) if name]:
        raise ConfigError(
            f"the base is not on {', '.join(names)}: {folder} is read on every machine. Copy it there; or set HF_HOME to a "
            "folder that all of them share, before a run begins"
        )


def _precision(settings: Settings, newest: Path | None) -> Precision:
    """The precision to compute in: with auto that of the checkpoint, if there is one, because it changes what is learnt."""
    here = settings.computes_in()
    if settings.precision != "auto" or newest is None:
        return here
    began = checkpoints.on_first(lambda: checkpoints.began_in(newest))
    if began != here:
        warn(f"this training began in {began} and goes on in it; a new one would compute in {here} on this machine")
    return began


def _live(settings: Settings, model: Model, dtype: torch.dtype, device: str) -> tuple[LiveModel, Method]:
    """The model to train and its method. Raises ConfigError when gates were never calibrated, and for sequences too long."""
    live = loading.load(model, dtype, device, attention=settings.runtime.attention)
    method = live.method
    assert method is not None and loading.read_record(model).method is not None, "refused when planning"
    if method.calibration and residue.uncalibrated(live.net):
        raise ConfigError("no gate of this model was ever calibrated: all are closed for any text, and nothing would be learnt")
    live.freeze()
    settings.check_length(live.net.config)
    return live, method


def _frozen(settings: Settings, dtype: torch.dtype, home: str, device: torch.device, model: Model) -> LiveModel:
    """A model without what was trained of it, to compare with. One that lies elsewhere than on the device is streamed."""
    found = loading.load(model, dtype, home, trained=False, attention=settings.runtime.attention)
    found.net.requires_grad_(False)
    if torch.device(home).type != device.type:
        streaming.install(found.net, device)
    return found


def _engine_settings(settings: Settings, ctx: Context, deepspeed: dict[str, Any], computes_in: Precision) -> EngineSettings:
    return EngineSettings(
        file=settings.runtime.deepspeed, deepspeed=deepspeed, micro_batch=settings.runtime.micro_batch,
        accumulate=settings.accumulate(), clip=settings.clip, bf16=computes_in == "bf16", betas=settings.betas,
        weight_decay=settings.weight_decay, ema=settings.ema, monitor=settings.runtime.monitor, out=ctx.out,
    )  # fmt: skip


def _install(settings: Settings, live: LiveModel, device: torch.device) -> None:
    """Change how the model computes, to save memory or time; its results stay the same."""
    if settings.runtime.activation_checkpointing:
        live.net.activation_checkpointing_enable({"use_reentrant": False})
        # transformers gives gradients to what the embeddings return. Only the reentrant kind needs that, and it would take the
        # backward pass through all layers, also those below the first one that learns.
        live.net.disable_input_require_grads()
    on_cpu = device.type == "cpu"  # nobody has measured on a GPU what these two do there
    if on_cpu and live.net.config._attn_implementation == "sdpa":
        attention.install(live.net)
    if settings.runtime.compile:
        for block in families.blocks(live.net):
            block.compile()
    elif on_cpu:
        recompute.install(live.net)


def _prefix(
    settings: Settings, ctx: Context, model: Model, corpus: Corpus, live: LiveModel, order: Mixture, first: int, runner: Engine
) -> Prefix | None:
    """What is kept of the layers below `first`; None when the settings have none of it, or when it would not be read."""
    manifest = read_base(model.path.parent)
    if manifest is None or not settings.keeps_prefix(first, live.net.config):
        return None
    shape_BT = (settings.runtime.micro_batch, order.length)
    folder = tokens.folder_of(ctx.tokens, corpus, live.tokenizer) / prefix.key(manifest, live.net, first, shape_BT)
    shape = order.length, live.net.config.hidden_size
    row_bytes = shape[0] * shape[1] * live.net.dtype.itemsize
    shared = ctx.tokens.resolve() != (ctx.out.parent / TOKENS).resolve()
    saved = first / live.net.config.num_hidden_layers
    if not checkpoints.on_first(lambda: prefix.pays(order, folder, row_bytes, saved, shared=shared)):
        return None
    stores = {name: prefix.Store(folder / name, shape, live.net.dtype) for name in order.names}
    return Prefix(live.net, first, order, stores, runner.agree)


def _probes(settings: Settings, ctx: Context, corpus: Corpus) -> dict[str, list[str]]:
    """Held-out passages by `<language>/<domain>`: others than an evaluation reads, as far as there are enough, because a result
    may be chosen by them. Raises ConfigError when the settings need some that are not there.
    """
    heldout = documents.heldout(corpus, ctx.languages)
    chosen = {name: bpb.passages(texts, 1000, settings.eval_bytes, last=True) for name, texts in heldout.items()}
    probes = {name: passages for name, passages in chosen.items() if passages}
    settings.check_heldout(ctx, probes)
    return probes


def _base_bits(ctx: Context, probes: Mapping[str, Sequence[str]], base: LiveModel) -> dict[str, float]:
    """Bits per byte of the passages in original languages, by the base of the run with its own vocabulary."""
    original = {name: texts for name, texts in probes.items() if name.split("/")[0] in ctx.original_languages}
    return {name: bpb.measure(base.net, base.tokenizer, texts).per_byte for name, texts in original.items()}


def _mixture(settings: Settings, ctx: Context, corpus: Corpus, live: LiveModel) -> tuple[Mixture, int]:
    """The order of all sequences, and the number of steps for which there is text.

    Raises ConfigError when there is too little text of the new language, or none of the original ones though it is asked for.
    """
    length = settings.sequence_length
    files = tokens.token_files(ctx.tokens, corpus, live.tokenizer, ctx.languages)
    sizes = {name: file.num_sequences(length) for name, file in files.items()}
    # Only sources that have text, but too little, are worth a line: an empty one has nothing to leave out.
    small = [name for name, size in sizes.items() if not size and len(files[name].tokens)]
    if small and ctx.rank == 0:
        say(f"  left out, with less than one sequence of {length} tokens: {', '.join(small)}")
    sizes = {name: size for name, size in sizes.items() if size}
    codes = {name.split("/")[0] for name in sizes}
    if ctx.language not in codes:
        raise ConfigError(f"less than one sequence of {length} tokens of {ctx.language} to train on")
    batch = settings.batch_sequences
    total = settings.steps * batch
    mixture.check_size(total)
    early = round(FIRST_FRAC * settings.steps) * batch if settings.original_first_frac else 0
    phases = [
        Phase(count, mixture.shares(sizes, ctx.language, ctx.original_languages, frac, settings.shares))
        for count, frac in ((early, settings.original_first_frac or 0.0), (total - early, settings.original_frac))
        if count
    ]
    order = Mixture({name: files[name] for name in sizes}, phases, ctx.language, length, ctx.seed)
    steps = settings.steps
    if settings.exhaustion == "stop" and order.first_repeat() < total:
        steps = order.first_repeat() // batch  # whole steps: the one in which text would repeat is not made
        name, _ = order.locate(order.first_repeat())
        if not steps:
            raise ConfigError(f"exhaustion is stop, and {name} is not enough for one step")
        if ctx.rank == 0:
            say(f"  {name} is read once after {steps} of {settings.steps} steps; training ends there (exhaustion: stop)")
            if steps < settings.warmup_steps:
                say(f"  warning: warmup_steps is {settings.warmup_steps}, so the learning rate does not reach its peak")
        order = order.cut(steps * batch)
    if ctx.rank == 0:
        _tell(ctx, order, sizes)
    return order, steps


def _tell(ctx: Context, order: Mixture, sizes: Mapping[str, int]) -> None:
    """Print how much of which source is read, and warn when the new language is read too often."""
    epochs, part, total = order.epochs(), order.shares(), len(order)
    shown = ", ".join(f"{name} {part[name]:.0%} ({epochs[name]:.2f} epochs)" for name in sizes)
    say(f"  {total * order.length:,} tokens: {shown}")
    new = [name for name in sizes if name.split("/")[0] == ctx.language]
    readings = total * sum(part[name] for name in new) / sum(sizes[name] for name in new)
    if readings > mixture.MOST_READINGS:
        warn(f"all text of {ctx.language} is read {readings:.0f} times; {mixture.TOO_MANY}")
