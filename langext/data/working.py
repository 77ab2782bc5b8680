"""The working folder: documents on their way from one pass of stage filter to the next.

The one rule: part number n of a source is what task number n of every pass reads and writes, so that the number of workers
changes nothing. The folder is deleted when the stage is finished.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from langext.console import SILENCE_SECONDS, Progress
from langext.data.split import OF
from langext.errors import RunFailed

AFTER = "after/"
"""Beginning of the names of counts by `Tally`: `after/<step>/documents` and `after/<step>/bytes`."""


def part(folder: Path, rank: int) -> Path:
    """The file of part number `rank`, from 0."""
    return folder / f"{rank:05d}.jsonl"


def parts(folder: Path, count: int) -> list[Path]:
    """The files of all parts."""
    return [part(folder, rank) for rank in range(count)]


def through(steps: Sequence[Any], rank: int, world_size: int) -> Iterator[Document]:
    """The documents of one task as they come out of the last of these steps, of which the first reads them."""
    data = None
    for step in steps:
        data = step.run(data, rank, world_size)
    yield from data or ()


class Save(PipelineStep):
    """Writes documents into the working folder; task n writes part n."""

    name = "save"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Write all documents; yield none."""
        path = part(self.folder, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for document in data:
                fields = {"text": document.text, "id": document.id, "metadata": document.metadata}
                file.write(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE))
            file.flush()
            os.fsync(file.fileno())
        yield from ()


class Read(PipelineStep):
    """Reads documents from the working folder; task n reads the n-th of `paths`. `label` says for what, when it takes long."""

    type, name = "reader", "working text"

    def __init__(self, paths: Sequence[Path], label: str):
        super().__init__()
        self.paths, self.label = list(paths), label

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents. Raises RunFailed when somebody has deleted them."""
        path, done = self.paths[rank], 0
        try:
            with path.open("rb") as file:
                progress = Progress(self.label, max(1, path.stat().st_size), SILENCE_SECONDS)
                for line in file:
                    yield Document(**orjson.loads(line))
                    done += len(line)
                    progress.at(done)
        except FileNotFoundError:
            raise RunFailed(f"{path}: a working file is gone; do all of it again with --redo") from None


class Tally(PipelineStep):
    """Counts the documents, and their bytes of UTF-8, that come out of the step before; also of passages the documents."""

    name = "tally"

    def __init__(self, step: str):
        super().__init__()
        self.step = step

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield every document."""
        documents, size = f"{AFTER}{self.step}/documents", f"{AFTER}{self.step}/bytes"
        for name in (documents, size):  # so that nothing left is told from a step that was not done
            self.stat_update(name, value=0)
        last = None
        for document in data:
            owner = document.metadata.get(OF)
            self.stat_update(documents, value=owner is None or owner != last)
            last = owner
            self.stat_update(size, value=len(document.text.encode()))
            yield document
