"""Runs datatrove steps as an array of Slurm jobs, and waits for them.

The rules are those of `executor`: the first task that fails, or whose process dies, ends the run. datatrove submits and leaves;
here the submitting process stays until all is done, brings errors back as they were raised, and cancels what it leaves behind.
Jobs are told by their name, which is made from the folder of the log: those of an earlier attempt are cancelled first.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from datatrove.executor.slurm import SlurmPipelineExecutor
from fsspec.implementations.local import LocalFileSystem

from langext.console import Progress
from langext.context import Slurm
from langext.data.tasks import interruptible, killed, silenced, telling
from langext.errors import ConfigError, RunFailed, one_line, reason

MOST_JOBS = 1000
"""Most jobs in an array. Slurm's own default is 1001 (MaxArraySize)."""
ENDED = {"BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
"""States of jobs that ended without success: https://slurm.schedmd.com/squeue.html (job state codes)."""
DONE = "COMPLETED"
LOOK_SECONDS, ASK_SECONDS, LAG_SECONDS = 1.0, 10.0, 60.0
"""How often to look for finished tasks in the log, how often to ask Slurm, and how late a shared disk may show a file."""
CANCEL_SECONDS = 60.0
"""Most time that cancelled jobs may take to end."""
MOST_REFUSALS = 30
"""How often in a row Slurm may fail to answer: controllers are restarted now and then."""
TOLD = {ConfigError.__name__: ConfigError, RunFailed.__name__: RunFailed}


class SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's executor for Slurm."""

    def __init__(self, steps: list[Any], tasks: int, workers: int, log: Path, slurm: Slurm):
        self.log, self.submitted = log.resolve(), False
        options = slurm.options if "requeue" in slurm.options else {"no-requeue": "", **slurm.options}
        super().__init__(
            steps,
            tasks,
            time=slurm.time,
            partition=slurm.partition or "",
            workers=workers,
            mem_per_cpu_gb=slurm.memory_gb,
            job_name=f"langext-{hashlib.sha256(str(self.log).encode()).hexdigest()[:12]}",
            qos=options.get("qos", ""),
            sbatch_args=options,
            job_id_retriever=_number,
            logging_dir=(str(self.log), LocalFileSystem()),
            requeue_signals=None,
            requeue=False,
            tasks_per_job=math.ceil(tasks / MOST_JOBS),
            with_srun=False,
        )

    def run(self) -> None:
        """Run all tasks that are not finished and wait for them; inside of a job, run the tasks of that job."""
        if self.submitted:
            super().run()
            return
        with interruptible():
            _cancel(self.job_name)
            ranks = self.get_incomplete_ranks()
            if not ranks:
                return
            for rank in ranks:
                self._told(rank).unlink(missing_ok=True)
            try:
                self._submit()
                self._wait(ranks)
            except BaseException:
                _cancel(self.job_name)  # nothing is written any more when this returns
                raise

    def _submit(self) -> None:
        self.submitted = True  # in the copy that is saved for the jobs
        with silenced() as said, _outside():
            try:
                self.launch_job()
            except subprocess.CalledProcessError:
                refused = " ".join(line for line in said().splitlines() if line.startswith("sbatch:"))
                raise RunFailed(f"runtime.slurm: {one_line(refused.replace('sbatch: error: ', ''))}") from None

    def launch_merge_stats(self) -> None:
        """Nothing: the stage adds up the counts itself."""

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """The options of the job, without those that have no value of ours."""
        given = super().get_sbatch_args(max_array)
        output = f"{self.log}/slurm_logs/".replace("%", "%%") + "%A_%a.out"
        given |= {"output": output, "error": output}
        return {key: value for key, value in given.items() if key != "partition" or value}

    def get_launch_file_contents(self, sbatch_args: dict[str, Any], run_script: str) -> str:
        """The script of the job: this Python loads this executor again. datatrove's `run_script` knows no blanks in paths."""
        lines = [f"#SBATCH --{key}" + (f'="{value}"' if value != "" else "") for key, value in sbatch_args.items()]
        code = "import sys, dill; dill.load(open(sys.argv[1], 'rb')).run()"
        command = shlex.join([sys.executable, "-c", code, str(self.log / "executor.pik")])
        return "\n".join(["#!/bin/bash", *lines, command, ""])

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        """Run one task, inside of a job. An error is also written down, for the process that waits."""
        try:
            with telling():
                return super()._run_for_rank(rank, local_rank, node_rank)
        except Exception as error:
            kind = type(error).__name__
            said = {"kind": kind, "message": str(error) if kind in TOLD else reason(error)}
            aside = self._told(rank).with_suffix(".part")
            aside.parent.mkdir(exist_ok=True)
            aside.write_text(json.dumps(said), encoding="utf-8")
            aside.rename(self._told(rank))
            raise

    def _told(self, rank: int) -> Path:
        return self.log / "errors" / f"{rank:05d}.json"

    def _wait(self, ranks: list[int]) -> None:
        """Return when all tasks are finished. Raises the error of the first one that fails."""
        refusals, asked, over = 0, time.monotonic(), None
        progress = Progress(f"{self.log.name}: Slurm job {self.job_id}", self.tasks, every=30.0)
        while left := self.get_incomplete_ranks():
            progress.at(self.tasks - len(left), f"{self.tasks - len(left)} of {self.tasks} tasks finished")
            for rank in left:
                self._fail(rank)
            if over and time.monotonic() - over > LAG_SECONDS:
                raise killed(f"see {self._output(left[0], ranks)}")
            time.sleep(LOOK_SECONDS)
            if over or time.monotonic() - asked < ASK_SECONDS:
                continue
            asked, states = time.monotonic(), _states(str(self.job_id))
            refusals = 0 if states is not None else refusals + 1
            if refusals > MOST_REFUSALS:
                raise RunFailed("Slurm does not answer (squeue); run the same command again to go on")
            for index, state in (states or {}).items():
                if state in ENDED:
                    self._lost(ranks, index, state)
            if states is not None and set(states.values()) <= {DONE}:
                over = time.monotonic()

    def _fail(self, rank: int) -> None:
        """Raise the error that a task has written down, if it has."""
        if not self._told(rank).exists():
            return
        said = json.loads(self._told(rank).read_text(encoding="utf-8"))
        if said["kind"] in TOLD:
            raise TOLD[said["kind"]](said["message"])
        raise RuntimeError(f"{said['kind']}: {said['message']} (in task {rank}, see {self.log}/logs/task_{rank:05d}.log)")

    def _lost(self, ranks: list[int], index: int, state: str) -> NoReturn:
        """Raise the error of a job that has ended in a state of `ENDED`."""
        mine = ranks[index * self.tasks_per_job : (index + 1) * self.tasks_per_job]
        ends = time.monotonic() + LAG_SECONDS / 6
        while state == "FAILED" and time.monotonic() < ends:
            for rank in mine:
                self._fail(rank)
            time.sleep(LOOK_SECONDS)
        if state in ("OUT_OF_MEMORY", "FAILED"):
            raise killed(f"raise runtime.slurm.memory_gb (see {self._output(mine[0], ranks)})")
        advice = "raise runtime.slurm.time" if state == "TIMEOUT" else f"see {self._output(mine[0], ranks)}"
        raise RunFailed(f"Slurm ended a task ({state}); {advice}, and run the same command again to go on")

    def _output(self, rank: int, ranks: list[int]) -> str:
        """The file with what the job of a task has printed."""
        return f"{self.log}/slurm_logs/{self.job_id}_{ranks.index(rank) // self.tasks_per_job}.out"


def _number(printed: str) -> str:
    """The number of a job in what sbatch prints: Submitted batch job 12 on cluster a."""
    found = re.search(r"job (\d+)", printed)
    if found is None:
        raise RunFailed(f"sbatch gave no number of a job: {one_line(printed)}")
    return found[1]


def _states(job: str) -> dict[int, str] | None:
    """Index in the array -> state, {} when Slurm has forgotten the job, as it does minutes after its end; None: no answer."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%K %T"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {} if "Invalid job id" in done.stderr else None
    pairs = (line.split() for line in done.stdout.splitlines())
    return {int(index): state for index, state in pairs if index.isdigit()}


def _cancel(name: str) -> None:
    """Cancel the jobs of a name, and wait until none of them runs. Raises RunFailed when they do not end."""
    running = ["squeue", "--noheader", f"--name={name}", "--me", "--format=%i"]
    ends = time.monotonic() + CANCEL_SECONDS
    while time.monotonic() < ends:
        done = subprocess.run(running, capture_output=True, text=True)
        if done.returncode == 0 and not done.stdout.strip():
            return
        subprocess.run(["scancel", "--quiet", f"--name={name}", "--me"], capture_output=True)
        time.sleep(LOOK_SECONDS)
    raise RunFailed(f"jobs named {name} do not end; look at them with squeue --name={name}, then run the same command again")


@contextlib.contextmanager
def _outside() -> Iterator[None]:
    """No variable of a job that this process may run in reaches the jobs that it submits."""
    before = {key: value for key, value in os.environ.items() if key.startswith("SLURM_") and key != "SLURM_CONF"}
    for key in before:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(before)
