"""configs/slurm/train.sbatch, with a langext and a scontrol that only write down how they are called."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from processes import stand_ins

SCRIPT = Path(__file__).parents[2] / "configs" / "slurm" / "train.sbatch"
PROGRAMS = {
    "langext": """printf '%s\\n' "$@" > asked
trap 'echo saved > saved; exit 138' USR1
trap 'echo saved > saved; exit 143' TERM
[ "$2" = quick ] && exit "$3"
echo $$ > pid.tmp; mv pid.tmp pid
sleep 20 & wait""",
    "srun": 'until [ "$1" = langext ]; do shift; done; exec "$@"',
    "scontrol": """case "$*" in
    "show hostnames"*) printf 'a\\nb\\n' ;;
    "show job"*) echo "   PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=$PREEMPTED" ;;
    *) echo "$@" > requeued ;;
esac""",
}
"""What the script calls, as far as it matters here."""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Starts the script as Slurm would, in an empty folder."""
    programs = tmp_path / "bin"
    stand_ins(programs, PROGRAMS)
    monkeypatch.chdir(tmp_path)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "[a-b]", "SLURM_GPUS_ON_NODE": "8"}
    slurm["PREEMPTED"] = "None"

    def start(*arguments, **more):
        env = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"} | slurm | more
        return subprocess.Popen(["bash", str(SCRIPT), *arguments], env=env)

    return start


STOPS = {
    "its time is nearly up": (signal.SIGUSR1, "None", True),
    "preempted": (signal.SIGTERM, "2026-01-01T00:00:01", True),
    "cancelled": (signal.SIGTERM, "None", False),
}


@pytest.mark.parametrize(("number", "preempted", "requeued"), STOPS.values(), ids=STOPS)
def test_a_job_that_is_stopped_saves_and_is_queued_again_unless_it_is_cancelled(job, tmp_path, number, preempted, requeued):
    running = job("slow", PREEMPTED=preempted)
    while not (tmp_path / "pid").exists():
        time.sleep(0.02)
    os.kill(int((tmp_path / "pid").read_text()), number)  # Slurm sends it to the step
    assert running.wait(10) == 128 + number and (tmp_path / "saved").exists()
    assert (tmp_path / "requeued").exists() == requeued
    assert not requeued or (tmp_path / "requeued").read_text() == "requeue 7\n"


@pytest.mark.parametrize("code", [0, 2, 3, 4, 70, 130])
def test_a_job_that_ends_by_itself_ends_with_its_code_and_is_not_queued_again(job, tmp_path, code):
    assert job("quick", str(code), PREEMPTED="2026-01-01T00:00:01").wait(10) == code
    assert not (tmp_path / "requeued").exists()


def test_several_machines_get_a_host_file(job, tmp_path):
    assert job("quick", "0", "runtime.hostfile=hosts.$SLURM_JOB_ID", SLURM_JOB_NUM_NODES="2").wait(10) == 0
    assert (tmp_path / "hosts.7").read_text() == "a slots=8\nb slots=8\n"
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "runtime.hostfile=hosts.7"
