"""What is well and what is not, a line each, with the cure, and what `langext doctor` looks at on this machine."""

import importlib.util
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from langext import devices
from langext.console import say
from langext.context import compiler
from langext.data import assets, carriers
from langext.errors import ConfigError, discreet

PACKAGES = (
    "torch", "transformers", "tokenizers", "sentencepiece", "deepspeed", "datasets", "datatrove", "lm_eval", "peft",
    "safetensors", "gguf", "protobuf", "pydantic", "psutil",
)  # fmt: skip
SOMETIMES = {"tensorboard": "runtime.monitor"}
"""Package that is not installed with langext -> what needs it."""
PROGRAMS = {"pdsh": "runtime.nodes > 1 without srun", "ssh": "runtime.nodes > 1 without srun"}
"""Program that DeepSpeed starts -> what needs it."""
DEBIAN = {"pdsh": "pdsh", "ssh": "openssh-client", "C++ compiler": "g++"}
"""Program -> the Debian package that has it."""
GiB = 2**30
LEAST_DISK, LITTLE_DISK = 0.5 * GiB, 5 * GiB
"""Bytes of free disk: below the first nothing runs, below the second a run of a small model may not fit."""
HUB_SECONDS = 5
"""How long the hub may take to answer."""
LITTLE_MEMORY = 3 * GiB
"""Bytes of free memory below which a run of a small model may be killed."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    state: Literal["ok", "warning", "failure"]
    """warning: some runs will not work; failure: none will."""
    what: str
    found: str
    cure: str = ""

    @property
    def said(self) -> str:
        """What was found, and the cure."""
        return f"{self.found}; {self.cure}" if self.cure else self.found

    @property
    def line(self) -> str:
        """As a line of text."""
        return f"{self.state:<8} {self.what}: {self.said}"


def tell(found: Iterable[Check], quiet: bool = False) -> int:
    """Print a line for each; if `quiet`, only what is wrong. Returns the exit code: 1 when there is a failure, else 0."""
    failed = False
    for check in found:
        failed |= check.state == "failure"
        if not quiet or check.state != "ok":
            say(check.line)
    return int(failed)


def checks() -> Iterator[Check]:
    """Look at packages, programs, devices, memory, disk, write permission, clock, hub and assets."""
    yield Check("ok", "python", platform.python_version())
    yield from (_package(name) for name in PACKAGES)
    yield _fasttext()
    yield from sometimes()
    yield from _devices()
    yield Check(
        "ok", "ops of DeepSpeed", "none is needed: AdamW is PyTorch's, offloaded too, so nothing of DeepSpeed is compiled"
    )
    yield _memory()
    for what, folder in (("this folder", Path.cwd()), ("cache", carriers.cache())):
        yield _writable(what, folder)
        yield _disk(what, folder)
    yield _clock(time.time())
    yield hub()
    yield from (_asset(name) for name in assets.ASSETS)


def _package(name: str) -> Check:
    try:
        return Check("ok", name, version(name))
    except PackageNotFoundError:
        return Check("failure", name, "MISSING", "install langext again with pip")


def _fasttext() -> Check:
    if importlib.util.find_spec("fasttext") is None:
        return Check("failure", "fasttext", "MISSING", "install langext again with pip")
    return Check("ok", "fasttext", "here")


def sometimes() -> Iterator[Check]:
    """What only some runs need. It may be missing: then it is said what will not work, and that is no warning."""
    for name, need in SOMETIMES.items():
        try:
            yield Check("ok", name, version(name))
        except PackageNotFoundError:
            yield Check("ok", name, f"MISSING, and only {need} needs it", f"pip install {name}")
    paths = {name: (shutil.which(name), need) for name, need in PROGRAMS.items()}
    paths["C++ compiler"] = (compiler(), "runtime.compile on a CPU")
    for name, (at, need) in paths.items():
        cure = "" if at else f"on Debian: apt install {DEBIAN[name]}"
        yield Check("ok", name, at or f"MISSING, and only {need} needs it", cure)


def _devices() -> Iterator[Check]:
    import torch

    if not devices.gpus():
        from langext.architectures import precision
        from langext.pipeline import launcher

        bf16 = "yes" if precision.chosen("auto", 0) == "bf16" else "no, so precision: auto takes fp32"
        none, why = f"none; {launcher.cores()} CPU cores, bf16 in hardware: {bf16}", devices.unused_gpus()
        yield Check("warning" if why else "ok", "GPU", none, why)
    for i in range(devices.gpus()):
        found = torch.cuda.get_device_properties(i)
        bf16 = "bf16" if found.major >= 8 else "no bf16 in hardware (from compute capability 8.0 on)"
        yield Check("ok", f"GPU {i}", f"{found.name}, {found.total_memory / GiB:.0f} GiB, {bf16}")


def hub() -> Check:
    """Whether the hub can be reached, and with whose name. The token itself is not shown."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import get_session

    endpoint = discreet(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        return Check("ok", "hub", "not asked (HF_HUB_OFFLINE); bases and data sets must be here already")
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # of the HTTP library, which has changed before
        cure = "what comes from there must be here already; HF_HUB_OFFLINE=1 saves the waiting, HTTPS_PROXY names a proxy"
        return Check("warning", "hub", f"{endpoint} cannot be reached ({type(error).__name__})", cure)
    who = "logged in" if get_token() else "not logged in; gated models, as Llama's, need it: hf auth login"
    return Check("ok", "hub", f"{endpoint} answers; {who}")


def _memory() -> Check:
    import psutil

    free, whole = psutil.virtual_memory().available, psutil.virtual_memory().total
    found = f"{free / GiB:.1f} of {whole / GiB:.1f} GiB free"
    return Check("ok", "memory", found) if free >= LITTLE_MEMORY else Check("warning", "memory", found, "end other programs")


def _writable(what: str, folder: Path) -> Check:
    """Whether a file can be made in a folder, or in the first folder above it that is there."""
    there = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"langext")
    except OSError as error:
        cure = "start langext in another one, or name one with --out" if what != "cache" else "name another in LANGEXT_CACHE"
        return Check("failure", what, f"{there}: nothing can be written: {error.strerror}", cure)
    return Check("ok", what, f"{there} can be written to")


def _disk(what: str, folder: Path) -> Check:
    free = shutil.disk_usage(_existing(folder)).free
    state = "failure" if free < LEAST_DISK else "warning" if free < LITTLE_DISK else "ok"
    cure = "" if state == "ok" else "delete what is not needed; `langext plan` says what a run takes"
    return Check(state, f"disk of {what}", f"{free / GiB:.1f} GiB free", cure)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _clock(now: float) -> Check:
    """A clock that stands before langext was installed is wrong, and secure connections fail with it."""
    told = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < Path(__file__).stat().st_mtime:
        return Check("warning", "clock", f"{told}, before langext was installed", "set it; nothing can be downloaded else")
    return Check("ok", "clock", told)


def _asset(name: str) -> Check:
    about = assets.ASSETS[name].about
    if not assets.here(name):
        return Check("ok", f"asset {name}", f"not fetched ({about})", f"langext fetch {name}")
    try:
        assets.resolve(assets.PREFIX + name)
    except ConfigError as error:
        return Check("warning", f"asset {name}", str(error))
    return Check("ok", f"asset {name}", f"here ({about})")
