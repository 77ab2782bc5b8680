"""What `langext transplant` does: it makes a small pipeline of a finished run and another base, and runs it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langext.cli import edge

if TYPE_CHECKING:
    from langext.pipeline.plan import Pipeline


def transplant(
    root: edge.RunFolder,
    onto: Annotated[
        str,
        typer.Option(help="Base of the same shapes and tokens: a hub id, a folder, a .gguf file, or asset:<name>."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(parser=edge.folder, metavar="FOLDER", help="Run folder to make. Default: runs/<run>-on-<base>."),
    ] = None,
    form: edge.Format = "auto",
    redo: edge.Redo = None,
) -> None:
    """Put what a run has trained on a sibling of its base, such as the instruct model; measure both languages and export.

    The same command goes on after an interruption.
    """
    with edge.clean():
        from langext.artifacts import TOKENS
        from langext.pipeline import run
        from langext.report import page

        spec = pipeline(root, onto, form)
        folder = (out or Path("runs") / spec.name).resolve()
        # Nothing here is trained, so the token ids of the donor are not taken over.
        run.run(spec, folder, redo=redo or [], others=[root], tokens=folder / TOKENS)
        typer.echo("\n" + page.headline(folder, page.build(folder)))


def pipeline(root: Path, onto: str, form: str) -> "Pipeline":
    """The pipeline that puts the extension of the run `root` on the base `onto`, measures, exports as `form` and certifies it.

    Text and measurements are those of the run. Calibrated gates are fitted anew on the new base. Raises ConfigError when the
    run has no trained model or no text.
    """
    from langext.artifacts import BASE, JOB, Corpus, Job, finished, read_as
    from langext.cli import export, rerun
    from langext.errors import ConfigError
    from langext.models import bases, loading

    export.asked(form, None, None)
    manifests = [manifest for _, manifest in finished(root)]
    donor = bases.extended(str(root))
    assert donor is not None, "a run folder"
    job = read_as(donor.path / JOB, Job)
    text = [manifest for manifest in manifests if manifest.kind == Corpus.__name__]
    if not text:
        raise ConfigError(f"{root}: has no text to measure with; write a pipeline with a stage filter and a stage transplant")
    evaluate = rerun.evaluation(manifests)
    if not evaluate.get("kl_bytes", 1):
        del evaluate["kl_bytes"]  # how far the sibling moves on its original languages is what this is about
    method = loading.read_record(donor).method
    calibrated = method is not None and method.calibration
    stages = [
        rerun.settings_of(text[-1], "inputs"),
        {"uses": "transplant", "donor": str(root.resolve())},
        *([{"uses": "recalibrate", "rows": "fit"}] if calibrated else []),
        {**evaluate, "name": "evaluate_base", "inputs": {"model": BASE}},
        evaluate,
        {"uses": "export", "format": form, "inputs": {"before": "evaluate_base"}},
        rerun.certificate(manifests),
    ]
    spec = {
        "name": rerun.plain_name(f"{root.resolve().name}-on-{bases.plain_name(onto)}"), "language": job.language,
        "original_languages": job.original_languages, "base_model": onto, "seed": job.seed, "stages": stages,
    }  # fmt: skip
    return rerun.pipeline(spec)
