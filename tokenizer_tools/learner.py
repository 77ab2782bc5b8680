"""Learns new tokens from text, with other text protected, and asks the audit how many. The one rule: what is measured on when a
number is chosen is neither learnt from nor protected for it.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer_tools import audit, protect
from tokenizer_tools.kinds import Kind
from tokenizer_tools.words import telling, told

HELDOUT = 20
"""One document of so many is not learnt from, but measured."""


def parted(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what is learnt from, what is measured). Raises ValueError for too few documents."""
    if len(documents) < 2:
        raise ValueError("one document is too little: it cannot be learnt from and measured at once")
    return [text for i, text in enumerate(documents) if i % HELDOUT], list(documents[::HELDOUT])


def counts(kind: Kind, base: Any, documents: Sequence[str]) -> Any:
    """The words of documents; stderr tells how far the counting is."""
    size = sum(len(text.encode()) for text in documents)
    return kind.word_counts(base.backend_tokenizer, told(documents, telling(say), size))


@dataclass(frozen=True)
class Learner:
    """Learns so many new tokens, in the order of their ids."""

    kind: Kind
    base: Any
    words: Any
    """Of text in the new language."""
    apart: Any
    """What is guarded of protected text."""
    min_count: int

    def __call__(self, number: int) -> list[Any]:
        """At most so many new tokens; stderr tells how far the learning is."""
        state, progress = self.base.backend_tokenizer, telling(say)
        return list(self.kind.learn(state, self.words, number, self.min_count, self.apart, progress=progress))


def learner(kind: Kind, base: Any, new: Sequence[str], guarded: Sequence[str], min_count: int) -> Learner:
    """One that learns from `new` text, and leaves `guarded` text and the chat template as they are."""
    apart = kind.guarded(base.backend_tokenizer, counts(kind, base, [*protect.template(base), *guarded]))
    return Learner(kind, base, counts(kind, base, new), apart, min_count)


def advised(
    kind: Kind, base: Any, folder: Path, new: Sequence[str], originals: Mapping[str, Sequence[str]], min_count: int
) -> audit.Advice:
    """The advice for a new language. A part of all text is measured, and neither learnt from nor protected for it."""
    learn, measured = parted(new)
    kept = {code: parted(documents) for code, documents in originals.items()}
    near = audit.close(audit.use(base, measured), [audit.use(base, unseen) for _, unseen in kept.values()])
    if near:
        return near
    guarded = [text for seen, _ in kept.values() for text in seen]
    learnt = learner(kind, base, learn, guarded, max(min_count, audit.OCCURRENCES))
    unseen = [text for _, rest in kept.values() for text in rest]
    points = audit.curve(base, audit.grown(kind, base, learnt(audit.SIZES[-1]), learnt), measured, unseen)
    return audit.advise(points, audit.Matrices.of(folder))


def say(line: str) -> None:
    """Tell people something, beside what is printed as the result."""
    print(line, file=sys.stderr)
