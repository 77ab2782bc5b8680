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
        measured = bpb.measure(live.net, live.tokenizer, passages, observe=observer)
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
            **observer.layers(),
        )
    return found


def distances(base: Any, live: "LiveModel", texts: Mapping[str, list[str]], total_bytes: int) -> dict[str, scores.KL]:
    """KL between the model before its newest extension and the model now, in nats per token, for each entry that has text.

    `base` is the `Reference` to the former, see `langext.models.loading`.
    """
    from langext.evaluation import bpb
    from langext.evaluation.kl import BaseKL

    found: dict[str, scores.KL] = {}
    for name, of_set in texts.items():
        passages = bpb.passages(of_set, PASSAGE_BYTES, total_bytes)
        if not passages:
            continue
        with base.as_itself():
            kl = BaseKL(base.net, base.tokenizer, passages)
        spread = bpb.PassageBits(np.array(kl.each(live.net)), np.array([len(row) for row in kl.rows]))
        require_finite(f"{name}: KL to the base", spread.per_byte)
        found[name] = scores.KL(value=spread.per_byte, stderr=_known(spread.stderr()), tokens=int(spread.num_bytes.sum()))
        say(f"  {name}: KL to the base {shown(spread.per_byte, spread.stderr())} nats per token")
    return found


def shown(value: float, stderr: float | None, digits: int = 4) -> str:
    """A value with its standard error, where that is known."""
    return f"{value:.{digits}f}" + ("" if stderr is None or not isfinite(stderr) else f" ± {stderr:.{digits}f}")


def require_finite(what: str, value: float) -> None:
    """Raise RunFailed, which names `what`, for a value that is no finite number."""
    if not isfinite(value):
        raise RunFailed(f"{what} is {value}: the weights of this model overflow; with precision fp32 they may not")


def _known(stderr: float) -> float | None:
    return stderr if isfinite(stderr) else None
