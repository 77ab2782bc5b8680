"""The precision that a machine computes in, and computing in float32 with weights that are stored in lower precision.

This file must not import anything from langext: a copy of it runs in the process that reloads an export (exports/reload.py).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

WEIGHTS = torch.bfloat16
"""Precision of exported weights."""

Precision = Literal["bf16", "fp32"]
DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


def chosen(asked: Literal["auto"] | Precision, gpus: int) -> Precision:
    """The precision that a setting means on this machine: auto is bf16 on GPUs and on CPUs with instructions for it, else fp32.

    A CPU without such instructions (x86 before AVX-512, older ARM) multiplies matrices in bf16 tens of times more slowly than
    in float32.
    """
    if asked != "auto":
        return asked
    return "bf16" if gpus or torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def here(gpus: int) -> torch.dtype:
    """The dtype that auto means on this machine."""
    return DTYPES[chosen("auto", gpus)]


def ends(net: Any) -> list[nn.Module]:
    """The modules outside the decoder's blocks that have weights: embeddings, last norm and head."""
    return [net.get_input_embeddings(), net.model.norm, net.get_output_embeddings()]


def parts(net: Any) -> list[nn.Module]:
    """All modules that have weights: those of `ends`, then the blocks, first layer first."""
    return [*ends(net), *net.model.layers]


Rounding = Callable[[nn.Parameter], bool]
"""Returns True for the weights that are rounded to `WEIGHTS` before they are widened to float32."""


def none(parameter: nn.Parameter) -> bool:
    """False for every weight: nothing is rounded."""
    return False


@contextmanager
def given_back(module: nn.Module) -> Iterator[None]:
    """When this context ends, the weights that a module had at its beginning are back."""
    stored = [(p, p.data) for p in module.parameters()]
    try:
        yield
    finally:
        for parameter, data in stored:
            parameter.data = data


@contextmanager
def widened(module: nn.Module, rounding: Rounding = none) -> Iterator[None]:
    """In this context the weights of a module are in float32; when it ends, the stored weights are back."""
    with given_back(module):
        _widen(module, rounding)
        yield


@contextmanager
def float32(*nets: Any) -> Iterator[None]:
    """In this context models compute in float32, each of their blocks with weights that are widened only while it runs."""
    with ExitStack() as stack:
        for net in {id(net): net for net in nets}.values():
            for module in ends(net):
                stack.enter_context(widened(module))
            for block in net.model.layers:
                for hook in while_running(block, widened):
                    stack.callback(hook.remove)
        yield


def in_float32(modules: Iterable[nn.Module], whole: bool, rounding: Rounding = none) -> None:
    """Make modules compute in float32, in place.

    With `whole`, all weights are widened now and stay so, which needs memory for all of them. Otherwise the weights of a module
    are widened only while that module runs.
    """
    for module in modules:
        if whole:
            _widen(module, rounding)
        else:
            while_running(module, partial(widened, rounding=rounding))


def _widen(module: nn.Module, rounding: Rounding) -> None:
    for parameter in module.parameters():
        parameter.data = (parameter.data.to(WEIGHTS) if rounding(parameter) else parameter.data).float()
    if hasattr(module, "scalar_embed_scale"):  # Gemma's embedding factor was rounded to the precision of the stored weights
        module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float32)


def while_running(module: nn.Module, context: Callable[[nn.Module], AbstractContextManager[None]]) -> list[Any]:
    """Make a module run inside `context(module)` from now on. Returns the hooks that do it."""
    running: list[Any] = []

    def start(*_: Any) -> None:
        running.append(context(module))
        running[-1].__enter__()

    def stop(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    # The second one also after an error, or what the context has changed would stay so.
    return [module.register_forward_pre_hook(start), module.register_forward_hook(stop, always_call=True)]
