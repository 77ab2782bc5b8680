"""A step of datatrove whose process dies. Apart, so that a process that is started for it imports little."""

import os
import signal
from collections.abc import Iterator
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger


class Dies(PipelineStep):
    """Ends its process in the second task: as the system does when memory is short, or as a mistake in a library does."""

    name, type = "dies", "test"

    def __init__(self, number: int = signal.SIGKILL):
        super().__init__()
        self.number = number

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        if rank == 1:
            logger.info("begins to read web/part-1.jsonl.gz")
            os.kill(os.getpid(), self.number)
        yield from data or []
