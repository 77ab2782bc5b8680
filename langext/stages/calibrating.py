"""The text that gates are calibrated on, and what a calibration says of them. Used by the stages extend and recalibrate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch

from langext import languages
from langext.architectures import families
from langext.artifacts import Corpus
from langext.console import say
from langext.context import Context
from langext.data import documents
from langext.errors import ConfigError
from langext.evaluation import bpb
from langext.methods import residue
from langext.methods.base import Method
from langext.methods.calibrate import Calibrate
from langext.methods.extended import LiveModel
from langext.models import calibration
from langext.summaries import CalibrationRecord, GateShares

PIECE_BYTES = 1500
"""Longest piece of a document. Many documents are touched rather than a few read whole."""
DOCUMENTS = 2000
"""Documents of one source that pieces are taken from, at least; more where they are short."""
HELDOUT_TOKENS, HELDOUT_MUL_TOKENS = 4000, 12_000
"""Tokens of each held-out source of one language, of several, that show what the gates do on text that calibrated nothing."""
WINDOW = 512
"""Most tokens in a piece."""
BYTES_PER_TOKEN = 8
"""More bytes than a token of text has on average in any tokenizer; only so much text is cut into pieces."""
SAMPLES_PER_WIDTH = 2
"""Tokens of a language that fit the rows, at least, per unit of the model's width: a covariance of D x D needs more than D."""
SPARE = 1.1
"""How much more than the least is asked for: pieces do not end where they should."""
BEHIND_THRESHOLD = 5
"""Original tokens, at least, that may open a gate among those that set the thresholds: fewer make the share a guess."""


@dataclass(frozen=True)
class Pieces:
    """Token ids of pieces of text for one calibration."""

    fit_original: list[list[int]]
    fit_new: list[list[int]]
    tail_original: list[list[int]]
    """Original text that sets the thresholds; it did not fit the rows."""
    tail_new: list[list[int]]
    heldout: dict[str, list[list[int]]]
    """`<language>/<domain>` -> pieces that calibrate nothing."""


@dataclass(frozen=True)
class Calibrated:
    """Gates as they were calibrated, for the layers that get a block."""

    layers: list[int]
    row_LD: torch.Tensor
    t_L: torch.Tensor
    left_out: dict[int, float]
    """Layers that separate badly -> share of the new language that would have opened the gate."""

    def placed(self, method: Method) -> Method:
        """The method with blocks in these layers only."""
        return method.model_copy(update={"layers": self.layers})

    def put(self, net: Any) -> None:
        """Give the blocks of the newest extension these rows and thresholds."""
        blocks = residue.stacks(net)[-1]
        for layer, row_D, t in zip(self.layers, self.row_LD, self.t_L, strict=True):
            router: Any = blocks[layer].router
            router.weight.data.copy_(row_D[None])
            router.bias.data.copy_(-t[None])


def tokens_for(closed: float) -> int:
    """The least tokens of original and protected text that can show where so large a share is closed."""
    return round(2 * BEHIND_THRESHOLD / (1 - closed))


def pieces(ctx: Context, corpus: Corpus, live: LiveModel, settings: Calibrate) -> Pieces:
    """Choose text for a calibration. The same corpus gives the same pieces.

    Raises ConfigError when there is too little text of the new language, or too little that is to be kept.
    """
    config = live.net.config
    window = min(WINDOW, families.positions(config) or WINDOW)
    cut = partial(_rows, live.tokenizer, window=window)
    kept = [code for code in corpus.languages("train") if code != ctx.language]
    needed = 2 * SAMPLES_PER_WIDTH * config.hidden_size
    needed_original = max(needed, tokens_for(settings.closed))
    original = _side(corpus, kept, max(settings.original_tokens, round(SPARE * needed_original)), cut)
    new = _side(corpus, [ctx.language], max(settings.new_tokens, round(SPARE * needed)), cut)
    for name, halves, least in (("original", original, needed_original), ("new", new, needed)):
        if (found := sum(len(row) for half in halves for row in half)) < least:
            also = " (also with protect)" if name == "original" else ""
            raise ConfigError(
                f"calibrate: the training text gives {found:,} tokens of {name} language, and gates for width "
                f"{config.hidden_size} with closed {settings.closed:g} need {least:,}: give more text"
                f"{also}{', or lower calibrate.closed' if least > needed else ''}"
            )
        say(f"  calibrating on {found:,} tokens of {name} language")
    valid = {
        key: paths for code in corpus.languages("valid") for key, paths in documents.sources(corpus, "valid", code).items()
    }
    most = {key: HELDOUT_MUL_TOKENS if key.startswith(languages.MUL) else HELDOUT_TOKENS for key in valid}
    heldout = {key: cut(_texts(paths, most[key]), most[key]) for key, paths in valid.items()}
    return Pieces(original[0], new[0], original[1], new[1], {key: rows for key, rows in heldout.items() if rows})


