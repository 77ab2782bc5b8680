"""What `langext doctor --cluster` runs on all machines: joins the processes as a training does, and measures an all-reduce.

The one rule: nothing is done here that a training does not do, so that what works here works there.
"""

import argparse
import json
import signal
import time
from pathlib import Path

from langext.pipeline import lifeline

FOUND = "all-reduce: "
"""Begins the line with what was measured."""
FLOATS = {"nccl": 64 << 20, "gloo": 4 << 20}
"""Numbers in one all-reduce: 256 MiB on GPUs, 16 MiB on CPUs."""
ROUNDS = 5
SECONDS = 300
"""How long a process lives at most, most of it the start of Python: those of machines that nobody reaches any more end too."""


def main() -> None:
    """Entry point of each process. The first one prints `FOUND` and a JSON object."""
    parser = argparse.ArgumentParser(prog="python -m langext.pipeline.reduce", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument(lifeline.OPTION, dest="run", required=True)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    given = parser.parse_args()
    signal.alarm(SECONDS)
    lifeline.hold(given.out, given.run)

    import torch
    from torch import distributed

    from langext.training import engine

    device = engine.join_processes()
    backend, world = distributed.get_backend(), distributed.get_world_size()
    ones = torch.ones(FLOATS[backend], device=device)
    seconds = []
    for _ in range(ROUNDS):
        ones.fill_(1.0)
        distributed.barrier()
        began = time.monotonic()
        distributed.all_reduce(ones)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - began)
    right = bool((ones == world).all())
    if distributed.get_rank() == 0:
        # "Bus bandwidth", which does not depend on the number of processes:
        # https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
        moved = ones.numel() * ones.element_size() * 2 * (world - 1) / world
        found = {"backend": backend, "processes": world, "right": right, "bytes_per_second": moved / min(seconds)}
        print(FOUND + json.dumps(found), flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
