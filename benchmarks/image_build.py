"""Runs the steps of the Dockerfile in a clean Debian, on a machine without a container engine, and then commands of the image.

    python benchmarks/image_build.py /var/tmp/langext-image --command doctor --command "quickstart --help"

Needs root and debootstrap on a Debian machine, and some 6 GB. The folder becomes the root file system: debootstrap makes what
`FROM debian:bookworm-slim` gives, each RUN is run in it by chroot with the environment that ENV and ARG give, COPY
leaves out what .dockerignore names, and USER, WORKDIR, HEALTHCHECK, ENTRYPOINT and CMD are used as an engine uses them. Network
and kernel are the machine's own. What this does not show: layers, an NVIDIA base, mounted volumes, and GPUs. Every step is
printed with its time and with what it adds to the file system. Exit code 1 when a step or a command fails.
"""

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What engines start with."""


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Instruction -> what follows it, for each instruction of a Dockerfile; lines that go on are one line."""
    plain = "".join(f"{line}\n" for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", " ", plain).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, rest.strip()


def ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore leaves out this path below the folder of the Dockerfile."""
    names = path.split("/")
    anywhere = [pattern.removeprefix("**/") for pattern in patterns if pattern.startswith("**/")]
    return names[0] in patterns or any(fnmatch.fnmatch(name, pattern) for name in names for pattern in anywhere)


@dataclass
class Image:
    """What the instructions have said so far."""

    root: Path
    asked: dict[str, str]
    """Build arguments that the command line gives."""
    binds: list[Path]
    """Paths of this machine that can be read inside too."""
    outside: dict[str, str]
    """Variables of this machine for each command, as engines pass proxies on."""
    suite: str = "bookworm"
    args: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    user: str = "0:0"
    folder: str = "/"
    health: list[str] = field(default_factory=list)
    entry: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def filled(self, text: str) -> str:
        """The text with the values of ARG and ENV in it."""
        known = self.args | self.env
        return re.sub(r"\$\{?(\w+)\}?", lambda found: known.get(found[1], ""), text)

    def run(self, command: list[str]) -> int:
        """Run a command inside, with /dev, /proc and what is bound. Returns its exit code."""
        mounts = [f"mount --rbind /dev {self.root}/dev", f"mount -t proc proc {self.root}/proc"]
        for path in self.binds:
            place = self.root / path.relative_to("/")
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            # Read-only, or packages that are installed inside change the machine: ca-certificates writes certificates anew.
            mounts.append(f"mount --bind {path} {place} && mount -o remount,bind,ro {place}")
        values = [f"{name}={value}" for name, value in (self.outside | self.args | self.env).items()]
        inside = ["chroot", f"--userspec={self.user}", str(self.root), "/usr/bin/env", "-i", *values]
        inside += ["/bin/sh", "-c", f"cd {self.folder} && exec {shlex.join(command)}"]
        script = " && ".join([*mounts, f"exec {shlex.join(inside)}"])
        return subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", script]).returncode

    def do(self, name: str, rest: str) -> int:
        """Carry out one instruction. Returns the exit code of what was run for it."""
        match name:
            case "ARG":
                key, _, default = rest.partition("=")
                self.args[key] = self.asked.get(key, default.strip('"'))
            case "FROM":
                base, self.args = self.filled(rest), {}
                if base != f"debian:{self.suite}-slim":
                    sys.exit(f"FROM {base}: only debian:{self.suite}-slim can be made here")
                made = subprocess.run(["debootstrap", "--variant=minbase", self.suite, self.root], stdout=subprocess.DEVNULL)
                shutil.copy("/etc/resolv.conf", self.root / "etc")
                return made.returncode
            case "ENV":
                self.env |= {key: self.filled(value) for key, value in (pair.split("=", 1) for pair in shlex.split(rest))}
            case "RUN":
                return self.run(["/bin/sh", "-c", rest])
            case "COPY":
                self._copy(rest.split())
            case "USER":
                self.user = rest
            case "WORKDIR":
                self.folder = rest
                (self.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "VOLUME":
                return 0 if all((self.root / place.lstrip("/")).is_dir() for place in json.loads(rest)) else 1
            case "HEALTHCHECK":
                self.health = json.loads(rest.partition("CMD ")[2])
            case "ENTRYPOINT":
                self.entry = json.loads(rest)
            case "CMD":
                self.words = json.loads(rest)
            case "LABEL":
                print("".join(f"    {key}\n" for key in shlex.split(self.filled(rest))), end="")
            case _:
                sys.exit(f"{name}: this script does not know the instruction")
        return 0

    def _copy(self, words: list[str]) -> None:
        """Copy files and folders of the repository inside."""
        *sources, to = words
        patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
        place = self.root / to.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)

        def left_out(folder: str, names: list[str]) -> set[str]:
            below = Path(folder).relative_to(ROOT)
            return {name for name in names if ignored((below / name).as_posix(), patterns)}

        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=left_out, dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / source, place)


def size(root: Path) -> int:
    """MB in the file system of the image."""
    told = subprocess.run(["du", "--summarize", "--one-file-system", "--block-size=1M", root], capture_output=True, text=True)
    return int(told.stdout.split()[0])


def step(image: Image, what: str, work: list[str] | tuple[str, str], sizes: bool) -> bool:
    """Carry out an instruction or run a command, and print what it took. Returns whether it ended well."""
    print(f"==> {what[:150]}", flush=True)
    before, started = size(image.root) if sizes else 0, time.monotonic()
    code = image.do(*work) if isinstance(work, tuple) else image.run(work)
    added = f", {size(image.root) - before:+,} MB" if sizes else ""
    print(f"    exit code {code}, {time.monotonic() - started:.0f} s{added}", flush=True)
    return code == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="Folder of the root file system; must not exist yet.")
    parser.add_argument("--build-arg", action="append", default=[], help="NAME=VALUE, as for docker build.")
    parser.add_argument(
        "--bind", action="append", default=[], type=Path, help="A path of this machine that can be read inside too."
    )
    parser.add_argument(
        "--pass", action="append", default=[], dest="passed", help="A variable of this machine for all commands."
    )
    parser.add_argument(
        "--command", action="append", default=[], help="What to run in the image afterwards, as for docker run."
    )
    asked = parser.parse_args()
    if os.geteuid() or asked.root.exists():
        parser.error("start as root, with a folder that does not exist yet")
    asked.root.mkdir(parents=True)
    arguments = {"BASE": "debian:bookworm-slim"} | dict(pair.split("=", 1) for pair in asked.build_arg)
    outside = {name: os.environ[name] for name in asked.passed}
    image = Image(asked.root.resolve(), arguments, asked.bind, outside)
    for name, rest in instructions((ROOT / "Dockerfile").read_text(encoding="utf-8")):
        if not step(image, f"{name} {rest}", (name, rest), name in ("FROM", "RUN", "COPY")):
            return 1
    image.args = {}
    checks = [("image without words", [*image.entry, *image.words]), ("HEALTHCHECK", image.health)]
    checks += [(f"docker run langext {line}", [*image.entry, *shlex.split(line)]) for line in asked.command]
    return 0 if all([step(image, what, words, sizes=False) for what, words in checks]) else 1


if __name__ == "__main__":
    sys.exit(main())
