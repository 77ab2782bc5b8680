"""How much memory is left."""

from pathlib import Path

import psutil

LIMIT, USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
"""Of a container, in bytes; the limit may be the word max."""


def available() -> int:
    """Bytes that this process can still take: what the machine has left, or the container, where that is less."""
    left = psutil.virtual_memory().available
    if LIMIT.is_file() and USED.is_file() and (limit := LIMIT.read_text().strip()).isdigit():
        left = min(left, max(0, int(limit) - int(USED.read_text())))
    return left
