"""Runs datatrove steps on a Ray cluster.

The rules are those of `executor`: the first task that fails, or whose process dies, ends the run. datatrove's own executor
starts a dead task again three times, waits for ever for one whose inner process is killed, and tells errors to its log alone.
"""

import os
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from fsspec.implementations.local import LocalFileSystem

from langext.console import Progress
from langext.context import Ray
from langext.data.tasks import interruptible, killed, silenced, telling
from langext.errors import RunFailed, one_line, reason

CANCEL_SECONDS = 30.0
"""Most time that cancelled tasks may take to end."""


class RayExecutor(RayPipelineExecutor):
    """datatrove's executor for Ray."""

    def __init__(self, steps: list[Any], tasks: int, workers: int, log: Path, ray: Ray):
        with silenced():  # it warns that the log must be on a shared disk; the documentation says so
            super().__init__(
                steps, tasks, workers, mem_per_cpu_gb=ray.memory_gb, logging_dir=(str(log.resolve()), LocalFileSystem())
            )
        self.address, self.log = ray.address, log

    def run(self) -> None:
        """Run all tasks that are not finished and wait for them."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports over the network that it is used
        import ray

        ranks = self.get_incomplete_ranks(range(self.tasks))
        if not ranks:
            return
        with interruptible(), silenced():
            try:
                ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise RunFailed(f"runtime.ray.address: {one_line(self.address)}: {reason(error)}") from None
            try:
                self._share(ray, ranks)
            finally:
                ray.shutdown()

    def _share(self, ray: Any, ranks: list[int]) -> None:
        needs = {"num_cpus": 1, "memory": int(self.mem_per_cpu_gb * 2**30)}
        if not any(node["Resources"].get("memory", 0) >= needs["memory"] for node in ray.nodes() if node["Alive"]):
            raise RunFailed(f"runtime.ray.memory_gb: no machine of the Ray cluster has {self.mem_per_cpu_gb:g} GiB to give")
        task, me, waiting = ray.remote(max_retries=0, **needs)(_run), ray.put(self), iter(ranks)
        running = [task.remote(me, rank, os.getcwd()) for rank in islice(waiting, self.workers)]
        progress, finished = Progress(f"{self.log.name}: Ray", self.tasks, every=30.0), self.tasks - len(ranks)
        try:
            while running:
                (done, *_), running = ray.wait(running)
                ray.get(done)
                finished += 1
                progress.at(finished, f"{finished} of {self.tasks} tasks finished")
                running += [task.remote(me, rank, os.getcwd()) for rank in islice(waiting, 1)]
        except BaseException as error:
            for other in running:
                ray.cancel(other, force=True)
            if running:  # nothing is written any more when this returns
                ray.wait(running, num_returns=len(running), timeout=CANCEL_SECONDS)
            if isinstance(error, ray.exceptions.RayTaskError):
                raise error.cause from None  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(error, ray.exceptions.WorkerCrashedError | ray.exceptions.OutOfMemoryError):
                raise killed("raise runtime.ray.memory_gb or lower runtime.workers") from None
            if isinstance(error, ray.exceptions.RayError):
                raise RunFailed(f"Ray: {reason(error)}; run the same command again to go on") from None
            raise


def _run(executor: RayExecutor, rank: int, folder: str) -> None:
    """One task, in a process of the cluster. `folder` is the one in which the run was started: paths may be relative to it."""
    os.chdir(folder)
    with telling():  # not datatrove's own way for Ray, in which all runs of a machine share the files of their logs
        PipelineExecutor._run_for_rank(executor, rank)
