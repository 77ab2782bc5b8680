"""Runs one stage from its job.json, as a single process or as each process under a launcher.

The one rule: the manifest is written last, so a stage with a manifest is complete. To debug a stage, run it by hand:
`python -m langext.pipeline.worker runs/x/04-train`. With `--prepare` it only does `Stage.prepare`.
"""

import argparse
import fcntl
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter

from langext import devices
from langext.artifacts import JOB, MANIFEST, Artifact, Job, Manifest, list_files, read_as, write_json
from langext.console import print_anything
from langext.context import Context, without_launcher
from langext.errors import EXIT_BUG, EXIT_CONFIG, EXIT_RUN_FAILED, ConfigError, RunFailed, bug, machine_problem
from langext.pipeline import lifeline, slurm_step
from langext.stages import AnyStage, makes, reads

LOCK = ".workers.lock"
"""File in the run folder on which every worker holds a shared lock."""
PACKAGES = ("langext", "torch", "transformers", "tokenizers", "deepspeed", "datasets", "datatrove", "lm_eval", "peft")


def execute(out: Path, *, only_prepare: bool = False) -> None:
    """Run the stage in the folder `out` and write its manifest at the end."""
    mine = (out.parent / LOCK).open("w")
    fcntl.flock(mine, fcntl.LOCK_SH)  # taken here too, because the DeepSpeed launcher does not pass the descriptor on
    job = read_as(out / JOB, Job)
    stage: AnyStage = TypeAdapter(AnyStage).validate_python(job.stage)
    if not stage.runtime.gpus:  # libraries would take one, and DeepSpeed's launcher names them to processes on the CPU too
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    languages = job.language, tuple(job.original_languages)
    ctx = Context(
        out, job.seed, *languages, tokens=Path(job.tokens), benchmarks=tuple(job.benchmarks), rank=rank, world_size=world_size
    )
    inputs = {arg: takes.kind(Path(job.inputs[arg].path)) for arg, takes in reads(stage).items() if arg in job.inputs}
    started, clock = time.time(), time.monotonic()  # the first one may be set while the stage runs
    if stage.runtime.gpus and not only_prepare and not devices.gpus():  # libraries would compute on the CPU instead
        why = devices.unused_gpus() or "torch finds none"
        raise RunFailed(f"runtime.gpus: {stage.runtime.gpus} asked for, and none on {platform.node()}: {why}")
    if only_prepare or world_size == 1:
        cast(Callable[..., None], stage.prepare)(ctx, **inputs)
    if only_prepare:
        return
    cast(Callable[..., Artifact], stage.run)(ctx, **inputs)
    if rank == 0:
        write_json(out / MANIFEST, _manifest(stage, job, ctx, started, time.monotonic() - clock))
        stage.tidy(out)


def _manifest(stage: AnyStage, job: Job, ctx: Context, started: float, seconds: float) -> Manifest:
    kept: dict[str, Any] = {key: getattr(job, key) for key in ("fingerprint", "identity", "inputs", "seed", "stage")}
    return Manifest(
        **kept,
        kind=makes(stage).__name__,
        trained=not stage.leaves_untrained,
        choices=stage.choices(),
        summary=ctx.summary[-1].model_dump(mode="json") if ctx.summary else {},
        files=list_files(ctx.out),
        started=started,
        seconds=round(seconds + job.prepare_seconds, 2),
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        device=_device(),
        versions={name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    )


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU ({os.cpu_count()} cores, {platform.machine()})"


def main() -> None:
    """Entry point of the process that `langext run` starts for a stage. Turns known errors into one line and an exit code."""
    parser = argparse.ArgumentParser(prog="python -m langext.pipeline.worker", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument(lifeline.OPTION, dest="run", help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # from the DeepSpeed launcher, which says it in LOCAL_RANK too
    parser.add_argument(slurm_step.OPTION, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    out = given.out
    print_anything()
    try:
        if given.srun:
            slurm_step.translate(os.environ)
        if given.run:
            lifeline.hold(out, given.run)
        else:  # started by hand: what a launcher says here is not said to this process
            for name in os.environ.keys() - without_launcher(os.environ).keys():
                del os.environ[name]
        execute(out, only_prepare=given.prepare)
        if "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized():
            sys.modules["torch"].distributed.destroy_process_group()
    except KeyboardInterrupt:  # without a manifest nothing counts as done; the parent process says how to go on
        sys.exit(130)
    except ConfigError as error:
        _fail(out, error, EXIT_CONFIG)
    except RunFailed as error:
        _fail(out, error, EXIT_RUN_FAILED)
    except Exception as error:
        if problem := machine_problem(error):
            _fail(out, problem, EXIT_RUN_FAILED)
        _fail(out, bug(error), EXIT_BUG)


def _fail(out: Path, what: object, code: int) -> None:
    """End this process, and the others of the stage with it; one that fails because another has failed says nothing."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and (first := lifeline.failed(out)):
        sys.exit(first)
    print(f"error: {out.name}: {what}", file=sys.stderr, flush=True)
    if several:
        lifeline.fail_all(out, code)
    sys.exit(code)


if __name__ == "__main__":
    main()
