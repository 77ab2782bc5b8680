"""What srun needs to start a stage as a step of the Slurm job that langext runs in: one task for each process.

The one rule: a task finds out which of several processes it is from what Slurm says to it; nothing goes through ssh.
"""

import os
import subprocess
from collections.abc import MutableMapping

from langext.context import Runtime
from langext.errors import ConfigError, RunFailed
from langext.pipeline import nodes

OPTION = "--srun"
"""Argument of a worker that srun has started."""
NAMES = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}
"""What torch.distributed reads -> what Slurm says. https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES"""


def hosts(runtime: Runtime) -> list[str]:
    """The first machines of the job, as many as `runtime` asks for.

    Raises ConfigError outside a Slurm job and in one of fewer machines, and RunFailed when Slurm does not name them.
    """
    listed = os.environ.get("SLURM_JOB_NODELIST")
    if not listed:
        raise ConfigError(
            "runtime.launcher: srun starts the processes as a step of the Slurm job that langext runs in, and this is none "
            "(SLURM_JOB_NODELIST is not set); submit it as docs/many-machines.md says, or leave runtime.launcher out",
            at=("runtime", "launcher"),
        )
    try:
        done = subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, text=True)
    except OSError as error:
        raise RunFailed(f"scontrol cannot be started: {error.strerror}") from None
    if done.returncode:
        raise RunFailed(f"scontrol does not name the machines of the job: {' '.join(done.stderr.split())}")
    names = done.stdout.split()
    if len(names) < runtime.nodes:
        raise ConfigError(f"runtime.nodes: {runtime.nodes} asked for, and the job has {len(names)}", at=("runtime", "nodes"))
    return names[: runtime.nodes]


def command(runtime: Runtime) -> list[str]:
    """The beginning of a command that runs what follows in every process of `runtime`.

    The step overlaps with the one that langext may be in itself, and each task may use its part of the cores of its machine.
    """
    cores = int(os.environ.get("SLURM_CPUS_ON_NODE") or 1) // runtime.each
    return [
        "srun", "--overlap", "--kill-on-bad-exit=1", "--cpu-bind=none", f"--nodelist={','.join(hosts(runtime))}",
        f"--nodes={runtime.nodes}", f"--ntasks={runtime.processes}", f"--ntasks-per-node={runtime.each}",
        f"--cpus-per-task={max(1, cores)}",
    ]  # fmt: skip


def meeting_point(runtime: Runtime) -> dict[str, str]:
    """The environment variables that tell all processes where the first one is reached.

    A fixed port could be in use by another run; whether one is free on another machine cannot be seen from here.
    """
    return {"MASTER_ADDR": hosts(runtime)[0], "MASTER_PORT": str(nodes.free_port())}


def translate(env: MutableMapping[str, str]) -> None:
    """Say in the environment of a task, in the words of torch.distributed, what Slurm says there in its own."""
    env.update({name: env[of_slurm] for name, of_slurm in NAMES.items()})
