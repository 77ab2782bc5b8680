"""Runs train stages one after another in one process (or one group of them): `python legs.py <plan.json>`.

The plan is a list of {"out", "job", "stage", "runtime", "stop_at"}; `stop_at` asks for a stop at that step, as SIGTERM would.
Ranks come from the environment as under a launcher. Starting a process costs far more than a few steps of a pico model, so that
many cases share one.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def launch(root, legs, world_size=1):
    """Run `legs` in `world_size` processes; returns what the first one printed."""
    plan = root / "plan.json"
    plan.write_text(json.dumps(legs))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {
        "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(plan)], cwd=TESTS.parent, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world_size)
    ]  # fmt: skip
    printed = [process.communicate()[0] for process in processes]
    for process, text in zip(processes, printed, strict=True):
        assert process.returncode == 0, text[-4000:]
    return printed[0]


def run(leg):
    from langext.artifacts import JOB, Corpus, Model, read_json, write_json
    from langext.context import Context
    from langext.spec import ConfigError, RunFailed
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


def main():
    from torch import distributed

    for leg in json.loads(Path(sys.argv[1]).read_text()):
        print("leg", Path(leg["out"]).name, flush=True)
        run(leg)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
