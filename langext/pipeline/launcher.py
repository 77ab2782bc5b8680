"""Starts the processes that run one stage, asks them to stop, and sees to it that none stays behind.

The one rule: a stage runs in its own processes, never in the process of `langext run`.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from langext import devices
from langext.artifacts import STOP
from langext.console import warn
from langext.context import Runtime, without_launcher
from langext.errors import ConfigError, RunFailed, Stopped
from langext.pipeline import lifeline, nodes, slurm_step

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Environment variables that make training on a CPU faster. Without them glibc returns large freed blocks to the system at
once, and the next allocation has to map each small page again."""
COUNTS = {
    "WORLD_SIZE": "torchrun", "SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun", "PET_NNODES": "a PyTorchJob of Kubernetes",
}  # fmt: skip
"""Environment variable that holds the number of processes of a launcher -> the launcher."""
RANKS = {"SKYPILOT_NODE_RANK": "SkyPilot", "JOB_COMPLETION_INDEX": "an Indexed Job of Kubernetes", "PALS_RANKID": "PALS"}
"""Environment variable that holds which of several tasks this is, of what does not tell how many there are -> who set it.
https://docs.skypilot.co/en/latest/running-jobs/distributed-jobs.html,
https://kubernetes.io/docs/tasks/job/indexed-parallel-processing-static/"""
OF_ITSELF = (0, *lifeline.FAILURES)
"""Exit codes of a worker that has ended for another reason than a signal, and has said it."""
ENDING_SECONDS = 1.0
"""How long the processes of a stage may still run when its worker has ended."""


def check_alone() -> None:
    """Raise ConfigError when another launcher has started this process as one of several: each would do the whole run."""
    for name, program in COUNTS.items():
        count = os.environ.get(name, "")
        if count.isdigit() and int(count) > 1:
            raise ConfigError(
                f"{name} is {count}: {program} would start {count} runs. langext starts its own processes: call it once, and "
                f"set runtime.gpus (or cpu_processes, or nodes) of the stage; if {name} is left over, unset it"
            )
    for name, program in RANKS.items():
        if (rank := os.environ.get(name, "0")) != "0":
            hosts = " of $SKYPILOT_NODE_IPS" if program == "SkyPilot" else ""
            raise ConfigError(
                f"{name} is {rank}: {program} would start a run in every task. Unset it if each task is a run of its own, or "
                f"call langext in the first one alone, with runtime.nodes and a host file{hosts}: "
                f'if [ "${name}" = 0 ]; then langext run ...; fi'
            )


def launch(out: Path, runtime: Runtime, lock: int, *, only_prepare: bool = False) -> int:
    """Run the worker of the stage folder `out`, as one process or by a launcher, and return its exit code.

    With `only_prepare` the worker only does `Stage.prepare`. The worker inherits the file descriptor `lock`, so that it holds
    the run folder until it has ended, even when this process is killed. Raises KeyboardInterrupt when Ctrl-C has stopped the
    worker, and Stopped when another signal has.

    Several processes are asked to stop by a file that all of them see, at the first Ctrl-C, SIGTERM or SIGUSR1: the launcher
    would not pass the signal on, and would kill the processes while they save. A second signal kills all at once, on other
    machines by the same file. When this returns, no process of the stage is left. Raises RunFailed when a machine was lost.
    """
    lifeline.forget(out)
    with nodes.passing_on(environment(runtime), runtime, out) as env:
        worker = subprocess.Popen(
            command("langext.pipeline.worker", [*(["--prepare"] if only_prepare else []), str(out)], runtime),
            env=env,
            start_new_session=True,  # otherwise Ctrl-C in the terminal would reach the worker directly as well
            pass_fds=[lock],
        )
        code, asked = _attend(worker, out, runtime)
    if runtime.apart and code:
        # What the launcher has started elsewhere lives on when the launcher ends, and may wait for a process that is gone.
        (out / STOP).write_text(str(int(signal.SIGKILL)), encoding="utf-8")
        if not nodes.wait_until_gone(lock):
            warn(f"processes of {out.name} on other machines do not end; the run folder is held until they do")
        if code == nodes.SSH_FAILED and not asked and runtime.launcher != "srun":
            raise RunFailed(
                "a machine went away, or ssh could not reach it; what is printed above says which. Run the same command again "
                f"to go on; langext doctor --cluster {runtime.hostfile} tries all of them"
            )
    if runtime.processes > 1 and code > 192:
        code -= 256  # of a process that a signal has killed: the launcher ends with the negative number
    if only_prepare and asked:
        code = code or 128 + asked[-1]  # the signal came too late for this process, and the next one must not start
    if asked and code not in OF_ITSELF:
        raise Stopped.by(asked, f"stage {out.name!r}")
    return code


