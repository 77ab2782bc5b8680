"""Filter text by language with fastText.

Rule: the label to keep is looked up when the run is planned. An unknown code is an error, not a filter that drops everything.
"""

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from langext.data import fasttext_models

PARENT = "parent"
LABEL = "__label__"


@functools.cache
def _load(path: Path) -> Any:
    import fasttext

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fasttext.load_model(str(path))


@dataclass(frozen=True)
class LanguageId:
    """A fastText model for language identification. It is loaded on first use, once per process."""

    path: Path

    @property
    def model(self) -> Any:
        """The loaded model. Raises ConfigError when the file is not a complete fastText model."""
        self.labels()
        return _load(self.path)

    def labels(self) -> list[str]:
        """All labels that the model can return, in its own spelling. The model is not loaded for it."""
        return fasttext_models.labels(self.path)

    def try_out(self) -> None:
        """Load the model in a process of its own. Raises ConfigError when fastText fails on it."""
        fasttext_models.try_out(self.path)

    def predict(self, texts: list[str]) -> list[tuple[str, float]]:
        """The most likely label of each text and its probability (0 to 1).

        Texts are normalised first: fastText stops reading at a line break, and it recognises text in capital letters badly
        (44 % right, measured with lid.176).
        """
        # Always pass a list: fastText's call for a single text fails with NumPy 2.
        labels, scores = self.model.predict([_plain(text) for text in texts], k=1)
        return [(ls[0], min(1.0, float(ss[0]))) if ls else ("", 0.0) for ls, ss in zip(labels, scores, strict=True)]


def _plain(text: str) -> str:
    line = " ".join(text.split())
    upper = sum(map(str.isupper, line))
    return line.lower() if upper > sum(map(str.islower, line)) else line


class SplitParagraphs(PipelineStep):
    """Turns each paragraph into a document of its own, so that the filter judges paragraphs."""

    name = "split into paragraphs"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the paragraphs of each document. A blank line separates paragraphs."""
        for count, document in enumerate(data):  # the count tells apart two neighbours with the same id
            parts = [p for p in document.text.split("\n\n") if p.strip()] or [""]  # the filter counts empty documents
            self.stat_update("documents_read")
            for number, part in enumerate(parts):
                yield Document(text=part, id=f"{document.id}#{number}", metadata={PARENT: (count, document.id)})


class JoinParagraphs(PipelineStep):
    """Joins the paragraphs that the filter kept into documents again."""

    name = "join paragraphs"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the joined documents. Paragraphs of one document come one after the other, so only one is kept in memory."""
        parent, parts = (-1, ""), []
        for paragraph in data:
            if paragraph.metadata[PARENT] != parent:
                if parts:
                    yield Document(text="\n\n".join(parts), id=parent[1])
                parent, parts = paragraph.metadata[PARENT], []
            parts.append(paragraph.text)
        if parts:
            yield Document(text="\n\n".join(parts), id=parent[1])


class LanguageFilter(BaseFilter):
    """Keeps documents with the wanted label and at least the probability `threshold`; writes the others to `rejects`.

    Without a wanted label (None) it keeps all but those with the label `unwanted`, however probable that is.
    """

    name = "language"

    def __init__(
        self, model: LanguageId, label: str | None, threshold: float, rejects: DiskWriter, unwanted: str | None = None
    ):
        super().__init__(rejects, batch_size=256)
        self.model, self.label, self.threshold, self.unwanted = model, label, threshold, unwanted

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Judge one document; see filter_batch."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        """For each document True (kept), or False and the reason: `empty`, `language_<label>` or `low_score`."""
        verdicts: list[bool | tuple[bool, str]] = []
        for doc, (label, score) in zip(batch, self.model.predict([d.text for d in batch]), strict=True):
            doc.metadata["language_label"], doc.metadata["language_score"] = label.removeprefix(LABEL), round(score, 4)
            self.stat_update("judged")
            self.stat_update("bytes_read", value=len(doc.text.encode()))
            if not doc.text.strip():
                verdicts.append((False, "empty"))
            elif label == self.unwanted if self.label is None else label != self.label:
                verdicts.append((False, f"language_{label.removeprefix(LABEL) or 'none'}"))
            elif self.label is not None and score < self.threshold:
                verdicts.append((False, "low_score"))
            else:
                verdicts.append(True)
        return verdicts
