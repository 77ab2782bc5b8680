"""Runs `langext`, its workers and its trainings in forks of this process, which has imported what they need.

Importing torch, transformers and DeepSpeed takes ten seconds of a core, longer than most trainings of a pico model. Signals,
kills and the launcher are tested with processes of their own, see `processes.py`.
"""

import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

NEEDED = (
    "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer", "langext.cli.app", "langext.training.loop",
    "langext.report.page", "langext.exports.write", "langext.exports.gguf.file", "langext.evaluation.harness",
    "langext.pipeline.run", "datatrove.executor",
)  # fmt: skip
ROOT = Path(__file__).parent.parent
CHILD = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
"""The pool of threads of the tokenizers library does not survive a fork."""


class Fork:
    """A child of this process that does `work`; what it prints goes into the files `out` and `err`."""

    def __init__(self, work: Callable[[], Any], out: Any, err: Any, env: dict[str, str] | None = None):
        for module in NEEDED:
            importlib.import_module(module)
        for stream in (sys.stdout, sys.stderr, out, err):
            stream.flush()
        self.pid = os.fork()
        if not self.pid:
            self._child(work, out, err, env or {})

    def wait(self) -> int:
        """The exit code; negative for a signal."""
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except BaseException:
            os.kill(self.pid, signal.SIGKILL)
            raise

    @staticmethod
    def _child(work: Callable[[], Any], out: Any, err: Any, env: dict[str, str]) -> None:
        code = 1
        try:
            os.environ.update(CHILD | env)
            for number, file, name in ((1, out, "stdout"), (2, err, "stderr")):
                os.dup2(file.fileno(), number)
                setattr(sys, name, os.fdopen(number, "w", buffering=1, encoding="utf-8", closefd=False))
            signal.alarm(0)
            gc.freeze()  # DeepSpeed collects garbage again and again, and what was imported before never is any
            work()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def langext(
    *args: object, package: Path | None = None, first: Callable[[Path | None], None] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command of langext; its workers of one process are forks too. `package`: the folder with a langext of its own.

    `first` is called in every process before it works, with the stage folder of a worker, and None of the command itself.
    """

    def work() -> None:
        if package:
            forget()
            sys.path.insert(0, str(package))
        from langext.cli.app import app
        from langext.exports import verify
        from langext.pipeline import run

        os.chdir(ROOT)
        run.launch = partial(launch, first=first)
        verify.run = reloaded
        if first:
            first(None)
        app([str(arg) for arg in args])

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code = Fork(work, out, err).wait()
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read())
    return subprocess.CompletedProcess(args, code, *printed)


def launch(
    out: Path, runtime: Any, lock: int, *, only_prepare: bool = False, first: Callable[[Path | None], None] | None = None
) -> int:
    """In place of `langext.pipeline.launcher.launch`."""
    from langext.pipeline import launcher, worker

    if runtime.processes > 1:
        return launcher.launch(out, runtime, lock, only_prepare=only_prepare)

    def work() -> None:
        if first:
            first(out)
        sys.argv = ["worker", *(["--prepare"] if only_prepare else []), str(out)]
        worker.main()

    return Fork(work, sys.stdout, sys.stderr).wait()


def forget() -> None:
    """Let the next import of langext read its files again."""
    for name in [name for name in sys.modules if name.split(".")[0] == "langext"]:
        del sys.modules[name]


def reloaded(jobs: list[Path], script: str = "", python: str = "") -> list[dict[str, Any]]:
    """In place of `langext.exports.verify.run`: the script runs in a fork that cannot import langext."""
    from transformers import dynamic_module_utils

    from langext.errors import RunFailed
    from langext.exports import reload, verify

    scratch = jobs[0].parent
    for file in (script or reload.__file__, verify.precision.__file__):
        shutil.copy(file, scratch)

    def work() -> None:
        forget()
        sys.path[:] = [str(scratch), *(part for part in sys.path if not (Path(part or ".") / "langext").is_dir())]
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
        dynamic_module_utils.HF_MODULES_CACHE = str(scratch / "modules")
        path = str(scratch / Path(script or reload.__file__).name)
        sys.argv = [path, *map(str, jobs)]
        runpy.run_path(path, run_name="__main__")

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code = Fork(work, out, err).wait()
        for file in (out, err):
            file.seek(0)
        if code:
            raise RunFailed(f"the export does not load in a fresh process:\n{(out.read() + err.read()).strip()[-2000:]}")
        return [json.loads(line) for line in out.read().strip().splitlines()[-len(jobs) :]]
