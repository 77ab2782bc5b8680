"""Keep held-out text out of the text to train on, paragraph by paragraph, in whatever source of the language it stands.

The one rule: a text or passage that is measured on is not trained on, nor is a paragraph or line of it that has LEAST letters;
of code, which is whole files, the first alone. Duplicates are whole texts or passages, so a book that is one document here and
a hundred there has none; its paragraphs are the same.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter

from langext.data.density import letters
from langext.data.split import GAP, PASSAGE, passages, sentences, text_hash, unit_hash

LEAST = 60
"""Letters, with every run of white space as one; 20 characters of Chinese. Shorter parts, as headings, are in many texts."""
START = 4
"""Words at the beginning of a text that are looked at first."""
WIDE = 2 * LEAST
"""Characters of a line or paragraph from which on its sentences are compared, too."""
FORM = 3
"""Number of the form of `keys` and of what `Mark` writes. Raise it with any change: keys of another form match nothing."""
REASON, PARTS = "held_out", "heldout_parts"
"""Reason to drop a paragraph; and the count of them."""


def keys(text: str) -> set[int]:
    """Numbers for a text, its passages, and the paragraphs, lines and sentences of it that are long; equal for equal ones.

    Paragraphs may be cut between their sentences elsewhere.
    """
    wholes = {text, *(passage for passage, _ in _passages(text))}
    parts = {part for block in GAP.split(text) for part in (block, *block.split("\n"))}
    parts |= {sentence for part in list(parts) if len(part) > WIDE for sentence in sentences(part)}
    return {_key(whole) for whole in wholes} | {_key(part) for part in parts if _is_long(part)}


def _passages(text: str) -> list[tuple[str, str]]:
    """What the text is measured in when its source is divided; only itself when it is short."""
    return passages(text) if len(text) > PASSAGE else [(text, "")]


def _key(part: str) -> int:
    """64 bits: 32 of the first words, which are quickly had, and 32 of all of them."""
    return _start(part) << 32 | text_hash(" ".join(part.split())) & 0xFFFFFFFF


def _start(part: str) -> int:
    return zlib.crc32(" ".join(part.split(maxsplit=START)[:START]).encode())


def _is_long(part: str) -> bool:
    return letters(" ".join(part.split())) >= LEAST


class Held:
    """What is held out, by its keys. Most text is known not to be there from its first words alone."""

    def __init__(self, held: set[int]):
        self.keys, self.starts = held, {key >> 32 for key in held}

    def __contains__(self, part: str) -> bool:
        return _start(part) in self.starts and _key(part) in self.keys


def without(text: str, held: Held) -> tuple[str, list[str]]:
    """The text without passages, paragraphs and lines that are in `held`, and these; nothing of a text that is there whole."""
    if text in held:
        return "", [text]
    rest, removed = "", list[str]()
    for passage, after in _passages(text):
        if passage in held:
            removed.append(passage)
        else:
            rest += passage + after
    rest, parts = _without_parts(rest, held)
    removed += parts
    return (rest, removed) if removed else (text, [])


def _without_parts(text: str, held: Held) -> tuple[str, list[str]]:
    """The text without the long paragraphs, lines and sentences that are in `held`, and these."""
    rest, removed = "", list[str]()
    start, gap = 0, ""
    for match in [*GAP.finditer(text), None]:
        block = text[start : match.start() if match else len(text)]
        lines = block.split("\n")
        if len(lines) > 1 and _goes(block, held):
            lines = [block]
        gone = [line for line in lines if _goes(line, held)]
        cut = [_cut(line, held) for line in lines if line not in gone]
        kept = [line for line, _ in cut if line]
        removed += [*gone, *(sentence for _, of_line in cut for sentence in of_line)]
        if kept:
            rest += gap + "\n".join(kept)
            gap = ""
        if match:
            start, gap = match.end(), gap or match[0]
    return rest.strip("\n"), removed


def _cut(line: str, held: Held) -> tuple[str, list[str]]:
    """A line without the sentences that are in `held`, and these; as it is where it is not wide."""
    if len(line) <= WIDE:
        return line, []
    every = list(sentences(line))
    gone = [sentence for sentence in every if _goes(sentence, held)]
    return ("".join(sentence for sentence in every if sentence not in gone).rstrip() if gone else line), gone


def _goes(part: str, held: Held) -> bool:
    return part in held and _is_long(part)


class Mark(PipelineStep):
    """Writes down what is held out of every part, and of each part its text with the smallest hash: `<folder>/<part>.npz`."""

    name = "mark"

    def __init__(self, frac: float, folder: Path):
        super().__init__()
        self.frac, self.folder = frac, folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield every document."""
        held, first = set[int](), set[int]()
        least, count = 1.0, 0
        for document in data:
            value = unit_hash(document.text)
            count += 1
            own = keys(document.text) if value < max(self.frac, least) else set()
            if value < self.frac:
                held |= own
            if value < least:
                least, first = value, own
            yield document
        self.folder.mkdir(parents=True, exist_ok=True)
        path, numbers = self.folder / f"{rank:05d}.npz", (_array(held), _array(first))
        np.savez(path, least=np.float64(least), count=np.int64(count), held=numbers[0], first=numbers[1])


def chosen(folder: Path, parts: int, frac: float) -> tuple[float, set[int]]:
    """The share of a source that is held out by its hashes, and the keys of that text, from what `Mark` has written.

    It is `frac`, or as much as it takes for one text to be held out, if the source has two.
    """
    found = [dict(np.load(folder / f"{rank:05d}.npz")) for rank in range(parts)]
    least = min(float(part["least"]) for part in found)
    held = {key for part in found for key in part["held"].tolist()}
    if least < frac or sum(int(part["count"]) for part in found) < 2:
        return frac, held
    first = next(part for part in found if float(part["least"]) == least)
    return math.nextafter(least, 1.0), set(first["first"].tolist())


def write(path: Path, held: set[int]) -> None:
    """Write the keys of all text of a language that is held out, for `Apart`."""
    np.save(path, _array(held))


class Apart(PipelineStep):
    """Takes what is held out anywhere out of text to train on. A document of which nothing is left is dropped."""

    name = "apart"

    def __init__(self, path: Path, rejects: DiskWriter, whole: bool = False):
        """With `whole` a document stays as it is, or goes: a file of code is of no use without some of its lines."""
        super().__init__()
        self.path, self.rejects, self.whole = path, rejects, whole

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of which something is left."""
        held = Held(set(np.load(self.path).tolist()))
        with self.rejects as rejects:
            for document in data:
                if document.metadata["split"] == "train" and (not self.whole or document.text in held):
                    document.text, removed = without(document.text, held)
                    self._told(document, removed, rejects, rank)
                if document.text.strip():
                    yield document

    def _told(self, document: Document, removed: Sequence[str], rejects: DiskWriter, rank: int) -> None:
        for number, text in enumerate(removed):
            self.stat_update(PARTS)
            rejects.write(Document(text=text, id=f"{document.id}#held{number}", metadata={"filter_reason": REASON}), rank)
        if removed and not document.text.strip():
            self.stat_update(f"dropped_{REASON}")


def _array(numbers: set[int]) -> np.ndarray:
    return np.array(sorted(numbers), np.uint64)
