"""A step of datatrove whose process dies. Apart, so that a process that is started for it imports little."""

import os
import signal
from collections.abc import Iterator
from typing import Any

from datatrove.pipeline.base import PipelineStep


class Dies(PipelineStep):
    """Ends its process in the second task, as the system does when memory is short."""

    name, type = "dies", "test"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from data or []
