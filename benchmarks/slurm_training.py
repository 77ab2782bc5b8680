"""Makes a Slurm cluster of this one machine and trains on it by configs/slurm/train.sbatch: two tasks, stops, queues again.

    python benchmarks/slurm_training.py work

Needs root on a Debian machine: it installs slurm-wlm and munge if they are not there. A pico model is trained by two tasks of
srun: undisturbed; with a time limit that comes too early; preempted by a job of a partition with a higher priority; cancelled
and submitted again. What was stopped must save, Slurm must queue it again (but not what was cancelled), and the weights at the
end must be the bytes of the undisturbed training. Everything that is run is printed. Exit code 1 when something is not as it
must be.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import psutil
from clusters import sh, start_slurm
from namespaces import command_of
from two_nodes import losses, make, weights

from langext.pipeline import reuse

MORE = """PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
STEPS = {"steps": 2000, "eval_every": 1000, "save_every": 500, "log_every": 50}
OPTIONS = ["--gpus-per-node=0", "--ntasks-per-node=2", "--cpus-per-task=1", "--partition=low", "--time=30"]
END_SECONDS = 900


class Job:
    """A run as a Slurm job."""

    def __init__(self, folder: Path, file: Path, name: str, *options: str):
        self.run, self.log, self.printed = folder / name, folder / f"{name}.log", 0
        command = ["sbatch", "--parsable", f"--output={self.log}", *OPTIONS, *options, str(ROOT / "configs/slurm/train.sbatch")]
        self.id = sh(*command, str(file), "--out", str(self.run)).strip()

    def told(self) -> str:
        """All that the job has printed; what is new of it is printed here."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        for line in text[self.printed :].splitlines():
            if not re.search(r"\[(INFO|WARNING)\]|W\d{4} ", line):
                print(f"  {line}", flush=True)
        self.printed = len(text)
        return text

    def until(self, text: str, times: int = 1) -> None:
        """Wait until the job has printed `text` so many times."""
        _wait(lambda: self.told().count(text) >= times, f"{text!r} is not printed")

    def state(self) -> dict[str, str]:
        """What Slurm says of it."""
        done = subprocess.run(["scontrol", "show", "job", self.id], capture_output=True, text=True, check=True)
        return dict(re.findall(r"(\w+)=(\S+)", done.stdout))

    def ended(self, state: str, restarts: int) -> None:
        """Wait until it is over; it must be in this state, queued again so many times, and have left no process."""
        _wait(lambda: self.state()["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"), "it does not end")
        self.told()
        found = self.state()
        time.sleep(1)
        left = [p for p in psutil.process_iter() if str(self.run) in command_of(p)]
        print(f"  JobState={found['JobState']} Restarts={found['Restarts']} processes left: {len(left)}", flush=True)
        if (found["JobState"], int(found["Restarts"])) != (state, restarts) or left:
            sys.exit(f"expected {state}, {restarts} restarts and no process")


def _wait(done: Callable[[], bool], problem: str) -> None:
    until = time.monotonic() + END_SECONDS
    while not done():
        if time.monotonic() > until:
            sys.exit(problem)
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="a new folder to work in")
    work = parser.parse_args().work.resolve()
    work.mkdir(parents=True)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    os.chdir(work)
    print("== one process, to compare with", flush=True)
    bench, one = make(work, STEPS)
    from bench import extend, train
    from two_nodes import METHOD

    runtime = {"cpu_processes": 2, "launcher": "srun", "micro_batch": 4}
    file = bench.file("tasks", "fra_Latn", ["eng_Latn"], [extend(**METHOD), train(**STEPS, runtime=runtime)])
    services = start_slurm(work / "slurm", MORE)
    try:
        for name in ("undisturbed", "time", "preempted", "cancelled"):
            reuse.whole(one, ["01-filter", "02-extend"], work / name)
        print("== two tasks, undisturbed", flush=True)
        Job(work, file, "undisturbed").ended("COMPLETED", 0)
        print("== the time is up", flush=True)
        job = Job(work, file, "time", "--signal=USR1@120")
        job.until("step 200/")
        hours, minutes, _ = map(int, job.state()["RunTime"].split(":"))
        sh(
            "scontrol", "update", f"JobId={job.id}", f"TimeLimit={60 * hours + minutes + 2}"
        )  # of two minutes one at least is left
        job.until("everything is saved")
        sh("scontrol", "update", f"JobId={job.id}", "TimeLimit=30")
        job.ended("COMPLETED", 1)
        print("== preempted", flush=True)
        job = Job(work, file, "preempted")
        job.until("step 200/")
        sh("sbatch", "--parsable", "--partition=high", "--exclusive", "--time=1", "--wrap", "sleep 5")
        job.ended("COMPLETED", 1)
        print("== cancelled, and submitted again", flush=True)
        job = Job(work, file, "cancelled")
        job.until("step 200/")
        sh("scancel", job.id)
        job.ended("CANCELLED", 0)
        Job(work, file, "cancelled").ended("COMPLETED", 0)
    finally:
        for service in reversed(services):
            service.terminate()
    here, there = losses(work / "undisturbed"), losses(one)
    worst = max(abs(value - there[key]) for key, value in here.items())
    print(f"{len(here)} losses, the largest difference to one process: {worst:.1e}")
    same = {name: weights(work / name) == weights(work / "undisturbed") for name in ("time", "preempted", "cancelled")}
    print(f"the weights of the undisturbed training, to the byte: {json.dumps(same)}")
    if not all(same.values()) or here.keys() != there.keys() or worst > 1e-3:
        sys.exit("not what one process learns")


if __name__ == "__main__":
    main()
