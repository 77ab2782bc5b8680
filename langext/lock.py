"""Who may write into a run folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from langext.artifacts import LOCK, WORKERS_LOCK
from langext.spec import ConfigError


@contextmanager
def hold(root: Path) -> Iterator[int]:
    """Hold the run folder, so that two runs never write into it at once: neither another `langext run` nor workers that
    outlived theirs, for those share a lock of their own, whose file descriptor is yielded.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / LOCK).open("w") as lock, (root / WORKERS_LOCK).open("w") as workers:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(workers, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{root}: another langext run is working here; wait for it or choose another --out") from None
        fcntl.flock(workers, fcntl.LOCK_SH)
        yield workers.fileno()