def _attend(worker: "subprocess.Popen[bytes]", out: Path, runtime: Runtime) -> tuple[int, list[int]]:
    """Wait for a worker and pass signals on to it. Returns its exit code, negative for a signal, and the signals that came."""
    asked: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        if asked:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            (out / STOP).write_text(str(int(signal.SIGKILL)), encoding="utf-8")  # for what runs on other machines
        elif runtime.processes == 1:
            # The worker of most stages knows only SIGINT and SIGTERM; another signal would end a training before it can save.
            worker.send_signal(number if number == signal.SIGINT else signal.SIGTERM)
        else:
            (out / STOP).write_text(str(number), encoding="utf-8")
        asked.append(number)

    before = {number: signal.signal(number, stop) for number in lifeline.asking()}
    try:
        code = worker.wait()
    finally:
        # A worker that ended by a signal leaves the processes that it has started, and these would hold the lock.
        if left := lifeline.end_group(worker.pid, 0.0 if len(asked) > 1 else ENDING_SECONDS):
            warn(f"processes {', '.join(map(str, left))} of {out.name} do not end; the run folder is held until they do")
        for number, handler in before.items():
            signal.signal(number, handler)
    return code, asked


def cores() -> int:
    """Number of CPU cores that this process may use; in a container this can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_memory() -> int:
    """Bytes of memory of the smallest GPU of this machine; 0 without one."""
    import torch

    return min((torch.cuda.get_device_properties(i).total_memory for i in range(devices.gpus())), default=0)


def command(module: str, arguments: list[str], runtime: Runtime) -> list[str]:
    """The command that runs a module of langext in every process of `runtime`, with the address of this `langext run`."""
    told = [module, lifeline.OPTION, lifeline.address(), *arguments]
    if runtime.in_step:
        return [*slurm_step.command(runtime), sys.executable, "-m", *told, slurm_step.OPTION]
    if runtime.processes > 1:
        return [sys.executable, "-m", "deepspeed.launcher.runner", *_placement(runtime), "--module", *told]
    return [sys.executable, "-m", *told]


def environment(runtime: Runtime) -> dict[str, str]:
    """The environment of these processes."""
    env = without_launcher(os.environ) | {"TOKENIZERS_PARALLELISM": "true"}
    if runtime.gpus == 0:
        env = {"DS_ACCELERATOR": "cpu"} | MALLOC | env  # `env` last: what the user has set wins
        if runtime.each > 1:  # else each process starts a thread on every core, and threads that wait keep cores busy
            env.setdefault("OMP_NUM_THREADS", str(max(1, cores() // runtime.each)))
    if runtime.in_step:
        env |= slurm_step.meeting_point(runtime)
    return env


def _placement(runtime: Runtime) -> list[str]:
    """Arguments that tell the DeepSpeed launcher where to start processes.

    On one machine the GPUs are those in CUDA_VISIBLE_DEVICES, which the launcher itself would ignore. The port is a free one,
    so that two runs never share a port.
    """
    if runtime.nodes > 1:
        return nodes.arguments(runtime)
    port = str(nodes.free_port())
    if not runtime.gpus:
        return ["--num_gpus", str(runtime.cpu_processes), "--master_port", port]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(runtime.gpus)))
    chosen = ",".join(allowed.split(",")[: runtime.gpus])
    return ["--include", f"localhost:{chosen}", "--master_port", port]
