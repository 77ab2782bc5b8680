"""The step that keeps the text in one language: whole documents, or the paragraphs or lines of them that are in it.

The one rule: a document comes out of it in the order in which it came, and what is dropped is in the rejects with the reason.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.batching import batched

from langext.data.language_id import LanguageId
from langext.data.verdict import EMPTY, Rule, Verdict, together

Level = Literal["document", "paragraph", "line"]
MOST_DOCUMENTS, MOST_CHARACTERS = 256, 4 << 20
"""Documents and characters that are judged together. A single longer document is judged by itself."""
MOST_UNITS = 4096
"""Documents, paragraphs or lines that the model is asked about together."""
_BREAKS = {"paragraph": re.compile(r"(\n[^\S\n]*(?:\n[^\S\n]*)+)"), "line": re.compile(r"(\n+)")}


def units(text: str, level: Level) -> list[tuple[str, str]]:
    """The parts of a text that are judged by themselves, each with the line breaks before it. A blank text is one part."""
    if level == "document" or not text.strip():
        return [("", text)]
    found = _BREAKS[level].split(text)
    return [(gap, part) for gap, part in zip(["", *found[1::2]], found[::2], strict=True) if part.strip()]


class LanguageFilter(PipelineStep):
    """Keeps what a rule keeps; writes the rest to `rejects`.

    `rule` is None for text in many languages: all is kept but what has the label `unwanted` as its first choice.
    """

    name, type = "language", "filter"

    def __init__(
        self,
        lid: LanguageId,
        rule: Rule | None,
        level: Level,
        rejects: DiskWriter | None,
        unwanted: frozenset[str] = frozenset(),
    ):
        super().__init__()
        self.lid, self.rule, self.rejects, self.unwanted = lid, rule, rejects, unwanted
        self.level: Level = level

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of which something is kept."""
        assert self.rejects is not None, "it can only judge, as it has nowhere to put what it drops"
        with self.rejects as rejects:
            for batch in _batches(data):
                with self.track_time():
                    judged = self.judge([document.text for document in batch])
                for document, parts in zip(batch, judged, strict=True):
                    self.stat_update("documents_read")
                    document.text = self._sorted(document, parts, rejects, rank)
                    if document.text:
                        yield document

    def judge(self, texts: list[str]) -> list[list[tuple[str, str, Verdict]]]:
        """For each text its parts: the line breaks before it, the part, and the verdict."""
        split = [units(text, self.level) for text in texts]
        found = self._verdicts(part for parts in split for _, part in parts)
        judged = []
        for parts in split:
            verdicts = list(islice(found, len(parts)))
            if self.level != "document":
                verdicts = together(verdicts, [len(part) for _, part in parts])
            judged.append([(gap, part, verdict) for (gap, part), verdict in zip(parts, verdicts, strict=True)])
        return judged

    def _verdicts(self, texts: Iterable[str]) -> Iterator[Verdict]:
        """A verdict on each text. What the model says is not kept: of a long document in lines it is larger than the text."""
        for batch in batched(texts, MOST_UNITS):
            guesses = self.lid.guesses(list(batch), self.rule.count if self.rule else 1)
            yield from map(self._verdict, batch, guesses)

    def _verdict(self, text: str, guesses: Any) -> Verdict:
        if self.rule:
            return self.rule.verdict(text, guesses)
        label, score = guesses[0] if guesses else ("", 0.0)
        reason = EMPTY if not text.strip() else f"language_{label}" if label in self.unwanted else ""
        return Verdict(reason, not reason, label, score, "", 0.0)

    def _sorted(self, document: Document, parts: Any, rejects: DiskWriter, rank: int) -> str:
        """The text that is kept of a document; the rest is counted and written to the rejects."""
        text, widest = "", ""
        for number, (gap, part, verdict) in enumerate(parts):
            size = len(part.encode())
            self.stat_update("judged")
            self.stat_update("bytes_read", value=size)
            widest = max(widest, gap, key=len)
            if verdict.right:
                self.stat_update("right_bytes", value=size)
                self.stat_update("right_kept_bytes", value=size * verdict.kept)
            if verdict.kept:
                text += (widest if text else "") + part
                widest = ""
                continue
            self.stat_update(f"dropped_{verdict.reason}")
            name = document.id if len(parts) == 1 else f"{document.id}#{number}"
            rejects.write(Document(text=part, id=name, metadata=_told(verdict)), rank)
        return text


def _told(verdict: Verdict) -> dict[str, Any]:
    return {
        "filter_reason": verdict.reason,
        "language_label": verdict.label,
        "language_score": round(verdict.score, 4),
        "runner_up": verdict.runner_up,
        "runner_up_score": round(verdict.runner_up_score, 4),
    }


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if len(batch) == MOST_DOCUMENTS or size >= MOST_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
