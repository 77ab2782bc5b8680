"""Run ONE stage from its job.json: alone, or once per process under the DeepSpeed launcher.

`python -m langext.pipeline.worker runs/x/04-train` does what `langext run` does for that stage, under a debugger if need be.
"""

import fcntl
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import cast

from pydantic import TypeAdapter

from langext.artifacts import JOB, MANIFEST, WORKERS_LOCK, Artifact, list_files, write_json
from langext.context import Context
from langext.spec import ConfigError
from langext.stages import AnyStage, makes, reads

EXIT_CONFIG = 2
PACKAGES = ("langext", "torch", "transformers", "tokenizers", "deepspeed", "datasets", "datatrove", "lm_eval", "peft")


def execute(out: Path) -> None:
    """Run the stage and write its manifest, last of all."""
    mine = (out.parent / WORKERS_LOCK).open("w")
    fcntl.flock(mine, fcntl.LOCK_SH)  # held until this process ends, also under a launcher that does not pass it on
    job = json.loads((out / JOB).read_text(encoding="utf-8"))
    stage: AnyStage = TypeAdapter(AnyStage).validate_python(job["stage"])
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    ctx = Context(out, job["seed"], job["language"], tuple(job["original_languages"]), rank=rank, world_size=world_size)
    given = job["inputs"]
    inputs = {arg: takes.kind(Path(given[arg]["path"])) for arg, takes in reads(stage).items() if arg in given}
    started = time.time()
    cast(Callable[..., Artifact], stage.run)(ctx, **inputs)
    if rank != 0:
        return
    manifest = {key: job[key] for key in ("fingerprint", "identity", "inputs", "seed", "stage")} | {
        "kind": makes(stage).__name__,
        "summary": ctx.summary,
        "files": list_files(out),
        "started": started,
        "seconds": round(time.time() - started, 2),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "device": _device(),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }
    write_json(out / MANIFEST, manifest)
    stage.tidy(out)


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU ({os.cpu_count()} cores, {platform.machine()})"


def main() -> None:
    """Entry point of the process that `langext run` starts for a stage."""
    try:
        execute(Path(sys.argv[-1]))
        if "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized():
            sys.modules["torch"].distributed.destroy_process_group()
    except KeyboardInterrupt:  # nothing is written yet that could count as done; the parent says how to go on
        sys.exit(130)
    except ConfigError as error:
        print(f"error: {Path(sys.argv[-1]).name}: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CONFIG)


if __name__ == "__main__":
    main()
