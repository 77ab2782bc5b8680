"""What `langext transplant` does: it makes a small pipeline of a finished run and another base, and runs it."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langext.cli import edge

if TYPE_CHECKING:
    from langext.artifacts import Manifest
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
    """The pipeline that puts the extension of the run `root` on the base `onto`, measures it and exports it as `form`.

    Text and measurements are those of the run. Calibrated gates are fitted anew on the new base. Raises ConfigError when the
    run has no trained model or no text.
    """
    from pydantic import ValidationError

    from langext.artifacts import BASE, JOB, Corpus, Job, Scores, finished, first_problem, read_as
    from langext.cli import export
    from langext.errors import ConfigError
    from langext.models import bases, loading
    from langext.pipeline.plan import Pipeline

    export.asked(form, None, None)
    manifests = [manifest for _, manifest in finished(root)]
    donor = bases.extended(str(root))
    assert donor is not None, "a run folder"
    job = read_as(donor.path / JOB, Job)
    text = [manifest for manifest in manifests if manifest.kind == Corpus.__name__]
    if not text:
        raise ConfigError(f"{root}: has no text to measure with; write a pipeline with a stage filter and a stage transplant")
    measured = [manifest for manifest in manifests if manifest.kind == Scores.__name__]
    of_model = [manifest for manifest in measured if manifest.inputs["model"].stage != BASE]
    evaluate = settings_of(of_model[-1], "name", "inputs") if of_model else {"uses": "evaluate"}
    if not evaluate.get("kl_bytes", 1):
        del evaluate["kl_bytes"]  # how far the sibling moves on its original languages is what this is about
    method = loading.read_record(donor).method
    calibrated = method is not None and method.calibration
    stages = [
        settings_of(text[-1], "inputs"),
        {"uses": "transplant", "donor": str(root.resolve())},
        *([{"uses": "recalibrate", "rows": "fit"}] if calibrated else []),
        {**evaluate, "name": "evaluate_base", "inputs": {"model": BASE}},
        evaluate,
        {"uses": "export", "format": form, "inputs": {"before": "evaluate_base"}},
    ]
    spec = {
        "name": plain_name(f"{root.resolve().name}-on-{bases.plain_name(onto)}"), "language": job.language,
        "original_languages": job.original_languages, "base_model": onto, "seed": job.seed, "stages": stages,
    }  # fmt: skip
    try:
        return Pipeline.model_validate(spec)
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from None


def settings_of(manifest: "Manifest", *without: str) -> dict[str, Any]:
    """The settings of a finished stage as a file would give them: without defaults and the keys `without`."""
    from pydantic import TypeAdapter

    from langext.stages import AnyStage

    stage = TypeAdapter(AnyStage).validate_python(manifest.stage)
    return stage.model_dump(mode="json", exclude_defaults=True, exclude=set(without))


def plain_name(text: str) -> str:
    """The text as the name of a run: ASCII letters, digits and `._-`, at most 100."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip(".-")[:100] or "transplant"
