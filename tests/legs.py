"""Runs train stages one after another in one process, or in one group of them.

A leg is {"out", "job", "stage", "runtime", "stop_at"}; `stop_at` asks for a stop at that step, as SIGTERM would. Ranks come
from the environment as under a launcher.
"""

import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path

from forks import Fork


def launch(root, legs, world_size=1):
    """Run `legs` in `world_size` processes; returns what the first one printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    outputs = [(root / f"printed-{rank}.txt").open("w+") for rank in range(world_size)]
    ranks = [
        Fork(partial(work, legs), output, output, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, output in enumerate(outputs)
    ]
    codes = [rank.wait() for rank in ranks]
    printed = []
    for output in outputs:
        with output:
            output.seek(0)
            printed.append(output.read())
    assert not any(codes), "\n".join(text[-4000:] for text in printed)
    return printed[0]


def run(leg):
    from langext.artifacts import JOB, Corpus, Model, read_json, write_json
    from langext.context import Context
    from langext.errors import ConfigError, RunFailed
    from langext.stages.train import Train
    from langext.training import loop

    class Stop:
        def __init__(self, ctx):
            pass

        @property
        def asked(self):
            return int(signal.SIGTERM) if sys._getframe(1).f_locals["step"] == leg.get("stop_at") else 0

    loop.Stop = Stop
    job, out = read_json(Path(leg["job"]) / JOB), Path(leg["out"])
    runtime = job["stage"]["runtime"] | {"cpu_processes": int(os.environ["WORLD_SIZE"])} | leg.get("runtime", {})
    stage = Train.model_validate(job["stage"] | leg.get("stage", {}) | {"runtime": runtime})
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    out.mkdir(parents=True, exist_ok=True)
    languages = job["language"], tuple(job["original_languages"])
    ctx = Context(out, job["seed"], *languages, tokens=Path(job["tokens"]), rank=rank, world_size=world_size)
    given = {name: Path(value["path"]) for name, value in job["inputs"].items()}
    model, corpus = Model(given["model"]), Corpus(given["corpus"])
    try:
        stage.prepare(ctx, model=model, corpus=corpus)
        loop.train(stage, ctx, model, corpus)
    except SystemExit as stopped:
        assert stopped.code == 128 + signal.SIGTERM
        return
    except (ConfigError, RunFailed) as error:
        (out / "error.txt").write_text(f"{type(error).__name__}: {error}")
        return
    if rank == 0:
        write_json(out / "summary.json", ctx.summary[-1])


def work(legs):
    from torch import distributed

    for leg in legs:
        print("leg", Path(leg["out"]).name, flush=True)
        run(leg)
    distributed.destroy_process_group()
