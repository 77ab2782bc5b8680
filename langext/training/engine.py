"""The only module that calls DeepSpeed: start, step, save and load. One CPU process and many GPUs use the same code.

DeepSpeed keeps float32 masters of the trainable weights, partitions them (and, under ZeRO 3, the model) and clips gradients.
Everything else is done by langext.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from io import StringIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

from langext.architectures import streaming, vocabulary
from langext.artifacts import first_problem
from langext.errors import ConfigError, RunFailed, reading
from langext.training import checkpoints, deepspeed_file, pickles
from langext.training.engine_settings import EngineSettings

PATIENCE = timedelta(minutes=30)
"""How long processes wait for one another. Work that one process does alone, such as converting a checkpoint, takes less."""


class NotFinite(Exception):
    """A loss was infinite or not a number. The weights are still those from before the step."""


def join_processes() -> torch.device:
    """Join the process group of the launcher, or make a group of one process. Returns the device of this process."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # slow, and it reads DS_ACCELERATOR during the import, so the variable is set before

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # its warnings are about its own internals
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls, not ours
    # DeepSpeed would compile its own shared-memory all-reduce, which needs a C++ compiler; gloo does the same without one.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    pickles.restrict()
    if "RANK" not in os.environ:  # alone: no port, which another run could take, and no file, which a kill would leave behind
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        os.environ.setdefault("LOCAL_RANK", "0")
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=PATIENCE)
    if backend == "gloo":
        # Otherwise DeepSpeed converts every gradient to float64 for its norm, which takes about 5% of a step.
        accelerator: Any = deepspeed.accelerator.get_accelerator()
        accelerator.is_fp64_supported = lambda: False
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def check_zero(file: str, config: dict[str, Any]) -> None:
    """Raise ConfigError when the DeepSpeed configuration of `file` has settings of ZeRO that DeepSpeed does not know."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it searches for a GPU and warns
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig.model_validate(config.get("zero_optimization", {}))
    except ValidationError as error:
        raise ConfigError(f"{file}: zero_optimization.{first_problem(error)}", at=("runtime", "deepspeed")) from None


class Engine:
    """A model under DeepSpeed, with AdamW on its trainable parameters."""

    def __init__(
        self, objective: Any, net: Any, settings: EngineSettings, peak: Callable[[str], float], *, universal: bool = False
    ):
        """`objective` wraps `net` and returns the loss. `peak` gives the peak learning rate for the name of a parameter.
        `universal` as in `EngineSettings.for_deepspeed`.
        """
        import deepspeed

        by_rates = groups(net, objective.method, peak, settings.weight_decay)
        self.groups = list(by_rates)
        # Rate and decay are 0 here because `step` sets both before every step.
        optimizer = torch.optim.AdamW(
            [{"params": members} for members in by_rates.values()], lr=0.0, betas=settings.betas, weight_decay=0.0, fused=True
        )
        self.net, self.settings, self.ema = net, settings, settings.ema
        self.zero_stage = deepspeed_file.zero_stage(settings.deepspeed)
        self.deepspeed: Any
        whole = settings.for_deepspeed(universal=universal)
        try:
            with redirect_stdout(StringIO()):  # on a GPU it prints the use of memory after every step of its start
                if self.zero_stage == 3:  # weight by weight; else DeepSpeed moves the whole model to the device before
                    deepspeed.zero.Init(module=objective, config_dict_or_path=whole)
                    accelerator: Any = deepspeed.accelerator.get_accelerator()
                    streaming.move_buffers(objective, accelerator.current_device_name())
                self.deepspeed, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=whole)
        except ValidationError as error:
            raise ConfigError(f"{settings.file}: {first_problem(error)}", at=("runtime", "deepspeed")) from None
        self.read_outside = [*vocabulary.head_parameters(net), *objective.method.read_outside(net)]
        """Weights that loss and measurements read without calling the module that has them."""
        if self.zero_stage == 3:
            for parameter in self.read_outside:
                deepspeed.zero.register_external_parameter(objective, parameter)
        self.average = [weights.detach().clone() for weights in self._flat()] if self.ema else []

    def __call__(self, *inputs: Any) -> Any:
        """Forward pass of the objective, with its arguments and its result."""
        return self.deepspeed(*inputs)

    def step(self, losses: Iterable[Tensor], factor: float) -> float:
        """Make one optimizer step over the losses of the micro-batches, at `factor` times the peak learning rates.

        Returns the norm of the gradient before clipping. If a loss is not finite in any process, raises NotFinite in every
        process, before a weight is changed.
        """
        for group, (peak, decay) in zip(self.deepspeed.optimizer.param_groups, self.groups, strict=True):
            # Set anew in each step: loading a checkpoint brings back the values of the step in which it was written.
            group["lr"], group["weight_decay"] = peak * factor, decay
        norm, odd = None, torch.zeros((), dtype=torch.bool, device=self.deepspeed.device)
        for number, loss in enumerate(losses, start=1):
            self.deepspeed.backward(loss)
            # Kept on the device: reading the value here would make the CPU wait for the GPU in every micro-batch.
            odd |= ~torch.isfinite(loss.detach())
            if number == self.settings.accumulate:
                if self.agree(int(odd)):
                    raise NotFinite
                if not self.zero_stage:  # all gradients are on this process, and DeepSpeed does not report their norm
                    norm = torch.nn.utils.clip_grad_norm_(self._learning().values(), self.settings.clip)
            self.deepspeed.step()
        if self.ema:
            for average, weights in zip(self.average, self._flat(), strict=True):
                average.lerp_(weights.detach(), 1 - self.ema)
        return float(self.deepspeed.get_global_grad_norm() if norm is None else norm)

    def agree(self, value: int) -> int:
        """The largest `value` of all processes, so that all of them take the same decision."""
        if distributed.get_world_size() == 1:
            return value
        shared = torch.tensor([value], device=self.deepspeed.device)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return int(shared)

    def from_first(self, value: Any) -> Any:
        """The `value` of rank 0, in every process: measurements can differ in the last bit, and decisions must not."""
        shared = [value]
        distributed.broadcast_object_list(shared)
        return shared[0]

    def everywhere(self, values: list[Any]) -> list[list[Any]]:
        """The `values` of all processes, in order of rank; the same in every process."""
        gathered: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, values)
        return gathered

    def report(self, tokens: int, figures: dict[str, float]) -> None:
        """Send numbers, by name, to DeepSpeed's monitor if one is enabled. `tokens` is the position on the x axis."""
        if self.deepspeed.monitor.enabled and distributed.get_rank() == 0:
            self.deepspeed.monitor.write_events([(name, value, tokens) for name, value in figures.items()])

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """A context in which every process has the whole of the weights `read_outside`. Changes something only under ZeRO 3.

        They stay whole even after a module that has or shares them has run.
        """
        if self.zero_stage != 3:
            yield
            return
        import deepspeed

        weights, reader = self.read_outside, -1  # no module has this id
        # DeepSpeed releases a weight when no module uses it any more. A tied head is released after the embedding has run,
        # unless it has one more user: this made-up id.
        with deepspeed.zero.GatheredParameters(weights):
            for parameter in weights:
                parameter.ds_active_sub_modules.add(reader)
            try:
                yield
            finally:
                for parameter in weights:
                    parameter.ds_active_sub_modules.discard(reader)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the weights of the model are their running average. Changes nothing when no average is kept."""
        if not self.ema:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap the weights with their running average."""
        for average, weights in zip(self.average, self._flat(), strict=True):
            kept = weights.detach().clone()
            weights.copy_(average)
            average.copy_(kept)
        if self.zero_stage:  # the forward pass uses the model's own copy, which DeepSpeed renews only in an optimizer step
            learning = self._learning()
            for name, master in self._masters():
                learning[name].copy_(master)

    def masters(self) -> dict[str, Tensor]:
        """On rank 0: trainable parameters by name, whole, on the CPU, float32 where DeepSpeed keeps masters. Elsewhere: {}."""
        kept = {}
        for name, master in self._masters():  # every process must take part in gathering a parameter
            if distributed.get_rank() == 0:
                kept[name] = master.detach().cpu().clone()
        return kept

    def _masters(self) -> Iterator[tuple[str, Any]]:
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self._learning().items():
            yield name, parameter.detach() if not self.zero_stage else safe_get_full_fp32_param(parameter)

    def _learning(self) -> dict[str, Any]:
        return {name: p for name, p in self.net.named_parameters() if p.requires_grad}

    def _flat(self) -> list[Tensor]:
        """The weights that the optimizer of this process updates: under ZeRO 1 and 2 its part of the float32 masters."""
        inner = self.deepspeed.optimizer.optimizer if self.zero_stage else self.deepspeed.optimizer
        return [weights for group in inner.param_groups for weights in group["params"]]

    def save(self, kept: checkpoints.Checkpoints, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint of `step`: trainable weights, optimizer, running average and `state`.

        Raises RunFailed when the disk has too little room.
        """
        # Under ZeRO 3 `numel` is 0 while a weight is partitioned; `ds_numel` is its full size.
        size = sum(getattr(p, "ds_numel", p.numel()) for p in self._learning().values())
        needed = size * checkpoints.bytes_each(self.settings.bf16, self.ema)
        kept.write(step, lambda folder: self._fill(folder, state), self.settings.layout, needed)

    def _fill(self, folder: Path, state: dict[str, Any]) -> None:
        self.deepspeed.save_checkpoint(
            str(folder),
            tag=checkpoints.STATE,
            client_state={"langext": state},
            exclude_frozen_parameters=True,
            save_latest=False,
        )
        if self.ema:
            with self.averaged():
                average = self.masters()
            if average:
                save_file({name: tensor.contiguous() for name, tensor in average.items()}, folder / checkpoints.AVERAGE)

    def load(self, checkpoint: Path, state_from: Path) -> dict[str, Any]:
        """Load a checkpoint and return its `state`. `state_from` is the folder `checkpoint` or its universal form."""
        # The average is put into the weights, copied from there in this process's partition, and then load_checkpoint
        # overwrites the weights.
        if self.ema:
            with reading(checkpoint / checkpoints.AVERAGE, "safetensors"):
                average = load_file(checkpoint / checkpoints.AVERAGE)
            self._set({name: pickles.weight(average, name, like, checkpoint) for name, like in self._learning().items()})
            self.average = [weights.detach().clone() for weights in self._flat()]
        try:
            _, client = self.deepspeed.load_checkpoint(str(state_from), tag=checkpoints.STATE, load_module_strict=False)
        except UnpicklingError as error:
            raise RunFailed(f"{state_from}: {pickles.reason(str(error))}. {pickles.MEND}") from None
        if not isinstance(client, dict) or not isinstance(client.get("langext"), dict):
            raise RunFailed(f"{checkpoint}: not written by a training of langext. {pickles.MEND}")
        return client["langext"]

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self._learning().items():
            value = values[name].to(parameter.device)
            if self.zero_stage:  # the masters are partitioned, and DeepSpeed knows which part is whose
                safe_set_full_fp32_param(parameter, value)
            else:
                parameter.copy_(value)


def groups(net: Any, method: Any, peak: Callable[[str], float], weight_decay: float) -> dict[tuple[float, float], list[Any]]:
    """(peak learning rate, weight decay) -> the parameters that learn with them."""
    found: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and method.decays(name)
            found.setdefault((peak(name), weight_decay if decays else 0.0), []).append(parameter)
    return found


def convert_to_universal() -> None:
    """Run DeepSpeed's converter of checkpoints, which takes its arguments from the command line of this process."""
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(ds_to_universal.parse_arguments())
