"""A model of a stock architecture whose weights are made on demand, one part at a time.

The parts are the ends (embeddings, last norm, head) and every block of the decoder. The parts are never all in memory unless
the caller asks for it, so a model that does not fit into memory can still be run, compared and written.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from langext.architectures import families, precision, vocabulary

WEIGHTS = precision.WEIGHTS
"""Precision of exported weights."""

EXACT = "e_score_correction_bias"
"""End of the names of tensors that decide which experts are chosen. They are in float32 in exports and in every program."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Stock:
    """A model of a stock architecture, as functions that make its tensors."""

    config: Any
    """The transformers config of the model."""
    blocks: Sequence[Callable[[], Tensors]]
    """One function for each block, first layer first. It makes the block's tensors in float32, named as within the block."""
    ends: Callable[[], Tensors]
    """Makes all tensors outside the blocks, under full names. A head that is tied to the embeddings is left out."""

    def parts(self) -> Iterator[Tensors]:
        """All tensors under their full names, part by part: the ends, then the blocks."""
        yield self.ends()
        yield from self.layers()

    def layers(self) -> Iterator[Tensors]:
        """The tensors of the blocks under their full names, block by block."""
        for i, block in enumerate(self.blocks):
            yield {f"{families.LAYERS}{i}.{name}": tensor for name, tensor in block().items()}

    def shell(self) -> Any:
        """The model in evaluation mode, with weights on the meta device (no memory) and real buffers on the CPU."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            net = AutoModelForCausalLM.from_config(self.config, dtype=torch.float32)
        # Buffers (such as rotary frequencies) are in no checkpoint: transformers' own initialisation has to compute them.
        for module in net.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty_like(buffer, device="cpu"))
            if next(module.buffers(recurse=False), None) is not None:
                net._init_weights(module)
        return net.requires_grad_(False).eval()

    def model(self, *, whole: bool, rounded: bool) -> Any:
        """A model that computes in float32 and does not learn.

        With `whole`, all weights stay in memory; otherwise a block's weights are made each time the block runs. With `rounded`,
        the weights are those that an export writes (rounded to `WEIGHTS`); otherwise those before the rounding.
        """
        net = self.shell()
        ends = {name: tensor.to(WEIGHTS) if rounded else tensor for name, tensor in self.ends().items()}
        net.load_state_dict(ends, assign=True, strict=False)  # not strict: the blocks are filled below
        net.tie_weights()  # assign has replaced the embedding parameter, so a tied head must be pointed to the new one
        for block, make in zip(net.model.layers, self.blocks, strict=True):
            if whole:
                _fill(block, make(), rounded)
            else:
                _fill_while_running(block, make, rounded)
        precision.in_float32(precision.ends(net), whole)
        return net


def of(net: Any, change: Callable[[Any], Tensors] | None = None, config: Any = None) -> Stock:
    """The stock form of an extended model. `net` itself stays as it is; its weights may be in any precision.

    `change` gets a block and returns the tensors of the stock block; None returns the block's own tensors. `config` is that of
    the stock model; None takes a copy of the net's.
    """
    blocks = [part(block, change) for block in families.blocks(net)]
    return Stock(config or copy.deepcopy(net.config), blocks, lambda: ends(net))


def part(module: Any, change: Callable[[Any], Tensors] | None = None) -> Callable[[], Tensors]:
    """A function that makes the tensors of one block in float32. `change` is as in `of`."""

    def make() -> Tensors:
        with precision.widened(module):
            return (change or plain)(module)

    return make


def plain(module: Any) -> Tensors:
    """Name -> tensor of a module, as the module holds them."""
    return dict(module.state_dict())


def ends(net: Any) -> Tensors:
    """The tensors outside the blocks; the rows of an extended vocabulary are part of the embedding and head matrices."""
    tensors = {
        n: t for n, t in net.state_dict().items() if not n.startswith(families.LAYERS) and not n.endswith(vocabulary.NEW_ROWS)
    }
    tensors["model.embed_tokens.weight"], head = vocabulary.matrices(net)
    tensors.pop("lm_head.weight", None)  # a state dict has it also when it is tied
    return tensors if head is None else tensors | {"lm_head.weight": head}


def stored(tensors: Tensors) -> Tensors:
    """The tensors in the precision in which exports store them."""
    return {name: tensor.to(torch.float32 if name.endswith(EXACT) else WEIGHTS) for name, tensor in tensors.items()}


def _fill(block: nn.Module, tensors: Tensors, rounded: bool) -> None:
    made = stored(tensors) if rounded else tensors
    block.load_state_dict({name: tensor.float() for name, tensor in made.items()}, assign=True)
    block.requires_grad_(False)


def _fill_while_running(block: nn.Module, make: Callable[[], Tensors], rounded: bool) -> None:
    empty = plain(block)  # tensors on the meta device; putting them back frees the memory

    def fill(*_: Any) -> None:
        _fill(block, make(), rounded)

    def drop(*_: Any) -> None:
        block.load_state_dict(empty, assign=True)

    block.register_forward_pre_hook(fill)
    block.register_forward_hook(drop, always_call=True)
