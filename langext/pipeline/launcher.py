"""Starts the processes that run one stage, and asks them to stop.

The one rule: a stage runs in its own processes, never in the process of `langext run`.
"""

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
"""Environment variables that make training on a CPU faster. Without them glibc returns large freed blocks to the system at
once, and the next allocation has to map each small page again."""


def launch(out: Path, runtime: Runtime, lock: int, *, only_prepare: bool = False) -> int:
    """Run the worker of the stage folder `out`, as one process or under the DeepSpeed launcher, and return its exit code.

    With `only_prepare` the worker only does `Stage.prepare`. The worker inherits the file descriptor `lock`, so that it holds
    the run folder even when this process is killed. Raises KeyboardInterrupt when Ctrl-C has stopped the worker.

    Several processes are asked to stop by a file that all of them see, at the first Ctrl-C or SIGTERM: the launcher would not
    pass the signal on, and would kill the processes while they save. A second signal kills them at once.
    """
    # A stop file from an earlier attempt would stop this one as well.
    (out / STOP).unlink(missing_ok=True)
    command = [sys.executable, "-m", "langext.pipeline.worker", *(["--prepare"] if only_prepare else []), str(out)]
    env = os.environ | {"TOKENIZERS_PARALLELISM": "true"}
    if runtime.gpus == 0:
        env = {"DS_ACCELERATOR": "cpu"} | MALLOC | env  # `env` last: what the user has set wins
        env["CUDA_VISIBLE_DEVICES"] = ""  # runtime asks for no GPU, so libraries must not find one
        if runtime.processes > 1:  # else each process starts a thread on every core, and threads that wait keep cores busy
            env.setdefault("OMP_NUM_THREADS", str(max(1, cores() // runtime.processes)))
    if runtime.processes > 1:
        command = [sys.executable, "-m", "deepspeed.launcher.runner", *_placement(runtime), "--module", *command[2:]]
    # In a separate session: otherwise Ctrl-C in the terminal would reach the worker directly as well.
    worker = subprocess.Popen(command, env=env, start_new_session=True, pass_fds=[lock])
    asked: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        if runtime.processes == 1:
            # The worker handles only SIGINT and SIGTERM; SIGHUP would end it before it can save.
            worker.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)
        elif asked:
            os.killpg(worker.pid, signal.SIGKILL)
        else:
            (out / STOP).write_text(str(number), encoding="utf-8")
        asked.append(number)

    # A signal that is ignored stays ignored: nohup does this with SIGHUP.
    numbers = [n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        code = worker.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if only_prepare and asked:
        code = code or 128 + asked[-1]  # the signal came too late for this process, and the next one must not start
    if signal.SIGINT in asked and code:
        raise KeyboardInterrupt
    return code


def cores() -> int:
    """Number of CPU cores that this process may use; in a container this can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _placement(runtime: Runtime) -> list[str]:
    """Arguments that tell the DeepSpeed launcher where to start processes.

    On one machine the GPUs are those in CUDA_VISIBLE_DEVICES, which the launcher itself would ignore. The port is a free one,
    so that two runs never share a port.
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
