"""Reading the documents of a Corpus back."""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from langext.artifacts import Corpus


def read(path: Path) -> Iterator[str]:
    """The texts of one document file, in order."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def batches(paths: Sequence[Path], size: int) -> Iterator[list[str]]:
    """The texts of several files, `size` at a time."""
    batch: list[str] = []
    for path in paths:
        for text in read(path):
            batch.append(text)
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch


def heldout(corpus: Corpus, languages: Sequence[str]) -> dict[str, list[str]]:
    """Held-out documents by `<language>/<domain>`, in the order of `languages`."""
    found: dict[str, list[str]] = {}
    for code in languages:
        for path in corpus.files("valid", code):
            found.setdefault(f"{code}/{path.name.split('.')[0]}", []).extend(read(path))
    return found
