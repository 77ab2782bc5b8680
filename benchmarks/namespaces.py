"""Machines that are namespaces of this one: own network, host name, processes and home, joined by cables and a switch.

Needs root on a Debian machine: it installs openssh-server and pdsh if they are not there.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "10.77.0."
NAMES = ("node-1", "node-2")
SWITCH = "langext"
"""Name of a bridge of this machine, and the beginning of those of its ports."""


class Node:
    """One machine, made of namespaces."""

    def __init__(self, number: int, work: Path):
        self.number, self.name, self.work = number, NAMES[number - 1], work
        self.address = f"{PREFIX}{number}"
        self.home = work / f"home-{number}"

    def start(self) -> None:
        """Start its first process, which sets it up and becomes sshd. Its cable is put in by `connect`."""
        (self.home / ".ssh").mkdir(parents=True, exist_ok=True)
        for name in ("id_ed25519", "authorized_keys", "config"):
            shutil.copy(self.work / "ssh" / name, self.home / ".ssh")
        setup = self.work / f"{self.name}.sh"
        needed = {Path(path) for path in (sys.base_prefix, sys.prefix, ROOT, self.work)}
        shared = {path: self.home / path.relative_to(Path.home()) for path in needed if path.is_relative_to(Path.home())}
        setup.write_text(f"""set -e
hostname {self.name}
mount --make-rprivate /
mount --bind {self.work}/hosts /etc/hosts
{"".join(f"mkdir -p {inner}; mount --bind {path} {inner}{chr(10)}" for path, inner in shared.items())}
mount --rbind {self.home} {Path.home()}
ip link set lo up
mkdir -p /run/sshd
until ip addr show eth0 2>/dev/null | grep -q {self.address}; do sleep 0.05; done
exec /usr/sbin/sshd -D -f {self.work}/sshd_config -E {self.work}/{self.name}-sshd.log
""")
        apart = ["--net", "--uts", "--ipc", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
        self.outer = subprocess.Popen(["unshare", *apart, "bash", str(setup)], start_new_session=True)
        while not (children := psutil.Process(self.outer.pid).children()):
            time.sleep(0.05)
        self.init = children[0]

    def inside(self, *command: str) -> list[str]:
        """A command that runs `command` on this machine."""
        return ["nsenter", "--target", str(self.init.pid), "--all", f"--wdns={ROOT}", *command]

    def kill(self) -> None:
        """End all its processes at once, as a crash of the machine does, and wait until its cable is gone too."""
        self.init.kill()
        self.outer.wait()
        while Path("/sys/class/net", f"{SWITCH}-{self.number}").exists():
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """Processes of langext and of its launchers on this machine, those included that nobody waits for any more."""
        here = os.readlink(f"/proc/{self.init.pid}/ns/pid")
        return [p for p in psutil.process_iter() if _space(p) == here and re.search("langext|deepspeed|pdsh", command_of(p))]


def _space(process: psutil.Process) -> str:
    try:
        return os.readlink(f"/proc/{process.pid}/ns/pid")
    except OSError:
        return ""


def command_of(process: psutil.Process) -> str:
    """The command line of a process; empty when it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def disconnect() -> None:
    """Remove the switch."""
    if Path("/sys/class/net", SWITCH).exists():
        sh("ip", "link", "del", SWITCH)


def sh(*command: str) -> None:
    """Run a command; end with what it printed if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")


def prepare(work: Path) -> None:
    """Programs, keys and configuration of ssh."""
    if missing := [name for name in ("sshd", "pdsh") if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]:
        sh("apt-get", "update")
        packages = ["openssh-server" if name == "sshd" else name for name in missing]
        sh("apt-get", "install", "--yes", "--no-install-recommends", "openssh-client", *packages)
    (work / "ssh").mkdir(parents=True)
    for name in ("id_ed25519", "host_key"):
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(work / "ssh" / name))
    shutil.copy(work / "ssh" / "id_ed25519.pub", work / "ssh" / "authorized_keys")
    (work / "ssh" / "config").write_text("StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n")
    (work / "sshd_config").write_text(
        f"HostKey {work}/ssh/host_key\nPidFile none\nUsePAM no\nPermitRootLogin prohibit-password\nStrictModes no\n"
        "AuthorizedKeysFile .ssh/authorized_keys\n"
    )
    (work / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{PREFIX}{i} {name}\n" for i, name in enumerate(NAMES, 1)))
    (work / "hostfile").write_text("".join(f"{name} slots=1\n" for name in NAMES))
    print((work / "hostfile").read_text(), flush=True)


def connect(nodes: list[Node]) -> None:
    """Put a cable (veth) between a switch and each machine that has none: another machine keeps its own when one is lost."""
    if not Path("/sys/class/net", SWITCH).exists():
        sh("ip", "link", "add", SWITCH, "type", "bridge")
        sh("ip", "link", "set", SWITCH, "up")
    for node in nodes:
        port = f"{SWITCH}-{node.number}"
        if Path("/sys/class/net", port).exists():
            continue
        inside = ["peer", "name", "eth0", "netns", str(node.init.pid)]
        sh("ip", "link", "add", port, "master", SWITCH, "up", "type", "veth", *inside)
        sh(*node.inside("ip", "addr", "add", f"{node.address}/24", "dev", "eth0"))
        sh(*node.inside("ip", "link", "set", "eth0", "up"))
    for node in nodes:
        for _ in range(100):
            command = nodes[0].inside("ssh", "-o", "ConnectTimeout=1", node.name, "hostname")
            if subprocess.run(command, capture_output=True, text=True).stdout.strip() == node.name:
                break
            time.sleep(0.1)
        else:
            sys.exit(f"{node.name} cannot be reached")
