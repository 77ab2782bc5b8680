"""Starting `langext` from a test, waiting for what it prints, and killing its workers."""

import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def stand_ins(folder: Path, programs: dict[str, str]) -> None:
    """Write shell scripts that stand in for programs, by name, into a folder."""
    folder.mkdir(exist_ok=True)
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)


def start(*args: str, stderr: int | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "langext.cli", *args]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    assert any(text in line for line in process.stdout), f"{text!r} was never printed"


def kill_worker(run: Path, number: signal.Signals) -> None:
    subprocess.run(["kill", f"-{int(number)}", *workers(run)], check=True)


def running(run: Path) -> list[str]:
    """Process ids of the workers of a run."""
    return subprocess.run(["pgrep", "-f", f"langext.pipeline.worker.*{run}"], capture_output=True, text=True).stdout.split()


def workers(run: Path) -> list[str]:
    """The same; waits for the first one to appear."""
    for _ in range(200):
        if found := running(run):
            return found
        time.sleep(0.05)
    raise AssertionError(f"no worker of {run} was started")
