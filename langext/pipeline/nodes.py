"""What DeepSpeed's launcher needs to start a stage on several machines: arguments, environment, and the end of it.

The one rule: a process computes alike on every machine. ssh starts it with an almost empty environment, and DeepSpeed passes on
little, so what decides where and how it computes goes with it; what is secret does not, because others could read it there.
"""

import fcntl
import ipaddress
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from langext.context import Runtime, hosts
from langext.errors import SECRET_NAME, ConfigError, holds_secret

PASSED = re.compile(
    r"(CUDA|DS|FI|GLIBC|GLOO|HF|LANGEXT|MALLOC|MKL|NCCL|OMP|PYTORCH|TENSORBOARD|TOKENIZERS|TORCH|TRITON|UCX|WANDB)_\w+"
)
"""Environment variables that go to every machine."""
OWN_FILE = "DS_ENV_FILE"
"""Environment variable that tells DeepSpeed's launcher from which file to take what it exports."""
PLAIN = re.compile(r"[\w@+=:,./-]+", re.ASCII)
"""A path that the launcher can write into a command of a shell, where pdsh replaces %n and the like."""
SSH_FAILED = 255
"""Exit code of ssh when the other machine went away or cannot be reached; pdsh hands it on."""
PATIENCE_SECONDS = 30.0
"""How long processes on other machines may take to end; a shared disk can show them the stop file late."""


def arguments(runtime: Runtime) -> list[str]:
    """Arguments that tell the launcher which machines to use, and where the first one is reached.

    The launcher would take the first address that machine has, so an address in the host file is given to it. A fixed port
    could be in use by another run; whether one is free on another machine cannot be seen from here, so a random one is taken.
    """
    path = Path(str(runtime.hostfile)).expanduser()
    first = next(iter(hosts(path))).rpartition("@")[2]
    address = ["--master_addr", first] if _is_address(first) else []
    counts = ["--num_nodes", str(runtime.nodes), "--num_gpus", str(runtime.each)]
    return ["--hostfile", str(path), *counts, *address, "--master_port", str(free_port())]


def free_port() -> int:
    """A port that nothing on this machine listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@contextmanager
def passing_on(env: Mapping[str, str], runtime: Runtime, out: Path) -> Iterator[dict[str, str]]:
    """A context in which the launcher, started with the environment that it yields, exports what belongs on all machines.

    On one machine, and under srun, the environment is `env`, and nothing more is done. Raises ConfigError for a path that the
    launcher cannot pass on, and for a value that it cannot.
    """
    if runtime.nodes == 1 or runtime.launcher == "srun":
        yield dict(env)
        return
    for what, path in (("the current folder", os.getcwd()), ("the run folder", out), ("Python", sys.executable)):
        if not PLAIN.fullmatch(str(path)):
            raise ConfigError(f"{what}, {path}: for several machines its path may have letters, digits and @+=:,./-_ alone")
    with tempfile.NamedTemporaryFile("w", prefix="langext-", suffix=".env", encoding="utf-8") as file:
        file.writelines(f"{name}={_quoted(name, value)}\n" for name, value in passed_on(env).items())
        file.writelines(own_lines(env))
        file.flush()
        yield {**env, OWN_FILE: file.name}


def passed_on(env: Mapping[str, str]) -> dict[str, str]:
    """The variables of `env` that go to every machine."""
    # The launcher gives each process its own GPU; a choice made for this machine says nothing about another.
    not_these = {OWN_FILE, "CUDA_VISIBLE_DEVICES"}
    return {
        name: value
        for name, value in sorted(env.items())
        # A secret would stand in a command line that everybody on the machine can list.
        if PASSED.fullmatch(name) and not SECRET_NAME.fullmatch(name) and not holds_secret(value) and name not in not_these
    }


def own_lines(env: Mapping[str, str]) -> list[str]:
    """Lines of the file in which users of DeepSpeed name variables for all machines; those of the current folder last."""
    home = Path(os.path.expanduser("~"))  # it may be unknown, as in a container with a user of its own
    places = [folder / env.get(OWN_FILE, ".deepspeed_env") for folder in (home, Path())]
    lines = [line for path in dict.fromkeys(places) if path.is_file() for line in path.read_text(encoding="utf-8").splitlines()]
    return [f"{line}\n" for line in lines if "=" in line]


def _quoted(name: str, value: str) -> str:
    r"""The value as the launcher must find it to write it between quotation marks: "$" and the like are marked by "\"."""
    if "%" in value or not value.isprintable():
        raise ConfigError(f"environment variable {name}: DeepSpeed's launcher cannot pass {value!r:.60} on to other machines")
    return re.sub(r'([\\"$`])', r"\\\1", value)


def wait_until_gone(lock: int) -> bool:
    """Wait until no process of the stage is left on any machine; False when some do not end.

    Each holds the lock of the run folder, which all machines share, and `lock` is this process's hold on it.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                fcntl.flock(lock, fcntl.LOCK_SH)
                return False
            time.sleep(0.1)
        else:
            fcntl.flock(lock, fcntl.LOCK_SH)
            return True
