"""Bits per byte: how many bits a model needs for one byte of UTF-8 text, comparable across tokenizers.

    bpb = sum over tokens of -log2 p(token | before) / number of bytes of the text

Rule: bytes are counted in the text itself, never in decoded tokens. A token that is not valid UTF-8 by itself would decode to a
replacement character, and its bytes would be counted wrongly.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from typing import Any

import numpy as np
import regex
import torch
from torch import nn

from langext.architectures import cross_entropy, families, vocabulary
from langext.artifacts import Corpus
from langext.console import SILENCE_SECONDS, Progress
from langext.context import Context
from langext.data import batches, documents
from langext.data.tokens import IGNORE
from langext.errors import ConfigError, RunFailed
from langext.evaluation import ratio

BREAKS = ("\n\n", "\n", ". ", "\u3002", "\u0964", "\u104b", "\u0f0d", " ")
"""Ends of a paragraph, a line, a sentence (with the marks of Chinese, Hindi, Burmese and Tibetan) and a word, in this order."""


@dataclass(frozen=True)
class PassageBits:
    """Bits and bytes of each passage, (num_passages,) arrays in the order of the passages."""

    bits: np.ndarray
    num_bytes: np.ndarray

    @property
    def per_byte(self) -> float:
        """Bits per byte over all passages."""
        return float(self.bits.sum() / self.num_bytes.sum())

    def stderr(self) -> float:
        """Standard error of `per_byte` over passages; nan for a single passage."""
        return ratio.error(self.bits, self.num_bytes)


def passages(texts: Iterable[str], passage_bytes: int, total_bytes: int, *, last: bool = False) -> list[str]:
    """Cut documents, at line or word ends, into passages of at most `passage_bytes` UTF-8 bytes, and choose `total_bytes`.

    All documents take turns, one passage each, so that a long one does not dominate. Their order, and that of the passages of
    each, is that of the sha256 of their text: chance, but always the same, whatever the order of files. A document that is
    there twice counts once. The last passage may exceed the total: none is cut short. With `last` they are taken from the other
    end of these orders: other passages than without it, as far as there are enough.
    """
    waiting = deque(_pieces(text, passage_bytes, last) for text in sorted(set(texts), key=_chance, reverse=last))
    chosen, used = [], 0
    while waiting and used < total_bytes:
        pieces = waiting.popleft()
        if (piece := next(pieces, None)) is not None:
            chosen.append(piece)
            used += len(piece.encode())
            waiting.append(pieces)
    return chosen


def _chance(text: str) -> bytes:
    return sha256(text.encode()).digest()


def _pieces(text: str, passage_bytes: int, last: bool) -> Iterator[str]:
    """The passages of a document by the hash of their text. The document is cut when the first one is asked for."""
    yield from sorted(_cut(text, passage_bytes), key=_chance, reverse=last)


def _cut(text: str, passage_bytes: int) -> list[str]:
    """Pieces of at most `passage_bytes` UTF-8 bytes, in order; none ends inside a character as readers see it."""
    data, pieces, at = text.encode(), [], 0
    while at < len(data):
        window = data[at : at + passage_bytes].decode(errors="ignore")  # without the first bytes of a character that is cut
        if at + passage_bytes < len(data):
            # The best break first: a paragraph, a line, a sentence, a word. Not in the first half, or pieces become tiny.
            breaks = [window.rfind(sep, len(window) // 2) + 1 for sep in BREAKS]
            window = window[: next((end for end in breaks if end), 0) or _whole(window)]
        if piece := window.strip():
            pieces.append(piece)
        at += len(window.encode())
    return pieces


def _whole(window: str) -> int:
    """Where to cut a text without breaks: before its last grapheme, whose vowel signs or other marks may come after the cut."""
    return len(window) - len(regex.findall(r"\X", window)[-1]) or len(window)


@torch.no_grad()
def measure(
    net: Any,
    tokenizer: Any,
    texts: Sequence[str],
    window: int = 512,
    batch_tokens: int = batches.TOKENS,
    observe: Callable[[torch.Tensor], None] | None = None,
    label: str = "",
) -> PassageBits:
    """Bits and bytes of each text under a model, which must be in evaluation mode. Every token is scored exactly once.

    A text longer than `window` tokens, or than the model has positions, is read in windows that overlap by half, so that every
    token after the first window has at least half a window of context. The first token is predicted from the start token, as
    in training. A forward pass has at most about `batch_tokens` tokens. `observe` is called after each one with a (B, T) mask
    of the scored positions. With a `label`, lines of progress are printed where it takes long.
    """
    window = min(window, families.positions(net.config) or window)
    windows = []  # (text index, ids, first scored position)
    for i, ids in enumerate(documents.encode(tokenizer, texts)):
        windows.append((i, ids[:window], 1))
        at = window
        while at < len(ids):
            begin = at - window // 2
            windows.append((i, ids[begin : begin + window], window // 2))
            at = begin + window
    bits = np.zeros(len(texts))
    device = net.get_input_embeddings().weight.device
    weight = vocabulary.head_weight(net.get_output_embeddings())
    progress = Progress(label, max(1, len(windows)), SILENCE_SECONDS) if label else None
    done = 0
    for take in batches.by_length([ids for _, ids, _ in windows], batch_tokens):
        if progress:
            progress.at(done)
        done += len(take)
        ids_BT = batches.padded([windows[w][1] for w in take]).to(device)
        scored = [[IGNORE] * (first - 1) + ids[first:] for _, ids, first in map(windows.__getitem__, take)]
        labels_BT = nn.functional.pad(batches.padded(scored, IGNORE), (0, 1), value=IGNORE).to(device)
        hidden_BTD = net.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        flat = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
        _, losses_N = cross_entropy.cross_entropy(flat, weight, labels_BT.reshape(-1), 1.0, families.softcap(net.config))
        if observe:
            observe(labels_BT != IGNORE)
        nats = losses_N.reshape(ids_BT.shape).sum(1).double().cpu().numpy()
        for row, w in enumerate(take):
            bits[windows[w][0]] += nats[row] / np.log(2)
    return PassageBits(bits, np.array([len(text.encode()) for text in texts]))


def best(curve: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row with the highest `score`. Raises RunFailed when no score is a finite number; other rows are never the best."""
    finite = [row for row in curve if isfinite(row["score"])]
    if not finite:
        raise RunFailed("no setting gives bits per byte that are a finite number: the weights of this model overflow")
    return max(finite, key=lambda row: row["score"])


