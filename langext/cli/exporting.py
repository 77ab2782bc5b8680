"""The command `langext export`; what it does is in langext.cli.export."""

from pathlib import Path
from typing import Annotated

import typer

from langext.cli import edge


def export(
    root: edge.RunFolder,
    to: Annotated[Path, typer.Option(parser=edge.path, metavar="FOLDER", help="Folder to write; must not exist yet.")],
    form: edge.Format = "auto",
    gguf: Annotated[list[str] | None, typer.Option(help="Precision of a GGUF file: f32, f16, bf16, q8_0. Repeatable.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Of a training that has not ended: the step of a checkpoint, or last.")
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            metavar="PROGRAMS",
            help="Compare it in these too: transformers4, transformers5, vllm, llamacpp, mlx; name=PYTHON says where one is.",
        ),
    ] = None,
    push_to_hub: Annotated[str | None, typer.Option(help="Upload to this private repository, owner/name, afterwards.")] = None,
    gguf_pre: Annotated[
        str | None, typer.Option(help="llama.cpp's name of the pre-tokenizer, if it is not recognised.")
    ] = None,
) -> None:
    """Write the newest trained model of a run in another format, compared with what was trained."""
    with edge.clean():
        from langext.cli import export
        from langext.exports import hub, runners

        if push_to_hub is not None:
            hub.check(push_to_hub)
        files = export.asked(form, gguf, gguf_pre)
        programs = runners.interpreters(verify, runners.environments()) if verify is not None else None
        if checkpoint is None:
            export.from_run(root, to, form, files, programs)
        else:
            export.from_checkpoint(root, export.step_of(checkpoint), to, form, files, programs)
        if push_to_hub is not None:
            typer.echo(f"uploaded to {hub.push(to, push_to_hub)}")
