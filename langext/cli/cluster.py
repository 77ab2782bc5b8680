"""What `langext doctor --cluster` does: tries everything that a training on several machines needs, one line each.

The one rule: a line that is not ok says what to do.
"""

import fcntl
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from langext.artifacts import STOP
from langext.cli import health, probe
from langext.cli.health import Check
from langext.context import Runtime, hosts
from langext.errors import ConfigError, one_line
from langext.pipeline import launcher, lifeline, nodes, reduce

PACKAGES = ("langext", "torch", "deepspeed", "transformers", "tokenizers", "safetensors")
"""Packages that must have the same version everywhere: what one machine writes, the others read."""
CLOCK_SECONDS = 5.0
"""Difference of clocks above which there is a warning."""
SLOW = {"nccl": 1e9, "gloo": 1e7}
"""Bytes per second below which there is a warning: about a tenth of 100 Gbit/s, and of 1 Gbit/s."""
SAME = "install the same on each, at the same path"
ANSWER_SECONDS = 120
"""How long a machine may take to say what it is: it imports torch, perhaps from a slow disk."""
NO_ANSWER = 124
"""Exit code that stands for none within that time, as of the program timeout."""
CURES = {
    "Permission denied": "`ssh {host}` must work from here without a password (ssh-copy-id {host})",
    "Host key verification failed": "its key is not known here, or another one: call `ssh {host}` once by hand",
    "Could not resolve hostname": "no such name: mend the host file, or name it in DNS, /etc/hosts or ~/.ssh/config",
    "Connection refused": "no ssh server listens there (apt install openssh-server), or a firewall refuses",
    "timed out": "it is off, or a firewall is between",
    "No route to host": "it is off, or a firewall is between",
}
"""What ssh says -> what to do."""
Run = Callable[[str, Sequence[str], str], "subprocess.CompletedProcess[str]"]
"""(host, command, standard input) -> what came back; `ssh` is the real one."""


def check(hostfile: Path, folder: Path) -> int:
    """Print what a training on the machines of a host file would meet. Returns the exit code: 1 after a failure, else 0.

    `folder` is where runs will be written. Raises ConfigError for a host file or a folder that cannot be used.
    """
    slots = hosts(hostfile)
    if len(slots) < 2:
        raise ConfigError(f"{hostfile}: lists {len(slots)} of the machines; several are checked together")
    if not folder.is_dir():
        raise ConfigError(f"--shared {folder}: no such folder")
    return health.tell(lines(hostfile, slots, folder.resolve()))


def lines(hostfile: Path, slots: Mapping[str, int], folder: Path) -> Iterator[Check]:
    """All lines, in order. What cannot be tried after a failure is left out."""
    missing = [name for name in health.PROGRAMS if shutil.which(name) is None]
    if missing:
        packages = " ".join(health.DEBIAN[name] for name in missing)
        yield Check("failure", "programs", f"no {', '.join(missing)} here", f"apt install {packages}")
        return
    found, said = ask(slots, folder, ssh)
    yield from said
    if any(line.state == "failure" for line in said):
        yield Check("warning", "all-reduce", "not tried", "mend the failures first")
        return
    yield all_reduce(hostfile, slots, folder, gpus=all(found[host]["gpus"] for host in slots))


