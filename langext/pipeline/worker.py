"""Runs one stage from its job.json, as a single process or as each process under the DeepSpeed launcher.

The one rule: the manifest is written last, so a stage with a manifest is complete. To debug a stage, run the same command as
`langext run`: `python -m langext.pipeline.worker runs/x/04-train`. With `--prepare` it only does `Stage.prepare`.
"""

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

from langext.artifacts import JOB, MANIFEST, Artifact, Job, Manifest, list_files, read_as, write_json
from langext.context import Context
from langext.spec import EXIT_CONFIG, EXIT_RUN_FAILED, ConfigError, RunFailed, disk_problem
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
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    languages = job.language, tuple(job.original_languages)
    ctx = Context(out, job.seed, *languages, tokens=Path(job.tokens), rank=rank, world_size=world_size)
    inputs = {arg: takes.kind(Path(job.inputs[arg].path)) for arg, takes in reads(stage).items() if arg in job.inputs}
    started = time.time()
    if only_prepare or world_size == 1:
        cast(Callable[..., None], stage.prepare)(ctx, **inputs)
    if only_prepare:
        return
    cast(Callable[..., Artifact], stage.run)(ctx, **inputs)
    if rank == 0:
        write_json(out / MANIFEST, _manifest(stage, job, ctx, started))
        stage.tidy(out)


def _manifest(stage: AnyStage, job: Job, ctx: Context, started: float) -> Manifest:
    kept: dict[str, Any] = {key: getattr(job, key) for key in ("fingerprint", "identity", "inputs", "seed", "stage")}
    return Manifest(
        **kept,
        kind=makes(stage).__name__,
        trained=not stage.leaves_untrained,
        choices=stage.choices(),
        summary=ctx.summary[-1].model_dump(mode="json") if ctx.summary else {},
        files=list_files(ctx.out),
        started=started,
        seconds=round(time.time() - started + job.prepare_seconds, 2),
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
    only_prepare, out = "--prepare" in sys.argv[1:-1], Path(sys.argv[-1])
    try:
        execute(out, only_prepare=only_prepare)
        if "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized():
            sys.modules["torch"].distributed.destroy_process_group()
    except KeyboardInterrupt:  # without a manifest nothing counts as done; the parent process says how to go on
        sys.exit(130)
    except ConfigError as error:
        _fail(out, error, EXIT_CONFIG)
    except RunFailed as error:
        _fail(out, error, EXIT_RUN_FAILED)
    except Exception as error:
        if problem := disk_problem(error):
            _fail(out, problem, EXIT_RUN_FAILED)
        raise


def _fail(out: Path, what: object, code: int) -> None:
    print(f"error: {out.name}: {what}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
