"""Language identification with fastText, in batches, and the held-out split.

The label to look for is resolved when the run is planned: an unknown code is an error, never a filter that drops everything.
"""

import functools
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from langext.spec import ConfigError

PARENT = "parent"
LABEL = "__label__"


@functools.cache
def _load(path: Path) -> Any:
    import fasttext

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fasttext.load_model(str(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not a fastText model ({error})") from None


@dataclass(frozen=True)
class LanguageId:
    """A fastText model for language identification. Loads on first use, once in every process."""

    path: Path

    @property
    def model(self) -> Any:
        """The loaded model. Raises ConfigError when the file is none."""
        return _load(self.path)

    def labels(self) -> list[str]:
        """All labels, as the model spells them."""
        return list(self.model.get_labels())

    def predict(self, texts: list[str]) -> list[tuple[str, float]]:
        """The most likely label of each text and its probability (0 to 1).

        Always a list call: the single-text call fails with NumPy 2. Line breaks would end a text for fastText, and text in
        capitals is recognised badly (measured with lid.176: 44 % right), so both are normalised.
        """
        labels, scores = self.model.predict([_plain(text) for text in texts], k=1)
        return [(ls[0], min(1.0, float(ss[0]))) if ls else ("", 0.0) for ls, ss in zip(labels, scores, strict=True)]


def _plain(text: str) -> str:
    line = " ".join(text.split())
    upper = sum(map(str.isupper, line))
    return line.lower() if upper > sum(map(str.islower, line)) else line


class SplitParagraphs(PipelineStep):
    """Documents -> their paragraphs, each a document of its own for the filter."""

    name = "split into paragraphs"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Paragraphs are apart by a blank line."""
        for count, document in enumerate(data):
            parts = [p for p in document.text.split("\n\n") if p.strip()] or [""]
            self.stat_update("documents_read")
            for number, part in enumerate(parts):
                yield Document(text=part, id=f"{document.id}#{number}", metadata={PARENT: (count, document.id)})


class JoinParagraphs(PipelineStep):
    """The paragraphs that the filter kept -> documents again."""

    name = "join paragraphs"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Paragraphs of one document follow one another, so only one document is held."""
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
    """Keeps what is in the wanted language with at least the wanted probability; the rest goes to `rejects`, with a reason."""

    name = "language"

    def __init__(self, model: LanguageId, label: str, threshold: float, rejects: DiskWriter):
        super().__init__(rejects, batch_size=256)
        self.model, self.label, self.threshold = model, label, threshold

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """One document; see filter_batch."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        """True, or False with `empty`, `language_<label>` or `low_score`."""
        verdicts: list[bool | tuple[bool, str]] = []
        for doc, (label, score) in zip(batch, self.model.predict([d.text for d in batch]), strict=True):
            doc.metadata["language_label"], doc.metadata["language_score"] = label.removeprefix(LABEL), round(score, 4)
            self.stat_update("judged")
            self.stat_update("bytes_read", value=len(doc.text.encode()))
            if not doc.text.strip():
                verdicts.append((False, "empty"))
            elif label != self.label:
                verdicts.append((False, f"language_{label.removeprefix(LABEL) or 'none'}"))
            elif score < self.threshold:
                verdicts.append((False, "low_score"))
            else:
                verdicts.append(True)
        return verdicts


class HoldOut(PipelineStep):
    """Marks each document as train or valid by a hash of its text, so that copies of it land on the same side."""

    name = "hold out"

    def __init__(self, frac: float):
        super().__init__()
        self.frac = frac

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Sets metadata `split`; counts documents and bytes of both."""
        for document in data:
            split = "valid" if unit_hash(document.text) < self.frac else "train"
            document.metadata = {"split": split}
            self.stat_update(f"{split}_documents")
            self.stat_update(f"{split}_bytes", value=len(document.text.encode()))
            yield document


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
