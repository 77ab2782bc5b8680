"""Ends the processes of a stage when one of them has failed, or the `langext run` that started them is gone or wants it.

The one rule: no process of a stage stays behind, on no machine. Each worker has a thread that looks for the stop file and for
the file of a failure, which all machines see, and for `langext run`, if that works on the same machine.
"""

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from langext.artifacts import STOP
from langext.errors import EXIT_BUG, EXIT_CONFIG, EXIT_RUN_FAILED

EVERY_SECONDS = 0.5
"""How often a worker looks."""
FAILURES = (EXIT_CONFIG, EXIT_RUN_FAILED, EXIT_BUG)
"""Exit codes of a worker that has failed and has said why."""
OPTION = "--run"
"""Argument of a worker that langext has started, followed by `address()` of its `langext run`."""


def address() -> str:
    """`<machine>:<process id>` of this process."""
    return f"{_machine()}:{os.getpid()}"


def _machine() -> str:
    """Name of this machine. Names are not always different, so what the kernel calls its present run is part of it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return socket.gethostname() + (f"-{boot.read_text(encoding='ascii').strip()}" if boot.is_file() else "")


def hold(out: Path, run: str) -> None:
    """Watch over this process, a worker of the stage folder `out`, in a thread. `run` is the address of its `langext run`."""
    machine, _, number = run.rpartition(":")
    parent = _process(int(number)) if machine == _machine() else None
    if machine == _machine() and parent is None:
        end_all()
    threading.Thread(target=_watch, args=(out, parent), name="lifeline", daemon=True).start()


def _watch(out: Path, parent: psutil.Process | None) -> None:
    stop = out / STOP
    while True:
        time.sleep(EVERY_SECONDS)
        if asked(stop) == signal.SIGKILL:
            end_all()
        if code := failed(out):
            for child in psutil.Process().children(recursive=True):  # whose parent would be gone before anybody ends them
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            os._exit(code)  # the rest of the process may wait for the one that has failed
        if parent is not None and not lives(parent):
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                end_all()
            # A training saves before it leaves, and all its processes must see the same request.
            try:
                if not asked(stop):
                    stop.write_text(str(int(signal.SIGTERM)), encoding="utf-8")
            except OSError:  # a full disk: this process at least is asked
                os.kill(os.getpid(), signal.SIGTERM)
                return


def asking() -> list[signal.Signals]:
    """The signals that ask for an end, without those that are ignored: nohup does this with SIGHUP, and it stays so.

    Slurm sends SIGUSR1 or SIGTERM, as `sbatch --signal` says.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def fail_all(out: Path, code: int) -> None:
    """Make the other processes of the stage end with the exit code of the first that fails.

    On other machines they could wait for it for half an hour. The code is in the name of an empty file: of a disk that is full
    that is what still can be written.
    """
    if not failed(out):
        with suppress(OSError):
            _mark(out, code).touch()


def failed(out: Path) -> int:
    """The exit code of a process of this stage that has failed; 0 when none has."""
    return next((code for code in FAILURES if os.path.exists(_mark(out, code))), 0)


def forget(out: Path) -> None:
    """Remove what an earlier attempt has left: it would end this one as well."""
    for path in (out / STOP, *(_mark(out, code) for code in FAILURES)):
        path.unlink(missing_ok=True)


def _mark(out: Path, code: int) -> Path:
    return out / f"failed-{code}"


def asked(stop: Path) -> int:
    """The number of the signal in a stop file; 0 when there is no such file."""
    try:
        return int(stop.read_text(encoding="utf-8") or signal.SIGTERM)  # empty while it is being written
    except (OSError, ValueError):  # most often it is not there
        return 0


def lives(process: psutil.Process) -> bool:
    """True while the process runs. One that has ended and that nobody has waited for does not run."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _process(number: int) -> psutil.Process | None:
    try:
        return psutil.Process(number)
    except psutil.NoSuchProcess:
        return None


def end_all() -> None:
    """Kill this process and all others of its group: what it has started, and the launcher that has started it."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def end_group(group: int, patience: float = 0.0) -> list[int]:
    """Kill the processes of a group that still run after `patience` seconds, and wait until they are gone.

    Returns the ids of those that do not end even so, because they wait for a disk or a device.
    """
    started = time.monotonic()
    while left := members(group):
        waited = time.monotonic() - started
        if waited > patience + 10:
            return left
        if waited >= patience:
            for number in left:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
        time.sleep(0.05)
    return []


def members(group: int) -> list[int]:
    """Ids of the processes of a group that run."""
    return [process.pid for process in psutil.process_iter() if _group_of(process.pid) == group and lives(process)]


def _group_of(number: int) -> int:
    try:
        return os.getpgid(number)
    except (ProcessLookupError, PermissionError):
        return -1
