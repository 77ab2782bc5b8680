"""Gates that are open on a stated share of tokens, for benchmarks of speed; they do not tell languages apart.

A threshold gate gets a random row w, and as threshold t the quantile of w . x over the tokens of one text. Not a program.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def method(layers: int) -> dict[str, Any]:
    """Calibrated gates, and blocks in the upper half of a base with so many layers, twice as wide as in all layers."""
    more = {"init": "lecun", "extra_params_frac": 0.2, "layers": {"top": layers // 2}}
    return {"name": "neutral_residues", "gate": "threshold", **more}


@torch.no_grad()
def open_on(live: Any, ids_BT: torch.Tensor, share: float) -> None:
    """Set rows and thresholds so that each gate is open on `share` of the tokens. The blocks must add nothing yet."""
    blocks = live.method.extensions(live.net)
    kept: list[tuple[Any, torch.Tensor]] = []
    hooks = [block.router.register_forward_pre_hook(lambda router, given: kept.append((router, given[0]))) for block in blocks]
    live.net.base_model(input_ids=ids_BT, use_cache=False)
    for hook in hooks:
        hook.remove()
    torch.manual_seed(0)
    for router, x_BTD in kept:
        # In numbers that bf16 has: training in bf16 and exports round both.
        w = (torch.randn(x_BTD.shape[-1]) * x_BTD.shape[-1] ** -0.5).bfloat16()
        z = (x_BTD.float() @ w.float()).flatten()
        router.weight.copy_(w[None])
        router.bias.copy_(-torch.quantile(z, 1 - share).bfloat16())


def calibrate(extended: Path, ids_BT: torch.Tensor, share: float) -> None:
    """The same for the delta of a finished stage extend."""
    from langext.artifacts import Model
    from langext.models import loading

    live = loading.load(Model(extended), torch.float32)
    open_on(live, ids_BT, share)
    loading.save_delta(extended, live.delta())


def tokens_of(run: Path, code: str, shape: Sequence[int], tokenizer: Any, split: str = "train") -> torch.Tensor:
    """(B, T) ids of the first text of a language and split (train, valid) in a run with a finished stage filter."""
    from langext.artifacts import Corpus
    from langext.data import documents

    corpus = Corpus(next(run.glob("[0-9][0-9]-filter")))
    ids: list[int] = []
    for paths in documents.sources(corpus, split, code).values():
        for texts in documents.batches(paths, 64):
            ids += [i for row in documents.encode(tokenizer, texts) for i in row]
            if len(ids) >= shape[0] * shape[1]:
                return torch.tensor(ids[: shape[0] * shape[1]]).view(*shape)
    raise SystemExit(f"less than {shape[0] * shape[1]} tokens of {code}")
