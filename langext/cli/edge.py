"""Between a command and the terminal: errors become one message and an exit code, and words become paths."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langext.console import print_anything
from langext.errors import (
    EXIT_BUG,
    EXIT_CONDITION,
    EXIT_CONFIG,
    EXIT_RUN_FAILED,
    ConfigError,
    RunFailed,
    bug,
    machine_problem,
    user_path,
)
from langext.spec import located

if TYPE_CHECKING:
    from langext.pipeline.plan import Pipeline


@contextmanager
def clean(file: str | None = None, overrides: list[str] | None = None) -> Iterator[None]:
    """A context that turns known errors into one line on stderr and an exit code, without a traceback."""
    print_anything()
    # Python puts the current folder first on the path of `python -m`, as langext starts its workers: what lies there is data.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    # The library of the hub logs each try that fails; what failed in the end is said once. It looks when it is first imported.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        yield
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except RunFailed as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(error.exit_code) from None
    except ConfigError as error:
        typer.secho(
            f"error: {located(error, pipeline_file(file), overrides or []) if file and error.at else error}", fg="red", err=True
        )
        raise typer.Exit(EXIT_CONFIG) from None
    except KeyboardInterrupt:
        typer.secho("interrupted; run the same command again to go on", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:  # who read the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except Exception as error:
        problem = machine_problem(error)
        typer.secho(f"error: {problem or bug(error)}", fg="red", err=True)
        raise typer.Exit(EXIT_RUN_FAILED if problem else EXIT_BUG) from None


def pipeline_file(name: str) -> Path:
    """Path of a pipeline file: `name` is a path, or the name of one that comes with langext."""
    from langext import ready

    return ready.find("pipelines", name, ".yaml")


def load(file: str, overrides: list[str] | None, out: Path | None) -> "tuple[Pipeline, Path]":
    """The validated pipeline that `file` names, and its run folder. Raises ConfigError with every mistake in it."""
    from langext.pipeline.plan import Pipeline
    from langext.spec import load

    spec = load(pipeline_file(file), Pipeline, overrides or [])
    return spec, (out or Path("runs") / spec.name).resolve()


def path(text: str) -> Path:
    """A path on the command line; nothing needs to be there."""
    try:
        return user_path(text, "path")
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def folder(text: str) -> Path:
    """A folder on the command line that can still be made."""
    found = path(text)
    if found.exists() and not found.is_dir():
        raise typer.BadParameter(f"{text} is a file; name a folder")
    return found


@contextmanager
def only_json(as_json: bool) -> Iterator[None]:
    """A context in which what is printed goes to stderr, if standard output is for JSON alone."""
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        yield


def fail(true: list[str]) -> None:
    """Print the conditions that are true, and exit with 3 if there is one."""
    for condition in true:
        typer.secho(f"failed: {condition}", fg="red", err=True)
    if true:
        raise typer.Exit(EXIT_CONDITION)


def json_text(value: Any) -> str:
    """JSON text of `value`; NaN and infinity, which JSON does not have, become null."""

    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: plain(entry) for key, entry in part.items()}
        if isinstance(part, list):
            return [plain(entry) for entry in part]
        return None if isinstance(part, float) and not isfinite(part) else part

    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)


RunFolder = Annotated[Path, typer.Argument(parser=path, metavar="FOLDER", help="Run folder, e.g. runs/quickstart.")]
Format = Annotated[str, typer.Option("--format", help="auto, native, dense, remote, gguf or delta.")]
Redo = Annotated[list[str] | None, typer.Option(help="Do this stage again, and what depends on it. Repeatable.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override one value, e.g. train.lr=3e-4. Repeatable.")]
Out = Annotated[Path | None, typer.Option(parser=folder, metavar="FOLDER", help="Run folder. Default: runs/<pipeline name>.")]
