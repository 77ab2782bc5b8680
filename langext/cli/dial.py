"""What `langext dial` does: it moves the thresholds of a finished run's gates, in a small run of its own."""

from pathlib import Path
from typing import Annotated, Any

import typer

from langext.cli import edge


def dial(
    root: edge.RunFolder,
    closed: Annotated[
        list[float] | None,
        typer.Option(help="Share of original tokens with every gate closed, e.g. 0.99. Repeatable; several to choose from."),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(help="Drift budget: KL(base || model) on the original languages, nats per token. Default: 0.005."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=edge.folder, metavar="FOLDER", help="Run folder to make. Default: runs/<run>-dial.")
    ] = None,
    form: edge.Format = "auto",
    redo: edge.Redo = None,
) -> None:
    """Turn the dial of a trained model between cautious and eager; nothing is trained again.

    Measures what every setting gains and moves, keeps the best within the drift budget, and exports it. The same command goes
    on after an interruption.
    """
    with edge.clean():
        from langext import console
        from langext.artifacts import finished, read_base
        from langext.cli.transplant import carry_out, pipeline
        from langext.data.assets import PREFIX
        from langext.errors import ConfigError
        from langext.report import page
        from langext.summaries import RecalibrateSummary

        base = read_base(root)
        if base is None:
            raise ConfigError(f"{root}: no finished run here")
        settings: dict[str, Any] = {"closed": closed} if closed else {}
        settings |= {} if max_kl is None else {"max_kl": max_kl}
        named = base.root if base.local is None or base.root.startswith(PREFIX) else base.local
        spec = pipeline(root, named, form, f"{root.resolve().name}-dial", settings, base.commit)
        folder = carry_out(spec, root, out, redo)
        found = [summary for _, manifest in finished(folder) if (summary := manifest.summary_as(RecalibrateSummary))][-1]
        rows = [
            [
                f"{point.closed:g}",
                f"{point.gain:+.2%}",
                f"{point.drift:.4f}",
                "kept" if point.closed == found.gates.closed else "",
            ]
            for point in found.curve
        ]
        console.table("the dial", ["closed", "gain in the new language", "KL, nats per token", ""], rows)
        typer.echo("\n" + page.headline(folder, page.build(folder)))
