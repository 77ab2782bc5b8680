"""A stock architecture whose weights are made when they are asked for, one part at a time.

The parts are the ends (embeddings, last norm, head) and each block of the decoder, so that a model that does not fit into
memory can be run, compared and written.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from langext.architectures import families, precision, vocabulary

WEIGHTS = precision.WEIGHTS
"""Precision of exported weights."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Stock:
    """A model to be written."""

    config: Any
    """Of transformers."""
    blocks: Sequence[Callable[[], Tensors]]
    """Each makes the tensors of a block, in float32, under their names within it."""
    ends: Callable[[], Tensors]
    """Makes everything else. A head that is tied to the embeddings is not there."""

    def parts(self) -> Iterator[Tensors]:
        """All tensors under their whole names, part after part."""
        yield self.ends()
        yield from self.layers()

    def layers(self) -> Iterator[Tensors]:
        """Those of the blocks."""
        for i, block in enumerate(self.blocks):
            yield {f"{families.LAYERS}{i}.{name}": tensor for name, tensor in block().items()}

    def shell(self) -> Any:
        """The model, its weights on the meta device. Its buffers are as transformers makes them."""
        with torch.device("meta"):
            net = AutoModelForCausalLM.from_config(self.config, dtype=torch.float32)
        for module in net.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty_like(buffer, device="cpu"))
            if next(module.buffers(recurse=False), None) is not None:
                net._init_weights(module)
        return net.requires_grad_(False).eval()

    def model(self, *, whole: bool, rounded: bool) -> Any:
        """The model, computing in float32. `whole` holds all of it; otherwise a block is made whenever it runs.

        `rounded`: with the weights that are written, instead of those they are rounded from.
        """
        net = self.shell()
        ends = {name: tensor.to(WEIGHTS) if rounded else tensor for name, tensor in self.ends().items()}
        net.load_state_dict(ends, assign=True, strict=False)
        net.tie_weights()
        for block, make in zip(net.model.layers, self.blocks, strict=True):
            if whole:
                _fill(block, make(), rounded)
            else:
                _fill_while_running(block, make, rounded)
        precision.in_float32(precision.ends(net), whole)
        return net


def of(net: Any, change: Callable[[Any], Tensors] | None = None, config: Any = None) -> Stock:
    """The stock form of an extended model, given what to `change` in a block: block -> its tensors; as they are if None.

    `net` itself stays as it is, and its weights may be in any precision.
    """
    blocks = [part(block, change) for block in families.blocks(net)]
    return Stock(config or copy.deepcopy(net.config), blocks, lambda: ends(net))


def part(module: Any, change: Callable[[Any], Tensors] | None = None) -> Callable[[], Tensors]:
    """What makes the tensors of one block."""

    def make() -> Tensors:
        with precision.widened(module):
            return (change or plain)(module)

    return make


def plain(module: Any) -> Tensors:
    """The tensors of a module by name."""
    return dict(module.state_dict())


def ends(net: Any) -> Tensors:
    """What is in no block, with the new rows of an extended vocabulary in their place."""
    found = {
        n: t for n, t in net.state_dict().items() if not n.startswith(families.LAYERS) and not n.endswith(vocabulary.NEW_ROWS)
    }
    found["model.embed_tokens.weight"], head = vocabulary.matrices(net)
    found.pop("lm_head.weight", None)
    return found if head is None else found | {"lm_head.weight": head}


def _fill(block: nn.Module, tensors: Tensors, rounded: bool) -> None:
    block.load_state_dict({n: t.to(WEIGHTS).float() if rounded else t for n, t in tensors.items()}, assign=True)
    block.requires_grad_(False)


def _fill_while_running(block: nn.Module, make: Callable[[], Tensors], rounded: bool) -> None:
    empty = plain(block)

    def fill(*_: Any) -> None:
        _fill(block, make(), rounded)

    def drop(*_: Any) -> None:
        block.load_state_dict(empty, assign=True)

    block.register_forward_pre_hook(fill)
    block.register_forward_hook(drop, always_call=True)
