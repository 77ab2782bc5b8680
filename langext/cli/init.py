"""The command `langext init`: writes a commented pipeline for a language, a base and this machine."""

from pathlib import Path
from typing import Annotated

import typer

from langext.cli import edge


def init(
    language: Annotated[str, typer.Option(help="The language to add: hu, hun_Latn or Hungarian.")],
    base: Annotated[str, typer.Option(help="The base: a hub id, a folder, a .gguf file, asset:<name> or an earlier run.")],
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a base on the hub.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Text of the language: a file, a folder or a pattern. Default: text on the hub.")
    ] = None,
    original: Annotated[
        list[str] | None, typer.Option(help="A language that the base must not lose. Repeatable. Default: eng_Latn.")
    ] = None,
    original_text: Annotated[
        str | None, typer.Option(help="Text of the (first) original language. Default: Wikipedia on the hub.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=edge.path, metavar="FILE", help="File to write. Default: <base>-<language>.yaml.")
    ] = None,
) -> None:
    """Write a pipeline with settings that fit the base, the text and this machine, and say in it why.

    Of a base on the hub only config and tokenizer are downloaded. A file that exists is never overwritten.
    """
    with edge.clean():
        from langext import languages
        from langext.cli import first_look, first_pipeline
        from langext.console import say
        from langext.errors import ConfigError

        new, kept = languages.find(language), [languages.find(other) for other in original or ["eng_Latn"]]
        if new in kept:
            raise ConfigError(f"--original: {new.code} is the language to add")
        if unknown := next((other for other in kept[bool(original_text) :] if other.iso1 is None), None):
            raise ConfigError(
                f"--original: langext knows no text of {unknown.name} on the hub; name it first, with --original-text"
            )
        file = out or Path(f"{first_pipeline.plain_name(base, new)}.yaml")
        if file.exists():
            raise ConfigError(f"{file}: exists already, and is not overwritten; remove it, or choose another --out")
        if not file.parent.is_dir():
            raise ConfigError(f"--out: {file.parent}: no such folder")
        asked = first_pipeline.Asked(base, revision, new, kept, file)
        model = first_look.base(base, revision)
        learnt, known = (
            first_look.text(path, spoken, model.tokenizer) if path else None
            for path, spoken in ((text, new), (original_text, kept[0]))
        )
        written = first_pipeline.write(asked, model, learnt, known, first_look.machine())
        with file.open("x", encoding="utf-8") as target:  # x: not even one that was made meanwhile is overwritten
            target.write(written.text)
        for line in written.found:
            say(line)
        say(f"wrote {file}: it says why it is as it is. Change what you know better, then:")
        for command in written.next:
            say(f"  {command}")
