"""However a run ends, no process of its stage stays behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

from langext.artifacts import STOP
from langext.context import Runtime, without_launcher
from langext.errors import EXIT_CONFIG, EXIT_RUN_FAILED, ConfigError, Stopped
from langext.pipeline import launcher, lifeline

ROOT = Path(__file__).parents[2]
WORKER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from langext.pipeline import lifeline
out, address, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if kind != "plain":  # like a training, which saves before it leaves; and this one takes its time
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
child = subprocess.Popen(["sleep", "60"])
lifeline.hold(out, address)
(out / "pids.tmp").write_text(f"{os.getpid()} {child.pid}")
(out / "pids.tmp").rename(out / "pids")
time.sleep(60)
time.sleep(60)
"""
RUN = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
from langext.context import Runtime
from langext.pipeline import launcher, lifeline
out, kind, worker = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
launcher.command = lambda *_: [sys.executable, "-c", worker, str(out), lifeline.address(), kind]
try:
    sys.exit(launcher.launch(out, Runtime(), 0))
except KeyboardInterrupt:
    sys.exit(130)
"""
FAILING = """
from langext.errors import RunFailed
from langext.pipeline import worker
def execute(out, only_prepare):
    raise RunFailed("no more disk")
worker.execute = execute
worker.main()
"""


def begin(out: Path, kind: str) -> tuple["subprocess.Popen[str]", list[psutil.Process]]:
    """A run of one stage, and the processes of the stage: the worker, and one that it has started."""
    command = [sys.executable, "-c", RUN, str(out), kind, WORKER]
    run = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, text=True)
    return run, started(out)


def started(out: Path) -> list[psutil.Process]:
    for _ in range(200):
        if (out / "pids").exists():
            return [psutil.Process(int(number)) for number in (out / "pids").read_text().split()]
        time.sleep(0.05)
    raise AssertionError("the worker was not started")


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(lifeline.lives(process) for process in processes):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("kind", "signals"),
    [
        ("plain", [signal.SIGTERM]),
        ("plain", [signal.SIGINT]),
        ("plain", [signal.SIGHUP]),
        ("deaf", [signal.SIGINT, signal.SIGINT]),
        ("deaf", [signal.SIGTERM, signal.SIGHUP]),
    ],
    ids=str,
)
def test_after_a_signal_nothing_is_left(tmp_path, kind, signals):
    run, processes = begin(tmp_path, kind)
    for number in signals:
        run.send_signal(number)
        time.sleep(0.2)
    assert run.wait(timeout=15) != 0
    assert gone(processes, 0.5)


def test_the_worker_is_killed_and_what_it_has_started_ends_too(tmp_path):
    run, processes = begin(tmp_path, "plain")
    processes[0].kill()
    assert run.wait(timeout=15) == -signal.SIGKILL % 256 and gone(processes, 0.5)


def test_when_the_run_is_killed_its_stage_ends(tmp_path):
    run, processes = begin(tmp_path, "plain")
    run.kill()
    run.wait()
    assert gone(processes, 5)


def test_when_the_run_is_killed_a_training_is_asked_to_save(tmp_path):
    run, processes = begin(tmp_path, "training")
    try:
        run.kill()
        run.wait()
        for _ in range(100):
            if lifeline.asked(tmp_path / STOP):
                break
            time.sleep(0.05)
        assert lifeline.asked(tmp_path / STOP) == signal.SIGTERM and not gone(processes, 0.3)
    finally:
        os.killpg(processes[0].pid, signal.SIGKILL)


def test_a_second_signal_ends_what_runs_on_other_machines(tmp_path):
    """These see the file alone."""
    command = [sys.executable, "-c", WORKER, str(tmp_path), "another-machine:1", "training"]
    worker = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    processes = started(tmp_path)
    (tmp_path / STOP).write_text(str(int(signal.SIGTERM)))
    assert not gone(processes, 0.8)
    (tmp_path / STOP).write_text(str(int(signal.SIGKILL)))
    assert worker.wait(timeout=10) == -signal.SIGKILL and gone(processes, 0.5)


def test_a_process_that_fails_ends_those_on_other_machines_with_its_exit_code(tmp_path):
    """They may wait for it where nothing tells them that it is gone."""
    command = [sys.executable, "-c", WORKER, str(tmp_path), "another-machine:1", "training"]
    waiting = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    _, child = started(tmp_path)
    command = [sys.executable, "-c", FAILING, "--run", lifeline.address(), str(tmp_path)]
    for world_size, ends in (("1", False), ("2", True)):
        env = os.environ | {"RANK": "0", "WORLD_SIZE": world_size}
        failed = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
        assert failed.returncode == EXIT_RUN_FAILED and failed.stderr.count("error: ") == 1, failed.stderr
        assert bool(lifeline.failed(tmp_path)) == ends
    assert waiting.wait(timeout=10) == EXIT_RUN_FAILED and gone([child], 0.5)
    # What fails next, because the first one is gone, does not speak over it.
    for world_size, speaks in (("2", False), ("1", True)):
        env = os.environ | {"WORLD_SIZE": world_size}
        late = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
        assert late.returncode == EXIT_RUN_FAILED and ("error: " in late.stderr) == speaks
    lifeline.fail_all(tmp_path, EXIT_CONFIG)  # the first one counts
    assert lifeline.failed(tmp_path) == EXIT_RUN_FAILED
    lifeline.forget(tmp_path)
    assert lifeline.failed(tmp_path) == 0


@pytest.mark.parametrize(("code", "raised"), [(143, Stopped), (4, None), (2, None)])
def test_what_failed_while_it_was_to_end_has_failed(tmp_path, monkeypatch, code, raised):
    worker = f"""
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))
os.kill(os.getppid(), signal.SIGUSR1)
time.sleep(60)
"""
    monkeypatch.setattr(launcher, "command", lambda *_: [sys.executable, "-c", worker])
    with pytest.raises(raised, match="stopped by SIGUSR1") if raised else nullcontext() as stopped:
        assert launcher.launch(tmp_path, Runtime(), 0) == code
    assert not raised or stopped.value.exit_code == 138


@pytest.mark.parametrize(
    "found",
    [
        {"WORLD_SIZE": "2", "RANK": "0"},
        {"SLURM_STEP_NUM_TASKS": "4"},
        {"OMPI_COMM_WORLD_SIZE": "8"},
        {"PMI_SIZE": "2"},
        {"PET_NNODES": "2"},
    ],
    ids=str,
)
def test_one_of_several_processes_of_another_launcher_is_refused(monkeypatch, found):
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{next(iter(found))} is .*langext starts its own processes.*runtime.gpus"):
        launcher.check_alone()


@pytest.mark.parametrize("name", launcher.RANKS)
def test_of_tasks_that_do_not_know_how_many_they_are_the_first_one_runs(monkeypatch, name):
    monkeypatch.setenv(name, "0")
    launcher.check_alone()
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=f"{name} is 1: {launcher.RANKS[name]} would start a run in every task. Unset it"):
        launcher.check_alone()


def test_what_another_launcher_has_left_does_not_reach_the_worker(monkeypatch):
    left = {
        "RANK": "0", "LOCAL_RANK": "3", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "1", "MASTER_ADDR": "x",
        "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "a", "OMPI_COMM_WORLD_RANK": "0", "SLURM_PROCID": "0", "PMI_RANK": "0",
        "PALS_RANKID": "0",
    }  # fmt: skip
    kept = {"SLURM_JOB_ID": "7", "RANKING": "x", "HOME": "/root"}
    assert without_launcher(left | kept) == kept
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    launcher.check_alone()  # one process is no reason to refuse
    assert not left.keys() & launcher.environment(Runtime()).keys()


def test_a_worker_that_is_started_by_hand_is_alone(tmp_path):
    """Also in a shell that a launcher has started: it does not wait for others."""
    code = (
        "import os, sys; from langext.pipeline import worker; "
        "worker.execute = lambda out, only_prepare: print(out.name, only_prepare, os.environ.get('RANK')); worker.main()"
    )
    for more, rank in (([], None), (["--run", lifeline.address(), "--local_rank=1"], "1")):
        command = [sys.executable, "-c", code, *more, "--prepare", str(tmp_path / "04-train")]
        env = os.environ | {"RANK": "1", "WORLD_SIZE": "2"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
        assert done.stdout == f"04-train True {rank}\n", done.stderr