def _side(
    corpus: Corpus, codes: Sequence[str], num_tokens: int, cut: Callable[..., list[list[int]]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Pieces of the training text of these languages, in two halves, in which the sources take turns.

    Each source gives the same number of tokens, half of them to either half.
    """
    sources = [paths for code in codes for paths in documents.sources(corpus, "train", code).values()]
    each = -(-num_tokens // max(1, len(sources)))
    sides = [cut(_texts(paths, each), each) for paths in sources]
    first, second = ([side[at::2] for side in sides] for at in range(2))
    return _interleaved(first), _interleaved(second)


def _interleaved(sides: Sequence[list[list[int]]]) -> list[list[int]]:
    return [row for row in chain.from_iterable(zip_longest(*sides)) if row is not None]


def _texts(paths: Sequence[Path], num_tokens: int) -> list[str]:
    """Texts of the first documents of a source, its files taking turns: many of them, and enough for so many tokens."""
    turns = zip_longest(*((document["text"] for document in documents.read(path)) for path in paths))
    texts, left = [], 2 * num_tokens * BYTES_PER_TOKEN
    for text in (text for turn in turns for text in turn if text is not None):
        if len(texts) >= DOCUMENTS and left <= 0:
            break
        texts.append(text)
        left -= len(text.encode())
    return texts


def _rows(tokenizer: Any, texts: Sequence[str], num_tokens: int, window: int) -> list[list[int]]:
    """Pieces of the texts as token ids, together about `num_tokens`, or all that there is."""
    chosen = bpb.passages(texts, PIECE_BYTES, num_tokens * BYTES_PER_TOKEN)
    rows, used = [], 0
    for at in range(0, len(chosen), 64):
        for row in documents.encode(tokenizer, chosen[at : at + 64]):
            if used < num_tokens:
                rows.append(row[:window])
                used += len(rows[-1])
    return rows


def fitted(net: Any, layers: Sequence[int], text: Pieces, settings: Calibrate) -> Calibrated:
    """Fit rows, set thresholds, and leave out the layers that separate badly.

    Raises ConfigError when no layer is left.
    """
    row_LD = calibration.fit(net, layers, text.fit_original, text.fit_new)
    original, new = (calibration.score(net, layers, row_LD, rows) for rows in (text.tail_original, text.tail_new))
    kept = calibration.separating(original, new, settings.closed, settings.min_open)
    shares = new.open(calibration.thresholds(original, settings.closed))
    if not kept:
        raise ConfigError(
            f"calibrate: no layer of this base tells the new language from the original text: with closed {settings.closed:g} "
            f"a gate opens for at most {max(shares):.1%} of the new language, and min_open is {settings.min_open:g}. Is the "
            "new language among the original or protected text? Else lower calibrate.closed or calibrate.min_open"
        )
    left_out = {layer: shares[at] for at, layer in enumerate(layers) if at not in kept}
    t_L = calibration.thresholds(original.only(kept), settings.closed)
    return Calibrated([layers[at] for at in kept], row_LD[kept], t_L, left_out)


def reported(ctx: Context, net: Any, found: Calibrated, text: Pieces, closed: float) -> CalibrationRecord:
    """The record of what the gates do on held-out text, which is printed too. `closed` is the share that was asked for."""
    shares = {}
    for name, rows in text.heldout.items():
        z = calibration.score(net, found.layers, found.row_LD, rows)
        shares[name] = GateShares(tokens=z.z_LN.shape[1], all_closed=z.closed(found.t_L), open=z.open(found.t_L))
        mean = sum(shares[name].open) / len(found.layers)
        say(
            f"  {name}, held out: every gate closed for {shares[name].all_closed:.2%} of the tokens, a gate open for {mean:.2%}"
        )
    for layer, share in found.left_out.items():
        say(f"  layer {layer} gets no block: its gate would open for {share:.0%} of {ctx.language} only")
    return CalibrationRecord(closed=closed, layers=found.layers, left_out=found.left_out, heldout=shares)
