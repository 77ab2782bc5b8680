"""What `langext tasks` and `langext formats` do: public tasks of lm-eval by language, and formats for tasks of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from langext.cli import edge


def tasks(language: Annotated[str, typer.Argument(help="fra_Latn, fr or French.")]) -> None:
    """List public lm-eval tasks in a language, those of names that langext knows; `lm_eval ls tasks` lists all there are."""
    with edge.clean():
        from langext import languages
        from langext.evaluation import benchmarks, harness

        for name in harness.known(benchmarks.public_tasks(languages.find(language))):
            typer.echo(name)


def formats(
    folder: Annotated[Path, typer.Argument(parser=edge.folder, metavar="FOLDER", help="Folder of your own lm-eval tasks.")],
) -> None:
    """Copy the formats of benchmarks into a folder, so that tasks there can say `include: _multiple_choice.yaml`."""
    with edge.clean():
        import shutil

        from langext import ready

        folder.mkdir(parents=True, exist_ok=True)
        for name in ready.names("lm_eval", ".yaml"):
            shutil.copy(ready.find("lm_eval", name, ".yaml"), folder)
            typer.echo(folder / f"{name}.yaml")
