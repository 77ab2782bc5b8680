"""Computing with a frozen model that no device can hold: its blocks are in the machine's memory, and moved one by one."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from langext.architectures import families, precision


def install(net: Any, device: torch.device) -> None:
    """Make `net` compute on `device`. All but its blocks is moved there now; the weights of a block only while it runs."""
    inside = {id(module) for block in families.blocks(net) for module in block.modules()}
    for module in net.modules():
        if id(module) not in inside:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(device)
    move_buffers(net, device)
    for block in families.blocks(net):
        precision.while_running(block, partial(_on, device=device))


def move_buffers(net: nn.Module, device: torch.device | str) -> None:
    """Move the buffers of a model, which are small."""
    for module in net.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


@contextmanager
def _on(block: nn.Module, device: torch.device) -> Iterator[None]:
    """In this context the weights of a block are on the device; when it ends, those in the machine's memory are back."""
    with precision.given_back(block):
        for parameter in block.parameters():
            parameter.data = parameter.data.to(device)
        yield
