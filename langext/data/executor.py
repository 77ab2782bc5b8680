"""Runs datatrove steps: in this process, in several of this machine, or on a cluster.

The rules: a process that dies ends the run; a task that is finished is not repeated; and what is written is the same, to the
byte, wherever and in how many processes it is made. datatrove's own local executor would wait for ever for what a process that
died was to do.
"""

import copy
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, forkserver, get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from fsspec.implementations.local import LocalFileSystem

from langext.context import Ray, Runtime, Slurm
from langext.data.tasks import killed, reading, silenced, telling

PRELOADED = [f"langext.data.{name}" for name in (
    "contamination", "duplicates", "filters.web", "heldout", "language_filter", "quality", "readers", "split", "unread",
    "word_units", "working", "writers",
)]  # fmt: skip
"""What steps of stage filter need that may not have been imported yet."""


def prepare(runtime: Runtime) -> None:
    """Begin to start what processes of this machine are forked from, where there will be several; it takes some seconds."""
    if runtime.executor == "local" and runtime.workers > 1:
        _server()
        with silenced():
            forkserver.ensure_running()


def execute(steps: list[Any], tasks: int, log: Path, runtime: Runtime) -> None:
    """Run all tasks of `steps` that are not finished, where `runtime` says. `log` keeps what is finished, counts and messages.

    Raises what a task raises, and RunFailed when a disk does not take what is written, or a process is killed.
    """
    workers = min(runtime.workers, tasks)
    if runtime.executor == "slurm":
        from langext.data.on_slurm import SlurmExecutor

        SlurmExecutor(steps, tasks, workers, log, runtime.slurm or Slurm()).run()
    elif runtime.executor == "ray":
        from langext.data.on_ray import RayExecutor

        RayExecutor(steps, tasks, workers, log, runtime.ray or Ray()).run()
    else:
        Executor(steps, tasks, workers, log).run()


class Executor(LocalPipelineExecutor):
    """datatrove's executor of this machine. Tasks that finished before an interruption are not repeated."""

    def __init__(self, steps: list[Any], tasks: int, workers: int, log: Path):
        # The file system is named, because a path may hold what fsspec takes for an address.
        super().__init__(steps, tasks, workers, (str(log.resolve()), LocalFileSystem()))
        self.log = log

    def run(self) -> None:
        """Run all tasks that are not finished; see `execute`."""
        ranks = self.get_incomplete_ranks(range(self.tasks))
        with telling(), silenced():
            if self.workers == 1:
                for rank in ranks:
                    copy.deepcopy(self)._run_for_rank(rank)
            else:
                self._share(ranks)

    def _share(self, ranks: list[int]) -> None:
        began, started = time.time(), list[BaseProcess]()
        with ProcessPoolExecutor(self.workers, mp_context=_server()) as pool:
            try:
                tasks = [pool.submit(self._run_for_rank, rank) for rank in ranks]
                started = active_children()
                for task in as_completed(tasks):
                    task.result()
            except BaseException as error:  # also when the user stops it: what the other processes do is not waited for
                pool.shutdown(wait=False, cancel_futures=True)
                for process in started:
                    process.terminate()
                for process in started:  # nothing is written any more when this returns
                    process.join()
                if isinstance(error, BrokenProcessPool):
                    codes = {-(process.exitcode or 0) for process in started} - {signal.SIGTERM}  # which the others get
                    crashed = max((code for code in codes if code > 0 and code != signal.SIGKILL), default=signal.SIGKILL)
                    raise killed("lower runtime.workers", crashed, reading(self.log, began)) from None
                raise


def _server() -> ForkServerContext:
    """Starts processes by forking one that has imported once what every process of every pool would import anew."""
    place = get_context("forkserver")
    place.set_forkserver_preload([*(name for name in sys.modules if name.startswith("langext.")), *PRELOADED])
    return place
