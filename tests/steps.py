"""A step of datatrove for tests of executors."""

import sys
from collections.abc import Iterator
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from langext.errors import ConfigError


class Count(PipelineStep):
    """A source: each task gives three documents. The task `wrong` finds a mistake in its text, the task `ends` ends at once."""

    name, type = "count", "test"

    def __init__(self, wrong: int = -1, ends: int = -1):
        super().__init__()
        self.wrong, self.ends = wrong, ends

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for n in range(3):
            if rank == self.wrong and n == 2:
                raise ConfigError(f"part {rank}.jsonl: line {n}: not a JSON object")
            if rank == self.ends:
                sys.exit(9)
            yield Document(text=f"{rank} of {world_size}: {n}", id=str(n))
