"""Held-out text as a ruler for choosing a setting: bits per byte by language and domain, and what to make of them."""

from collections.abc import Mapping
from typing import Any

from langext import bpb
from langext.artifacts import Corpus
from langext.context import Context
from langext.data import documents
from langext.spec import ConfigError

Bits = dict[str, float]
"""`<language>/<domain>` -> bits per byte."""


class Ruler:
    """The same passages, measured as often as wanted."""

    def __init__(self, ctx: Context, corpus: Corpus, num_bytes: int):
        """`num_bytes` of each language and domain. Raises ConfigError when a language has no held-out text."""
        self.language = ctx.language
        found = documents.heldout(corpus, ctx.languages)
        self.passages = {name: bpb.passages(texts, 1000, num_bytes) for name, texts in found.items()}
        missing = [code for code in ctx.languages if not any(n.startswith(f"{code}/") and p for n, p in self.passages.items())]
        if missing:
            raise ConfigError(f"no held-out text of {', '.join(missing)} to choose a setting with")

    def measure(self, net: Any, tokenizer: Any) -> Bits:
        """Bits per byte of every set."""
        net.eval()
        return {name: bpb.measure(net, tokenizer, passages).per_byte for name, passages in self.passages.items()}

    def new(self, ours: Bits, reference: Bits) -> float:
        """Mean over the new language's sets of reference / ours: above one is better than the reference."""
        return self._mean(ours, reference, lambda code: code == self.language)

    def original(self, ours: Bits, reference: Bits) -> float:
        """The same over the original languages' sets."""
        return self._mean(ours, reference, lambda code: code != self.language)

    def every(self, ours: Bits, reference: Bits) -> float:
        """The same, each language counting equally."""
        codes = sorted({name.split("/")[0] for name in ours})
        return sum(self._mean(ours, reference, lambda code, c=c: code == c) for c in codes) / len(codes)

    def _mean(self, ours: Mapping[str, float], reference: Mapping[str, float], chosen: Any) -> float:
        ratios = [reference[name] / ours[name] for name in ours if chosen(name.split("/")[0])]
        return sum(ratios) / max(1, len(ratios))
