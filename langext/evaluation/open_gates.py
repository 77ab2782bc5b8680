"""Find out which gates of a checkpoint were open in a forward pass. Needs torch alone, because a copy travels with exports.

Shapes: L layers, B passages, T tokens, E experts.
"""

import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Opened = Callable[[int, int], Tensor | None]
"""(B, T) of the last forward pass -> (L, B, T) True where a gate was open; None for a model without gates that close."""


def as_base(open_LBT: Tensor) -> Tensor:
    """(B, T) True for tokens that no open gate has influenced.

    A token is influenced by its own open gates, and by open gates of earlier tokens: attention in the layers above carries
    them on. Above the last layer there is no attention, so an open gate there influences only its own token.
    """
    reached_BT = open_LBT[:-1].any(0).cumsum(1) > 0
    return ~(reached_BT | open_LBT[-1])


def gates(net: Any, earlier: int = 0) -> Opened:
    """Find the gates in a checkpoint that transformers has loaded, and return the reader of those that are open.

    The first `earlier` extensions, in blocks or experts, are left out: they belong to a base that was extended itself.
    Known are the blocks of langext's own modeling file, and mixtures of experts that choose between a block and an expert of
    zeros (Glm4Moe). Where every expert is chosen (GraniteMoeHybrid, Qwen2Moe), a gate never closes.
    """
    found: list[tuple[int, Tensor]] = []

    def never(*_: int) -> None:
        return None

    for name, module in net.named_modules():
        layer, code = re.search(r"layers\.(\d+)\.", name), sys.modules.get(type(module).__module__)
        if layer is None:
            continue
        number, kind = int(layer[1]), getattr(module, "kind", None)
        if kind in getattr(code, "GATES", ()):
            if int(name.rpartition(".")[2]) < earlier:
                continue
            if kind not in getattr(code, "CLOSING", ()):
                return never
            module.register_forward_pre_hook(_of_block(found, number, code.GATES[kind]))  # type: ignore[union-attr]
        elif hasattr(module, "experts"):
            does = _does_something(module.experts)
            does[:earlier] = False
            if does.all() or net.config.num_experts_per_tok >= len(does):
                return never
            router = module.gate if hasattr(module, "gate") else module.router
            router.register_forward_hook(_of_router(found, number, does))
        else:
            continue
        found.append((number, torch.zeros(0)))  # there are gates

    if not found:
        return never

    def opened(num_passages: int, num_tokens: int) -> Tensor:
        out = torch.zeros(net.config.num_hidden_layers, num_passages, num_tokens, dtype=torch.bool)
        for number, flags in found:
            if len(flags):
                out[number] |= flags.reshape(num_passages, num_tokens).cpu()
        found.clear()
        return out

    return opened


def _of_block(found: list[tuple[int, Tensor]], layer: int, gate: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    def note(block: Any, given: tuple[Any, ...]) -> None:
        z = F.linear(given[0].float(), block.router.weight.float())
        if block.router.bias is not None:  # added afterwards, as the block does: a fused sum is rounded in another way
            z = z + block.router.bias.float()
        found.append((layer, gate(z) != 0))

    return note


def _of_router(found: list[tuple[int, Tensor]], layer: int, does_E: Tensor) -> Callable[..., None]:
    def note(_router: Any, _given: Any, output: Any) -> None:
        chosen = next(part for part in output if not part.is_floating_point())  # transformers 4 and 5 have another order
        found.append((layer, does_E[chosen.cpu()].any(-1)))

    return note


def _does_something(experts: Any) -> Tensor:
    """(E,) False for experts of zeros. transformers 5 has the experts of a layer in one tensor, version 4 in a list."""
    if isinstance(experts, torch.nn.ModuleList):
        return torch.tensor([any(bool(weight.any()) for weight in expert.parameters()) for expert in experts])
    return torch.stack([(weight.flatten(1) != 0).any(1) for weight in experts.parameters()]).any(0).cpu()
