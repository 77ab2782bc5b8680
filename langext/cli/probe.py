"""What another machine says of itself, for `langext doctor --cluster`. Its text is sent to the Python there.

The one rule: it imports nothing but the standard library, because what is there is what is asked.
"""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any


def look(asked: dict[str, Any]) -> dict[str, Any]:
    """Time, versions, path of langext, number of GPUs, and what is seen of the files that the asking machine has written."""
    found: dict[str, Any] = {"time": time.time(), "versions": {"Python": platform.python_version()}}
    for name in asked["packages"]:
        try:
            found["versions"][name] = version(name)
        except PackageNotFoundError:
            found["versions"][name] = "missing"
    spec = find_spec("langext")
    found["path"] = os.path.dirname(spec.origin) if spec and spec.origin else "missing"
    found["shared"], found["locked"] = read(asked["shared"])
    found["hub"] = folder(asked["hub"])
    try:
        with open(asked["answer"], "x", encoding="utf-8") as file:
            file.write(asked["word"])
    except OSError:  # the asking machine will miss it
        pass
    program = shutil.which("nvidia-smi")
    listed = subprocess.run([program, "-L"], capture_output=True, text=True).stdout if program else ""
    found["gpus"] = sum(line.startswith("GPU ") for line in listed.splitlines())
    return found


def read(path: str) -> tuple[str, bool]:
    """The text of a file, and whether a lock of another process on it is seen. "" when it is not there."""
    try:
        with open(path, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(), True
            return file.read(), False
    except OSError:
        return "", False


def folder(path: str) -> list[int]:
    """What tells a folder from one of the same name on another disk. [] when it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_ino, status.st_mtime_ns]


if __name__ == "__main__":
    print("\nfound: " + json.dumps(look(json.loads(sys.argv[1]))))
