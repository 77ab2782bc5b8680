"""Starts the processes that run one stage, and asks them to stop."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from langext.artifacts import STOP
from langext.context import Runtime

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""For glibc, which gives big freed blocks back to the system at once and then faults in every small page again: training on a
CPU takes longer without."""


def launch(out: Path, runtime: Runtime, lock: int, *, only_prepare: bool = False) -> int:
    """Run the worker of the stage folder `out`, alone or under the DeepSpeed launcher, and return its exit code.

    `only_prepare`: do just the work that comes before the stage's processes.
    A first Ctrl-C or SIGTERM asks the worker to stop, by a file that all its processes see: the launcher would not pass the
    signal on to them, and would kill them while they save. A second one ends them at once.
    The worker inherits the file descriptor `lock`, so that it holds the run folder even when this process is killed.
    """
    (out / STOP).unlink(missing_ok=True)
    command = [sys.executable, "-m", "langext.pipeline.worker", *(["--prepare"] if only_prepare else []), str(out)]
    env = os.environ | {"TOKENIZERS_PARALLELISM": "true"}
    if runtime.gpus == 0:
        env = {"DS_ACCELERATOR": "cpu"} | MALLOC | env
        env["CUDA_VISIBLE_DEVICES"] = ""
        if runtime.processes > 1:  # else each takes a thread on every core, and waiting threads keep the cores busy
            env.setdefault("OMP_NUM_THREADS", str(max(1, cores() // runtime.processes)))
    if runtime.processes > 1:
        command = [sys.executable, "-m", "deepspeed.launcher.runner", *_placement(runtime), "--module", *command[2:]]
    # In a session of its own: else the terminal's Ctrl-C would reach it as well.
    worker = subprocess.Popen(command, env=env, start_new_session=True, pass_fds=[lock])
    asked: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        if runtime.processes == 1:
            worker.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)
        elif asked:
            os.killpg(worker.pid, signal.SIGKILL)
        else:
            (out / STOP).write_text(str(number), encoding="utf-8")
        asked.append(number)

    numbers = [n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}  # an ignored one is nohup's
    try:
        code = worker.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in asked and code:
        raise KeyboardInterrupt
    return code


def cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _placement(runtime: Runtime) -> list[str]:
    """Where the DeepSpeed launcher starts processes, as its arguments.

    On one machine the GPUs are those that CUDA_VISIBLE_DEVICES allows, which the launcher itself would ignore, and the port is
    a free one, so that two runs do not meet.
    """
    if runtime.nodes > 1:
        return ["--hostfile", str(runtime.hostfile), "--num_nodes", str(runtime.nodes), "--num_gpus", str(runtime.gpus)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    if not runtime.gpus:
        return ["--num_gpus", str(runtime.cpu_processes), "--master_port", port]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(runtime.gpus)))
    chosen = ",".join(allowed.split(",")[: runtime.gpus])
    return ["--include", f"localhost:{chosen}", "--master_port", port]
