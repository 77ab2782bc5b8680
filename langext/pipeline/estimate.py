"""Estimates what a pipeline needs before it runs: parameters, tokens, FLOPs, memory and disk.

The one rule: it downloads nothing. The numbers come from shapes; activations and text sizes are rough.
"""

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langext import console, languages
from langext.errors import ConfigError
from langext.exports import targets
from langext.methods.base import Method
from langext.models import bases
from langext.pipeline import doubts, plan
from langext.pipeline.plan import Pipeline, Step
from langext.spec import located
from langext.stages import makes, sizing
from langext.stages.export import Export
from langext.stages.extend import Extend
from langext.stages.filter import Filter
from langext.stages.tokenizer import ExtendTokenizer
from langext.stages.train import Train
from langext.text_summaries import ROLES
from langext.training import flops

GiB = 2**30


@dataclass(frozen=True)
class Size:
    """Numbers of parameters: of the base, of the extended model, and of its trainable part; and the first layer that learns."""

    base: int
    total: int
    trainable: int
    first: int


def size(config: Any, methods: Sequence[Method], new_tokens: int) -> Size:
    """Numbers of parameters of a base and its extensions. The model is built from shapes, without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    from langext.architectures import vocabulary
    from langext.training import prefix

    # A copy, because building and extending a model may change its configuration. All of it has the device meta, what is added
    # too: it would else be drawn at random in memory, gigabytes of it for a large base.
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        net.tie_weights()
        base = sum(p.numel() for p in net.parameters())
        if new_tokens:
            vocabulary.extend(net, first_new=config.vocab_size, num_new=new_tokens)
        for other in methods[:-1]:
            other.extend(net)
        # Earlier languages stay as they are, so their parameters do not count as trainable.
        before = {name for name, _ in net.named_parameters()} if len(methods) > 1 else set()
        method = methods[-1]
        method.extend(net)

    def learns(name: str) -> bool:
        return name.endswith(vocabulary.NEW_ROWS) or (method.trainable(name, net.config) and name not in before)

    trainable = sum(p.numel() for name, p in net.named_parameters() if learns(name))
    return Size(base, sum(p.numel() for p in net.parameters()), trainable, prefix.first_learning(net, learns))


def training(config: Any, numbers: Size, train: Train) -> dict[str, float]:
    """Estimate the tokens, FLOPs, memory (bytes per process) and disk (bytes) of a train stage, by these names.

    FLOPs as in `flops.per_token`. Memory: 2 bytes per weight in bf16, 4 in fp32; for each trainable weight the same again for
    its gradient, and 12 bytes for the float32 master and AdamW's moments. ZeRO divides these among the processes. Activations:
    34 B T D L bytes in bf16 without checkpointing, with it 2 B T D L and one layer at a time the rest (Korthikanti et al. 2022,
    https://arxiv.org/abs/2205.05198), without attention scores. Disk: the kept checkpoints, one more that is being written, the
    delta, and the best weights if kept. `prefix` is the most disk that states of the lower layers take
    (`runtime.prefix_cache`); 0 where none are kept.
    """
    from langext.training import deepspeed_file
    from langext.training.checkpoints import bytes_each

    tokens = train.steps * train.batch_sequences * train.sequence_length
    per_step = flops.per_token(numbers.total, numbers.trainable, config, train.sequence_length)
    width = 2 if train.computes_in() == "bf16" else 4
    stage, processes = deepspeed_file.zero_stage(deepspeed_file.read(train.runtime.deepspeed)), train.runtime.processes
    weights = numbers.total * width / (processes if stage >= 3 else 1)
    gradients = numbers.trainable * width / (processes if stage >= 2 else 1)
    moments = numbers.trainable * 12 / (processes if stage >= 1 else 1)
    best = train.result == "best" or train.forgetting_budget is not None
    layers = config.num_hidden_layers
    per_token = config.hidden_size * (2 * layers + 34 if train.runtime.activation_checkpointing else 34 * layers)
    activations = train.runtime.micro_batch * train.sequence_length * per_token * width / 2
    return {
        "tokens": tokens,
        "flops": tokens * per_step,
        "memory": weights + gradients + moments + activations,
        "disk": numbers.trainable * ((train.keep_checkpoints + 1) * bytes_each(width == 2, train.ema) + 4 + 4 * best),
        "prefix": tokens * config.hidden_size * width * train.keeps_prefix(numbers.first, config),
    }


def show(spec: Pipeline, root: Path, file: Path, overrides: Sequence[str]) -> bool:
    """Print the plan: the stages with their inputs and state, then the estimates, then what is missing on this machine.

    Returns whether the pipeline can run.
    """
    steps = plan.plan(spec, root)
    todo, problem = [step for step in steps if step.state != "done"], ""
    try:
        plan.check_inputs(steps)
        plan.check(spec, steps, todo)
    except ConfigError as error:
        problem = located(error, file, overrides)
    originals = ", ".join(languages.find(code).name for code in spec.original_languages)
    console.say(f"{spec.name}: {languages.find(spec.language).name} added to {spec.base_model}, keeping {originals}")
    rows = []
    for step in steps:
        wired = ", ".join(f"{arg} <- {name}" for arg, (name, _, _) in step.inputs.items()) or "-"
        rows.append((step.out.name, step.stage.uses, wired, makes(step.stage).__name__, step.state))
    console.table(f"run folder {root}", ("stage", "uses", "reads", "makes", "state"), rows)
    for step in steps:
        if isinstance(step.stage, Filter):
            _show_text(step.name, step.stage)
    _show_models(spec, root, steps, todo)
    if unseen := _unseen(spec, steps):
        console.say(f"Not looked at, since they are on the hub and nothing is downloaded here: {', '.join(unseen)}")
    console.say(
        f"not ready to run: {problem}" if problem else "ready to run" + ", if these are as the pipeline says" * bool(unseen)
    )
    return not problem


def _show_models(spec: Pipeline, root: Path, steps: list[Step], todo: list[Step]) -> None:
    """What the trainings take, and which exports are possible, as far as the base is known."""
    config, models = None, dict[str, tuple[Method, ...]]()
    with suppress(ConfigError):  # it is among the problems. Sizes are those of a model that is built, if it can be
        models = plan.lineage(spec, steps)
        plan.check_models(spec, steps, [step for step in todo if isinstance(step.stage, (Extend, ExtendTokenizer))])
        config = bases.config_if_here(spec.base_model, spec.revision)
    if bases.place_if_here(spec.base_model, spec.revision) is None:
        console.say(
            "Config and tokenizer of the base are not on this machine: parameters, FLOPs and memory are unknown until a run."
        )
    new_text = doubts.tokens_to_learn(spec, root, steps)
    new_tokens = sum(sizing.most(step.stage.new_tokens) for step in steps if isinstance(step.stage, ExtendTokenizer))
    for step in steps:
        methods = models.get(step.inputs["model"][0], ()) if "model" in step.inputs else ()
        with suppress(ConfigError):
            if isinstance(step.stage, Train):
                cost = _show_training(step.name, step.stage, config, methods, new_tokens)
                for doubt in doubts.of_training(step.stage, cost.get("memory", 0), cost.get("disk", 0), root, new_text):
                    console.say(f"{step.name}: warning: {doubt}")
            if isinstance(step.stage, Export) and methods:
                _show_export(step.name, step.stage.format, config, methods)


def _unseen(spec: Pipeline, steps: Sequence[Step]) -> list[str]:
    """What the pipeline takes from the hub, of which nothing is known on this machine."""
    texts = [step.stage for step in steps if isinstance(step.stage, Filter) and step.state != "done"]
    found = [f"base_model {spec.base_model}"] if bases.unseen(spec.base_model, spec.revision) else []
    for source in (source for text in texts for source in text.sources if source.hub):
        with suppress(ConfigError):
            found += [f"dataset {source.origin}"] if source.folder() is None else []
    return list(dict.fromkeys(found))


def _show_text(name: str, text: Filter) -> None:
    rows = [
        (source.domain, source.language, source.origin, ROLES[source.role] + ", held out" * source.heldout_only)
        for source in text.sources
    ]
    console.table(f"text of {name}", ("source", "language", "from", "what it is"), rows)


def _show_training(name: str, train: Train, config: Any, methods: Sequence[Method], new_tokens: int) -> dict[str, float]:
    """Print what a training takes, and return it, as `training` does; {} where the base is not known."""
    tokens = train.steps * train.batch_sequences * train.sequence_length
    if config is None or not methods:
        console.say(f"{name}: {tokens:,} tokens in {train.steps} steps")
        return {}
    numbers = size(config, methods, new_tokens)
    cost = training(config, numbers, train)
    console.say(
        f"{name}: {tokens:,} tokens in {train.steps} steps ({train.original_frac:.0%} original), "
        f"{numbers.trainable / 1e6:.1f} M parameters learn of {numbers.total / 1e6:.1f} M (base {numbers.base / 1e6:.1f} M)"
    )
    console.say(
        f"{name}: about {cost['flops']:.1e} FLOPs, {cost['memory'] / GiB:.1f} GiB of memory for each of "
        f"{train.runtime.processes} process(es), {cost['disk'] / GiB:.2f} GiB of disk for checkpoints"
    )
    if cost["prefix"]:
        console.say(
            f"{name}: no backward pass below layer {numbers.first}; up to {cost['prefix'] / GiB:.2f} GiB of disk for the "
            "states that enter it, if text is read more than once (runtime.prefix_cache)"
        )
    return cost


def _show_export(name: str, form: str, config: Any, methods: Sequence[Method]) -> None:
    possible, unknown = [], []
    for other, target in targets.TARGETS.items():
        if reason := target.obstacle(config, methods, None):
            possible.append(f"not {other} ({reason})")
        elif config is None and target.folds:  # its shapes, as a scaled rope, can still forbid it
            unknown.append(other)
        else:
            possible.append(f"{other}: {target.architecture(config, methods)}")
    possible += [f"unknown until the base is here: {', '.join(unknown)}"] if unknown else []
    console.say(f"{name}: {form}. Possible with this base and method: {'; '.join(possible)}")
