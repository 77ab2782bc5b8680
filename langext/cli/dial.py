"""What `langext dial` does: it moves the thresholds of a finished run's gates, in a small run of its own.

The one rule: what the run has made is copied, by hard links, and never made again.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langext.cli import edge

if TYPE_CHECKING:
    from langext.pipeline.plan import Pipeline

STAGE = "dial"
"""Name of the stage that turns the dial."""


def dial(
    root: edge.RunFolder,
    closed: Annotated[
        list[float] | None,
        typer.Option(help="Share of original tokens with every gate closed, e.g. 0.99. Repeatable; several to choose from."),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(help="Drift budget: largest KL(base || model) on original text, in nats per token. Default: 0.005."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=edge.folder, metavar="FOLDER", help="Run folder to make. Default: runs/<run>-dial, with the options."
        ),
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
        from langext.artifacts import finished
        from langext.pipeline import reuse, run
        from langext.report import page
        from langext.summaries import RecalibrateSummary

        settings: dict[str, Any] = {"closed": closed} if closed else {}
        settings |= {} if max_kl is None else {"max_kl": max_kl}
        kept, spec = pipeline(root, settings, form)
        folder = (out or Path("runs") / spec.name).resolve()
        reuse.whole(root.resolve(), kept, folder)
        run.run(spec, folder, redo=redo or [])
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


def pipeline(root: Path, settings: dict[str, Any], form: str) -> "tuple[list[str], Pipeline]":
    """The stage folders of the run `root` that made its model, and the pipeline of these stages and of the dial after them.

    `settings` are those of stage recalibrate. What follows it are the run's evaluation, an export as `form` and its
    certificate. Raises ConfigError when the run has no trained model.
    """
    from langext.artifacts import BASE, JOB, Corpus, Job, Scores, finished, read_as, read_base
    from langext.cli import export, rerun
    from langext.errors import ConfigError
    from langext.models import bases

    export.asked(form, None, None)
    stages, prepared, model = finished(root), read_base(root), bases.extended(str(root))
    if prepared is None or model is None:
        raise ConfigError(f"{root}: no finished run here")
    if not any(manifest.kind == Corpus.__name__ for _, manifest in stages):
        raise ConfigError(f"{root}: no text to measure the settings with, as after `langext apply`; dial the run that trained")
    job = read_as(model.path / JOB, Job)
    folders = [path for path, _ in stages]
    upto = folders.index(model.path) + (job.stage.get("name") != STAGE)  # a dial that is turned again replaces the last one
    kept = stages[:upto]
    evaluate = rerun.evaluation([manifest for _, manifest in stages])
    of_base = [m.name for _, m in kept if m.kind == Scores.__name__ and m.inputs["model"].stage == BASE]
    base_first = [] if of_base else [{**evaluate, "name": "evaluate_base", "inputs": {"model": BASE}}]
    given = [*settings.get("closed", []), *([settings["max_kl"]] if "max_kl" in settings else [])]
    name = "-".join([root.resolve().name.removesuffix("-dial"), "dial", *(f"{value:g}" for value in given)])
    spec = {
        "name": rerun.plain_name(name),
        "language": job.language, "original_languages": job.original_languages, "seed": job.seed,
        "base_model": prepared.identity["base_model"], "revision": prepared.identity["revision"],
        "stages": [
            *(rerun.settings_of(manifest) for _, manifest in kept),
            {"uses": "recalibrate", "name": STAGE, **settings},
            *base_first,
            {**evaluate, "name": "evaluate_dialled"},
            {"uses": "export", "format": form, "inputs": {"before": of_base[-1] if of_base else "evaluate_base"}},
            rerun.certificate([manifest for _, manifest in stages]),
        ],
    }  # fmt: skip
    return [path.name for path, _ in kept], rerun.pipeline(spec)