def ssh(host: str, command: Sequence[str], text: str) -> "subprocess.CompletedProcess[str]":
    """Run a command on another machine, as DeepSpeed's launcher would: without a password, or not at all."""
    whole = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host, shlex.join(command)]
    try:
        return subprocess.run(whole, input=text, capture_output=True, text=True, errors="replace", timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        said = f"no answer within {ANSWER_SECONDS} s; does a file system hang there (df), or is the machine overloaded?"
        return subprocess.CompletedProcess(whole, NO_ANSWER, "", said)


def ask(slots: Mapping[str, int], folder: Path, run: Run) -> tuple[dict[str, dict[str, Any]], list[Check]]:
    """What each machine says of itself, by host, and the lines about it."""
    names = list(slots)
    word = secrets.token_hex(8)
    with left_in(folder, word) as shared:
        here = {"packages": PACKAGES, "shared": str(shared), "hub": str(_hub()), "word": word}
        asked = {host: here | {"answer": f"{shared}.{number}"} for number, host in enumerate(names)}
        with ThreadPoolExecutor(len(names)) as threads:
            answers = dict(zip(names, threads.map(lambda host: _answer(host, asked[host], run), names), strict=True))
        own = probe.look(here | {"answer": f"{shared}.own"})
        wrote = {host: probe.read(asked[host]["answer"])[0] == word for host in names}
        Path(f"{shared}.own").unlink()
        for host in names:
            Path(asked[host]["answer"]).unlink(missing_ok=True)
    found = {host: answer for host, answer in answers.items() if isinstance(answer, dict)}
    silent = {host: answer for host, answer in answers.items() if isinstance(answer, str)}
    told = [_line("ssh", silent, f"{len(names)} machines answer with the Python of {sys.executable}")]
    if silent:
        return found, told
    lines = [*_compared(found, own), _gpus(found, slots), *_disk(found, wrote, word, folder), _models(found, own)]
    return found, [*told, *lines]


def _answer(host: str, asked: dict[str, Any], run: Run) -> dict[str, Any] | str:
    """What a machine says of itself; a text says why it does not."""
    environment = [f"{name}={os.environ[name]}" for name in ("PYTHONPATH", "PYTHONSAFEPATH") if name in os.environ]
    began = time.time()
    done = run(host, ["env", *environment, sys.executable, "-", json.dumps(asked)], Path(probe.__file__).read_text("utf-8"))
    ended = time.time()
    told = [line for line in done.stdout.splitlines() if line.startswith("found: ")]
    if not done.returncode and told:
        answer = json.loads(told[-1].removeprefix("found: "))
        # The clock there was read at some time between; what is surely different is told.
        before, after = began - answer["time"], answer["time"] - ended
        return answer | {"clock": max(before, after, 0.0)}
    why = one_line((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    if done.returncode == NO_ANSWER:
        return why
    if done.returncode == nodes.SSH_FAILED:
        cure = next((cure for said, cure in CURES.items() if said in done.stderr), CURES["Permission denied"])
        return f"{why}; {cure.format(host=host)}"
    return f"{why}; langext must be installed there with the Python of {sys.executable}"


def _compared(found: Mapping[str, dict[str, Any]], own: dict[str, Any]) -> Iterator[Check]:
    """Lines about versions, path and clock."""
    versions = {}
    for host, answer in found.items():
        if other := [f"{k} {v}" for k, v in answer["versions"].items() if own["versions"][k] != v]:
            versions[host] = f"{', '.join(other)} ({', '.join(own['versions'][o.split()[0]] for o in other)} here)"
    same = ", ".join(f"{name} {value}" for name, value in own["versions"].items())
    yield _line("versions", versions, same, cure=SAME)
    paths = {host: f"langext is at {answer['path']}" for host, answer in found.items() if answer["path"] != own["path"]}
    yield _line("path", paths, f"langext is at {own['path']}", cure=f"here it is at {own['path']}; {SAME}")
    late = {h: f"differs by {answer['clock']:.0f} s" for h, answer in found.items() if answer["clock"] > CLOCK_SECONDS}
    cure = "turn on time synchronisation (timedatectl set-ntp true)"
    yield _line("clock", late, f"the same within {CLOCK_SECONDS:.0f} s", cure=cure, state="warning")


def _gpus(found: Mapping[str, dict[str, Any]], slots: Mapping[str, int]) -> Check:
    """The line about GPUs: as many as slots everywhere, or none at all."""
    count = {host: answer["gpus"] for host, answer in found.items()}
    if not any(count.values()):
        return Check("ok", "GPUs", "none; trainings without runtime.gpus compute on the CPUs")
    few = {host: f"{number} GPUs, and slots={slots[host]}" for host, number in count.items() if number < slots[host]}
    cure = "nvidia-smi must list them there (driver), or the host file must have fewer slots"
    return _line("GPUs", few, ", ".join(f"{host} {number}" for host, number in count.items()), cure=cure)


def _disk(found: Mapping[str, dict[str, Any]], wrote: Mapping[str, bool], word: str, folder: Path) -> Iterator[Check]:
    """Lines about the shared folder."""
    unseen = {host: "does not see what is written here" for host, answer in found.items() if answer["shared"] != word}
    unseen |= {h: "cannot write there" for h, done in wrote.items() if not done and h not in unseen}
    cure = f"put runs (--out, --tokens) on storage that all machines share and may write; tried was {folder} (--shared)"
    yield _line("shared folder", unseen, f"{folder} is read and written by all", cure=cure)
    if not unseen:
        free = {h: "does not see a lock that is held here" for h, answer in found.items() if not answer["locked"]}
        cure = "mount it so that flock works across machines (NFS: not with nolock or local_lock)"
        yield _line("locks", free, "a lock that is held here is seen by all", cure=cure, state="warning")


def _models(found: Mapping[str, dict[str, Any]], own: dict[str, Any]) -> Check:
    """The line about the folder of models from the hub."""
    cure = "set HF_HOME to a shared folder, or give base_model as a folder there; else a base from the hub is here alone"
    if not own["hub"]:
        return Check("warning", "models of the hub", f"{_hub()} is not there yet", cure)
    apart = {host: "has another folder, or none" for host, answer in found.items() if answer["hub"] != own["hub"]}
    return _line(f"models of the hub in {_hub()}", apart, "the same folder on all", cure=cure, state="warning")


def _line(
    what: str, wrong: Mapping[str, str], fine: str, *, cure: str = "", state: Literal["warning", "failure"] = "failure"
) -> Check:
    """One line about all machines. `wrong` says of some of them what is not as it must be."""
    if not wrong:
        return Check("ok", what, fine)
    told = ", ".join(f"{host}: {text}" for host, text in wrong.items())
    return Check(state, what, told, cure)


def _hub() -> Path:
    """Where models of the hub are kept."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME)


@contextmanager
def left_in(folder: Path, word: str) -> Iterator[Path]:
    """A context in which a file that holds a word lies in a folder, locked."""
    path = folder / f".langext-doctor-{word}"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(word)
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
            yield path
    finally:
        path.unlink(missing_ok=True)


def all_reduce(hostfile: Path, slots: Mapping[str, int], folder: Path, *, gpus: bool) -> Check:
    """Start a process for each slot with the launcher that trainings have, and measure how fast they exchange numbers."""
    each = min(slots.values())
    runtime = Runtime(nodes=len(slots), hostfile=hostfile, gpus=each if gpus else 0, cpu_processes=each)
    with tempfile.TemporaryDirectory(prefix=".langext-doctor-", dir=folder) as shared:
        out, printed = Path(shared), Path(shared) / "printed"
        with nodes.passing_on(launcher.environment(runtime), runtime, out) as env, printed.open("w") as file:
            command = launcher.command("langext.pipeline.reduce", [str(out)], runtime)
            process = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
            try:
                code: int | None = process.wait(reduce.SECONDS)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                lifeline.end_group(process.pid)
                (out / STOP).write_text(str(int(signal.SIGKILL)), encoding="utf-8")
        lines = printed.read_text(encoding="utf-8", errors="replace").splitlines()
        if code != 0:
            time.sleep(2 * lifeline.EVERY_SECONDS)  # until those on other machines have seen the file
    return reduced(code, lines)


def reduced(code: int | None, printed: Sequence[str]) -> Check:
    """The line about an all-reduce that ended with an exit code (None: it did not end) and printed some lines."""
    cure = (
        "all ports must be open between the machines; where they have several networks, name one (NCCL_SOCKET_IFNAME=eth0, "
        "GLOO_SOCKET_IFNAME=eth0), and each must find its own name at an address that the others reach (/etc/hosts)"
    )
    told = [line.partition(reduce.FOUND)[2] for line in printed if reduce.FOUND in line]
    if code is None:
        return Check("failure", "all-reduce", f"no end after {reduce.SECONDS} s", cure)
    if code or not told:
        errors = [line for line in printed if "Error" in line] or list(printed) or [f"exit code {code}"]
        return Check("failure", "all-reduce", one_line(errors[-1].strip()), cure)
    found = json.loads(told[-1])
    name, speed = found["backend"], found["bytes_per_second"]
    said = f"{found['processes']} processes, {name}, {speed / 1e9:.2f} GB/s (bus bandwidth)"
    if not found["right"]:
        return Check("failure", "all-reduce", f"{said}, and the sum is wrong", "test network and GPUs with nccl-tests")
    if speed < SLOW[name]:
        return Check(
            "warning", "all-reduce", f"{said}; slow: trainings will wait for the network. Name the faster one ({cure})"
        )
    return Check("ok", "all-reduce", said)
