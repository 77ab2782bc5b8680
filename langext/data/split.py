"""The held-out split. The one rule: what is measured on was never trained on, down to the paragraph.

A source of few documents, such as novels, is divided into passages, so that a part of each is held out and the rest trained on.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

FEW = 50
"""A source of fewer documents is divided."""
PASSAGE = 1000
"""Least characters of a passage, so that what is measured has some context. Most are a little longer."""
LONG = 2 * PASSAGE
"""A paragraph of more characters is divided further."""
SURELY_DIVIDED = 4 * PASSAGE
"""Text of so many characters has two passages at least, whatever its paragraphs are: the longest that cannot be divided is a
paragraph of LONG characters between two shorter than PASSAGE."""
DIVIDED = "divided"
"""Count: documents that were divided into passages."""
OF, AFTER = "of", "after"
"""Metadata of a passage: number and name of its document, and what stands between it and the next."""
GAP = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")
"""What stands between two paragraphs."""
_ENDS = (GAP, re.compile(r"\n"), re.compile(r"(?<=[.!?؟።։])\s+|(?<=[。！？।॥။។])\s*"), re.compile(r"\s+"))
"""Where text may be divided, the best places first: paragraphs, lines, sentences, words."""
_SENTENCE_END = re.compile(rf"\n+|{_ENDS[2].pattern}")


def unit_hash(text: str) -> float:
    """A number in [0, 1) from the sha256 of the text: evenly distributed, and always the same for the same text."""
    return text_hash(text) / 2**64


def text_hash(text: str) -> int:
    """The first 64 bits of the sha256 of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def passages(text: str) -> list[tuple[str, str]]:
    """Neighbouring paragraphs in pieces of at least PASSAGE characters, each with what stands between it and the next.

    A paragraph of more than LONG characters is divided at line ends, or else between sentences, words or characters.
    """
    found: list[str] = []
    begun = ""
    for piece in _pieces(text, 0):
        begun += piece
        if len(begun.rstrip()) >= PASSAGE:
            found.append(begun)
            begun = ""
    if begun:  # the last passage takes what is left, so that none is short
        found = [*found[:-1], "".join([*found[-1:], begun])]
    cut = [(passage.rstrip(), passage[len(passage.rstrip()) :]) for passage in found[:-1]]
    return [*cut, *((passage, "") for passage in found[-1:])]


def _pieces(text: str, level: int) -> Iterator[str]:
    """A text in pieces of which none is longer than LONG, but for white space. Together they are the text."""
    if len(text) <= PASSAGE or (level > 0 and len(text) <= LONG):
        yield text
    elif level == len(_ENDS):
        for start in range(0, len(text), PASSAGE):
            yield text[start : start + PASSAGE]
    else:
        start = 0
        for end in (match.end() for match in _ENDS[level].finditer(text)):
            yield from _pieces(text[start:end], level + 1)
            start = end
        yield from _pieces(text[start:], level + 1) if start < len(text) else ()


def sentences(text: str) -> Iterator[str]:
    """A text in sentences or lines, with the white space after them; together they are the text. Long ones come in words."""
    ends = [*(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    for start, end in zip([0, *ends], ends, strict=False):
        if end - start > LONG:
            yield from _pieces(text[start:end], len(_ENDS) - 1)
        elif end > start:
            yield text[start:end]


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
            for count, (text, after) in enumerate(passages(document.text)):
                yield Document(text=text, id=f"{document.id}#{count}", metadata={OF: [number, document.id], AFTER: after})


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
        begun: list[Document] = []
        for passage in data:
            if passage.metadata["split"] == "valid" or OF not in passage.metadata:
                yield passage
                continue
            if begun and passage.metadata[OF] != begun[0].metadata[OF]:
                yield _whole(begun)
                begun = []
            begun.append(passage)
        if begun:
            yield _whole(begun)


def _whole(passages: Sequence[Document]) -> Document:
    text = "".join(passage.text + passage.metadata[AFTER] for passage in passages[:-1]) + passages[-1].text
    return Document(text=text, id=passages[0].metadata[OF][1], metadata={"split": "train"})


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
