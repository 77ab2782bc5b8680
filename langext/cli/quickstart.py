"""The command `langext quickstart`: the whole job on a small model, from any folder, with what comes with langext."""

import typer

from langext.cli import edge

NAME = "quickstart"
"""Of the pipeline, and of the group of assets that it reads."""


def quickstart(overrides: edge.Set = None, out: edge.Out = None, redo: edge.Redo = None) -> None:
    """Teach a small English model French, on this machine: fetches what that needs, and runs the pipeline quickstart.

    The same command goes on after an interruption, and skips what is finished.
    """
    with edge.clean(NAME, overrides):
        from langext.data import assets
        from langext.pipeline import launcher, run
        from langext.report import page

        spec, root = edge.load(NAME, overrides, out)
        launcher.check_alone()
        with run.hold(root):  # a folder that cannot be written is found out before anything is fetched
            pass
        for name in assets.names(NAME):
            assets.fetch(name)
        run.run(spec, root, redo=redo or [])
        typer.echo("\n" + page.headline(root, page.build(root)))
