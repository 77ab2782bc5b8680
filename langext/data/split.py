"""The held-out split. The one rule: what is measured on was never trained on, down to the paragraph.

A source of few documents, such as novels, is divided into passages, so that a part of each is held out and the rest trained on.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

FEW = 50
"""A source of fewer documents is divided."""
PASSAGE = 1000
"""Least characters of a passage, so that what is measured has some context. Most are a little longer."""
DIVIDED = "divided"
"""Count: documents that were divided into passages."""
OF, BREAK = "of", "break"
"""Metadata of a passage: number and name of its document, and what stands between it and the next."""


def unit_hash(text: str) -> float:
    """A number in [0, 1) from the sha256 of the text: evenly distributed, and always the same for the same text."""
    return text_hash(text) / 2**64


def text_hash(text: str) -> int:
    """The first 64 bits of the sha256 of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def passages(text: str) -> tuple[list[str], str]:
    """Neighbouring paragraphs in pieces of at least PASSAGE characters, and what stands between them.

    Paragraphs are divided by blank lines, or where there is none, by line ends. A text of one line stays whole.
    """
    gap = next((gap for gap in ("\n\n", "\n") if gap in text.strip()), "")
    found: list[str] = []
    begun: list[str] = []
    size = 0
    for paragraph in text.split(gap) if gap else [text]:
        begun.append(paragraph)
        size += len(paragraph)
        if size >= PASSAGE:
            found.append(gap.join(begun))
            begun, size = [], 0
    if begun:  # the last passage takes what is left, so that none is short
        found = [*found[:-1], gap.join([*found[-1:], *begun])]
    return found, gap


class Divide(PipelineStep):
    """Makes a document of every passage, in tasks for which `which` says so."""

    name = "divide"

    def __init__(self, which: Sequence[bool]):
        super().__init__()
        self.which = list(which)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the passages of every document, in order, or the documents as they are."""
        if not self.which[rank]:
            yield from data
            return
        self.stat_update(DIVIDED, value=0)
        for number, document in enumerate(data):
            self.stat_update(DIVIDED)
            found, gap = passages(document.text)
            for count, text in enumerate(found):
                yield Document(text=text, id=f"{document.id}#{count}", metadata={OF: (number, document.id), BREAK: gap})


class HoldOut(PipelineStep):
    """Marks each document as train or valid by a hash of its text, so that exact copies are always on the same side."""

    name = "hold out"

    def __init__(self, frac: float):
        super().__init__()
        self.frac = frac

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield each document with `split` in its metadata."""
        for document in data:
            document.metadata["split"] = "valid" if unit_hash(document.text) < self.frac else "train"
            yield document


class Unite(PipelineStep):
    """Makes one document of all passages of a document to train on; those that are held out stay as they are."""

    name = "unite"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents. Passages of one come one after the other, so only one is kept in memory."""
        of: tuple[int, str] | None = None
        gap, texts = "", []
        for passage in data:
            if passage.metadata["split"] == "valid" or OF not in passage.metadata:
                yield passage
                continue
            if texts and passage.metadata[OF] != of:
                yield _whole(of, texts, gap)
                texts = []
            of, gap = passage.metadata[OF], passage.metadata[BREAK]
            texts.append(passage.text)
        if texts:
            yield _whole(of, texts, gap)


def _whole(of: tuple[int, str] | None, texts: list[str], gap: str) -> Document:
    return Document(text=gap.join(texts), id=of[1] if of else "", metadata={"split": "train"})


class Shares(PipelineStep):
    """Counts documents and UTF-8 bytes of both splits, and keeps nothing else in their metadata."""

    name = "shares"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield every document."""
        for document in data:
            split = document.metadata["split"]
            document.metadata = {"split": split}
            self.stat_update(f"{split}_documents")
            self.stat_update(f"{split}_bytes", value=len(document.text.encode()))
            yield document
