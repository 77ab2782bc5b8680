"""How much memory is left."""

from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def available() -> int:
    """Bytes that this process can still take: what the machine has left, or its container (cgroup v2), if less."""
    left = psutil.virtual_memory().available
    for group in _groups():
        limit, used = group / "memory.max", group / "memory.current"
        if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
            left = min(left, max(0, int(most) - int(used.read_text())))
    return left


def _groups() -> list[Path]:
    """The cgroups that this process is in, innermost first."""
    lines = OWN.read_text().splitlines() if OWN.is_file() else []
    inside = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    own = CGROUPS / inside
    return [own, *(parent for parent in own.parents if parent.is_relative_to(CGROUPS))]