class Ruler:
    """Measures different models or settings on the same passages."""

    def __init__(self, ctx: Context, corpus: Corpus, num_bytes: int):
        """Choose passages of about `num_bytes` bytes per language and domain: others than an evaluation reads, as far as there
        are enough, so that it does not judge a setting by the text that it was chosen on.

        Raises ConfigError when a language has no held-out text.
        """
        self.language = ctx.language
        heldout = documents.heldout(corpus, ctx.languages)
        chosen = {name: passages(texts, 1000, num_bytes, last=True) for name, texts in heldout.items()}
        self.passages = {name: found for name, found in chosen.items() if found}
        missing = [code for code in ctx.languages if not any(name.startswith(f"{code}/") for name in self.passages)]
        if missing:
            raise ConfigError(f"no held-out text of {', '.join(missing)} to choose a setting with")

    def measure(self, net: Any, tokenizer: Any) -> dict[str, float]:
        """`<language>/<domain>` -> bits per byte. Puts `net` into evaluation mode."""
        net.eval()
        return {name: measure(net, tokenizer, passages).per_byte for name, passages in self.passages.items()}

    def new(self, ours: dict[str, float], reference: dict[str, float]) -> float:
        """Mean of reference / ours over the sets of the new language. Above one means better than the reference."""
        return self._mean(ours, reference, lambda code: code == self.language)

    def original(self, ours: dict[str, float], reference: dict[str, float]) -> float:
        """Mean of reference / ours over the sets of the original languages."""
        return self._mean(ours, reference, lambda code: code != self.language)

    def every(self, ours: dict[str, float], reference: dict[str, float]) -> float:
        """Mean of reference / ours over all languages, each with equal weight."""
        codes = sorted({name.split("/")[0] for name in ours})
        return sum(self._mean(ours, reference, lambda code, c=c: code == c) for c in codes) / len(codes)

    def _mean(self, ours: Mapping[str, float], reference: Mapping[str, float], chosen: Any) -> float:
        ratios = [reference[name] / ours[name] for name in ours if chosen(name.split("/")[0])]
        return sum(ratios) / max(1, len(ratios))
