"""Runs datatrove steps on this machine, in this process or in several.

The one rule: a process that dies ends the run. datatrove's own executor would wait for ever for what that process was to do.
"""

import contextlib
import copy
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from fsspec.implementations.local import LocalFileSystem

from langext.errors import RunFailed, disk_problem


class Executor(LocalPipelineExecutor):
    """datatrove's executor. Tasks that finished before an interruption are not repeated."""

    def __init__(self, steps: list[Any], tasks: int, workers: int, log: Path):
        # The file system is named, because a path may hold what fsspec takes for an address.
        super().__init__(steps, tasks, workers, (str(log.resolve()), LocalFileSystem()))

    def run(self) -> None:
        """Run all tasks that are not finished.

        Raises what a task raises, and RunFailed when the disk does not take what is written or a process is killed.
        """
        ranks = self.get_incomplete_ranks(range(self.tasks))
        try:
            with _silenced():
                if self.workers == 1:
                    for rank in ranks:
                        copy.deepcopy(self)._run_for_rank(rank)
                else:
                    self._share(ranks)
        except OSError as error:
            problem = disk_problem(error) or f"{error.strerror or error}; run the same command again to go on"
            raise RunFailed(f"writing filtered text: {problem}") from None

    def _share(self, ranks: list[int]) -> None:
        with ProcessPoolExecutor(self.workers, mp_context=get_context("forkserver")) as pool:
            try:
                for task in as_completed([pool.submit(self._run_for_rank, rank) for rank in ranks]):
                    task.result()
            except BaseException as error:  # also when the user stops it: what the other processes do is not waited for
                pool.shutdown(wait=False, cancel_futures=True)
                children = active_children()
                for process in children:
                    process.terminate()
                for process in children:  # nothing is written any more when this returns
                    process.join()
                if isinstance(error, BrokenProcessPool):
                    raise RunFailed(
                        "a process that reads text was killed, as happens when there is not enough memory; lower "
                        "runtime.workers, and run the same command again to go on"
                    ) from None
                raise


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Nothing comes to standard error, also not from processes that are started meanwhile: the task logs have all of it."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
