"""Learns new tokens from text, with other text protected, and asks the audit how many. The one rule: what is measured on when a
number is chosen is neither learnt from nor protected for it.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizer_tools import audit, protect
from tokenizer_tools.kinds import Kind
from tokenizer_tools.words import telling, told

HELDOUT = 20
"""One document of so many is not learnt from, but measured."""


class TooFew(ValueError):
    """Documents that cannot be divided."""


def parted(documents: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """(what is learnt from, what is measured) of documents with this name. Raises TooFew for less than two."""
    if len(documents) < 2:
        raise TooFew(
            f"{name}: one document is too little: it cannot be measured beside what is learnt or protected; divide it into "
            "several"
        )
    return [text for i, text in enumerate(documents) if i % HELDOUT], list(documents[::HELDOUT])


def together(sets: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The sets, with those of fewer than `HELDOUT` documents as one, and no set of one document where there is another."""
    left = sorted((item for item in sets.items() if item[1]), key=lambda item: len(item[1]))
    names, joined = list[str](), list[str]()
    while left and (len(left[0][1]) < HELDOUT or len(joined) == 1):
        name, documents = left.pop(0)
        names.append(name)
        joined += documents
    return {name: list(documents) for name, documents in left} | ({", ".join(names): joined} if joined else {})


def counts(kind: Kind, base: Any, documents: Sequence[str], *, thin: bool) -> Any:
    """The words of documents, of which rare ones may go with `thin`; stderr tells how far the counting is."""
    size = sum(len(text.encode()) for text in documents)
    return kind.word_counts(base.backend_tokenizer, told(documents, telling(say), size), thin)


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
    apart = kind.guarded(base.backend_tokenizer, counts(kind, base, [*protect.template(base), *guarded], thin=False))
    return Learner(kind, base, counts(kind, base, new, thin=True), apart, min_count)


def advised(
    kind: Kind, base: Any, folder: Path, new: Sequence[str], kept: Mapping[str, Sequence[str]],
    free: Mapping[str, Sequence[str]], min_count: int,
) -> audit.Advice:  # fmt: skip
    """The advice for a new language. A part of all text is measured, and neither learnt from nor protected for it.

    `kept` are sets of text of other languages that will be protected, `free` those that new tokens may change.
    """
    learn, measured = parted(new, "the new language")
    guarded = {name: parted(documents, name) for name, documents in together(kept).items()}
    unseen = [rest for _, rest in guarded.values()] + [list(documents[::HELDOUT]) for documents in free.values()]
    near = audit.close(audit.use(base, measured), [audit.use(base, each) for each in unseen])
    if near:
        return near
    seen = [text for part, _ in guarded.values() for text in part]
    learnt = learner(kind, base, learn, seen, max(min_count, audit.OCCURRENCES))
    rest = {"unseen text": list(chain.from_iterable(unseen))}
    points = audit.curve(base, audit.grown(kind, base, learnt(audit.SIZES[-1]), learnt), measured, rest)
    return audit.advise(points, audit.Matrices.of(folder))


def say(line: str) -> None:
    """Tell people something, beside what is printed as the result."""
    print(line, file=sys.stderr)
