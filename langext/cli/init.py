"""The command `langext init`: writes a commented pipeline for a language, a base and this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langext.cli import edge

if TYPE_CHECKING:
    from langext.languages import Language


def init(
    language: Annotated[str, typer.Option(help="The language to add: hu, hun_Latn or Hungarian.")],
    base: Annotated[str, typer.Option(help="The base: a hub id, a folder, a .gguf file, asset:<name> or an earlier run.")],
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a base on the hub.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Text of the language: a file, a folder or a pattern. Default: text on the hub.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of --text that is not UTF-8, as cp1250.")] = None,
    column: Annotated[str | None, typer.Option(help="Field of --text that holds the text, of tables. Default: text.")] = None,
    original: Annotated[
        list[str] | None, typer.Option(help="A language that the base must not lose. Repeatable. Default: eng_Latn.")
    ] = None,
    original_text: Annotated[
        str | None, typer.Option(help="Text of the (first) original language. Default: Wikipedia on the hub.")
    ] = None,
    original_encoding: Annotated[
        str | None, typer.Option(help="Encoding of --original-text that is not UTF-8, as cp1252.")
    ] = None,
    original_column: Annotated[str | None, typer.Option(help="The same of --original-text.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of each machine that will train. Default: those here.")] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(min=1, max=10_000, help="Memory of each of these GPUs, in GiB. Default: that of a GPU here.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines with so many GPUs that will train together.")] = 1,
    out: Annotated[
        Path | None, typer.Option(parser=edge.path, metavar="FILE", help="File to write. Default: <base>-<language>.yaml.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
) -> None:
    """Write a pipeline with settings that fit the base, the text and the machine, and say in it why.

    Of a base on the hub only config and tokenizer are downloaded. A file that exists is only overwritten with --force.
    """
    with edge.clean():
        from langext.cli import first_look, first_pipeline
        from langext.console import say, warn

        new, kept = _spoken(language, original or ["eng_Latn"], given=int(bool(original_text)))
        of_new = first_look.AskedText("--text", text, encoding, column)
        of_original = first_look.AskedText("--original-text", original_text, original_encoding, original_column)
        file = out or Path(f"{first_pipeline.plain_name(base, new)}.yaml")
        _check_target(file, force)
        asked = first_pipeline.Asked(base, revision, new, kept, file)
        machine = first_look.machine(gpus, gpu_memory, nodes)
        model = first_look.base(base, revision)
        learnt, known = (
            first_look.text(asked_text, spoken, model.tokenizer) if asked_text.path else None
            for asked_text, spoken in ((of_new, new), (of_original, kept[0]))
        )
        written = first_pipeline.write(asked, model, learnt, known, machine)
        for doubt in written.doubts:
            warn(doubt)
        with file.open("w" if force else "x", encoding="utf-8") as target:  # x: not even one that was made meanwhile
            target.write(written.text)
        for line in written.found:
            say(line)
        say(f"wrote {file}: it says why it is as it is. Change what you know better, then:")
        for command in written.next:
            say(f"  {command}")


def _spoken(language: str, originals: list[str], given: int) -> "tuple[Language, list[Language]]":
    """The language to add and those to keep, of which all but the first `given` need text on the hub. Raises ConfigError."""
    from langext import languages
    from langext.cli import hub_names
    from langext.errors import ConfigError

    new, kept = languages.find(language), [languages.find(other) for other in originals]
    if new in kept:
        raise ConfigError(f"--original: {new.code} is the language to add")
    if unknown := next((other for other in kept[given:] if hub_names.wikipedia(other) is None), None):
        raise ConfigError(
            f"--original: langext knows no text of {unknown.name} on the hub; name it first, with --original-text"
        )
    return new, kept


def _check_target(file: Path, force: bool) -> None:
    """Raise ConfigError where the file cannot be written, or would be written over."""
    from langext.errors import ConfigError

    if file.is_dir() or (file.exists() and not force):
        other = "" if file.is_dir() else ", or give --force"
        raise ConfigError(f"{file}: exists already, and is not overwritten; remove it, or choose another --out{other}")
    if not file.parent.is_dir():
        raise ConfigError(f"--out: {file.parent}: no such folder")
