"""Measure a model on sets of held-out text: bits per byte and gates, and the distance to its base.

The one rule: a figure that is no finite number ends the measurement.
"""

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from langext.console import say
from langext.errors import RunFailed
from langext.evaluation import scores

if TYPE_CHECKING:
    from langext.methods.extended import LiveModel

PASSAGE_BYTES = 1000


def bits(live: "LiveModel", texts: Mapping[str, list[str]], total_bytes: int) -> dict[str, scores.BpbScore]:
    """Bits per byte and gates of each set, on about `total_bytes` bytes of it. White space alone is left out, and said."""
    from langext.evaluation import bpb
    from langext.evaluation.gate_stats import Observer

    found: dict[str, scores.BpbScore] = {}
    for name, of_set in texts.items():
        passages = bpb.passages(of_set, PASSAGE_BYTES, total_bytes)
        if not passages:
            say(f"  {name}: its held-out text is only white space; left out")
            continue
        observer = Observer(live)
        measured = bpb.measure(live.net, live.tokenizer, passages, observe=observer, label=f"{name}, bits per byte")
        require_finite(f"{name}: bits per byte", measured.per_byte)
        spread = shown(measured.per_byte, measured.stderr())
        say(f"  {name}: {spread} bits per byte on {measured.num_bytes.sum():,} bytes")
        found[name] = scores.BpbScore(
            value=measured.per_byte,
            stderr=_known(measured.stderr()),
            bytes=int(measured.num_bytes.sum()),
            passages=len(passages),
            bits_each=[round(b, 3) for b in measured.bits.tolist()],
            bytes_each=measured.num_bytes.tolist(),
            **observer.figures(),
        )
    return found


def distances(
    base: Any, live: "LiveModel", texts: Mapping[str, Mapping[str, list[str]]], total_bytes: int
) -> tuple[dict[str, scores.KL], dict[str, scores.KL]]:
    """KL between the model before its newest extension and the model now, in nats per token: of each group, and of each set.

    `texts` has the sets of each group, which share `total_bytes` evenly. A set without text is left out. `base` is the
    `Reference` to the former model, see `langext.models.loading`. In float32, whatever the models are in: in bf16 two models
    that hardly differ are 0.002 apart.
    """
    from langext.architectures import precision
    from langext.evaluation import bpb
    from langext.evaluation.kl import BaseKL

    groups, sets = {}, {}
    for group, of_group in texts.items():
        chosen = {
            name: bpb.passages(of_set, PASSAGE_BYTES, -(-total_bytes // len(of_group))) for name, of_set in of_group.items()
        }
        passages = [passage for of_set in chosen.values() for passage in of_set]
        if not passages:
            continue
        with base.as_itself(), precision.float32(base.net):
            kl = BaseKL(base.net, base.tokenizer, passages, label=f"{group}, KL to the base")
        with precision.float32(live.net):
            each = np.array(kl.each(live.net))
        tokens = np.array([len(row) for row in kl.rows])
        groups[group] = found = _distance(group, each, tokens)
        say(f"  {group}: KL to the base {shown(found.value, found.stderr)} nats per token")
        names = np.repeat(list(chosen), [len(of_set) for of_set in chosen.values()])
        sets |= {name: _distance(name, each[names == name], tokens[names == name]) for name in chosen if chosen[name]}
    return groups, sets


def _distance(name: str, each: "np.ndarray", tokens: "np.ndarray") -> scores.KL:
    from langext.evaluation import bpb

    spread = bpb.PassageBits(each, tokens)
    require_finite(f"{name}: KL to the base", spread.per_byte)
    return scores.KL(value=spread.per_byte, stderr=_known(spread.stderr()), passages=len(each), tokens=int(tokens.sum()))


def shown(value: float, stderr: float | None, digits: int = 4) -> str:
    """A value with its standard error, where that is known."""
    return f"{value:.{digits}f}" + ("" if stderr is None or not isfinite(stderr) else f" ± {stderr:.{digits}f}")


def require_finite(what: str, value: float) -> None:
    """Raise RunFailed, which names `what`, for a value that is no finite number."""
    if not isfinite(value):
        raise RunFailed(f"{what} is {value}: the weights of this model overflow; with precision fp32 they may not")


def _known(stderr: float) -> float | None:
    return stderr if isfinite(stderr) else None
