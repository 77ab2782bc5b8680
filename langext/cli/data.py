"""What `langext data` does: it looks at sources before a run, and at what became of them after it."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from langext.cli import edge

if TYPE_CHECKING:
    from langext.data.language_id import LanguageId
    from langext.data.peek import Expected, Judged
    from langext.data.sources import Source

Level = Literal["document", "paragraph", "line"]
app = typer.Typer(no_args_is_help=True, help="Look at sources of text, and at what became of them.")
SHOWN_LETTERS = 90
"""Letters of a document in a table."""


@app.command()
def peek(
    where: Annotated[str, typer.Argument(help="Pipeline file (YAML), or the path of a source: file, folder or pattern.")],
    name: Annotated[str | None, typer.Argument(metavar="[SOURCE]", help="One source of the pipeline. Default: each.")] = None,
    language: Annotated[
        str | None, typer.Option(help="Of a path: the language that is expected. Default: the one that is found most.")
    ] = None,
    lid: Annotated[str, typer.Option(help="Of a path: fastText model for language identification.")] = "asset:lid.176",
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of a path: as `threshold` of stage filter. Default: auto.")
    ] = None,
    level: Annotated[Level, typer.Option(help="Of a path: as `level` of stage filter.")] = "document",
    column: Annotated[list[str] | None, typer.Option(help="Of a path: as `text_column` of a source. Repeatable.")] = None,
    documents: Annotated[int, typer.Option(min=1, help="Most documents to read of a source.")] = 1000,
    show: Annotated[int, typer.Option(min=1, help="Most documents to show of what is kept, and of what is dropped.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show documents of a source with language, score, runner-up and verdict.

    First the worst that are kept and the best that are dropped: what another threshold would change.
    Nothing is written, and only the beginning of files is read.
    """
    from langext.data.formats import SUFFIXES

    is_pipeline = where.endswith((".yaml", ".yml")) or not (where.casefold().endswith(SUFFIXES) or _there(where))
    with edge.clean(where if is_pipeline else None):
        with edge.only_json(as_json):
            sources = (
                _of_pipeline(where, name)
                if is_pipeline
                else [_of_path(where, language, lid, _expected(language, threshold, level), column)]
            )
            looks, code = _looks(sources, documents)
        if as_json:
            typer.echo(edge.json_text([{**head, "judged": [vars(each) for each in found]} for head, found in looks]))
        else:
            for head, found in looks:
                _show(head, found, show)
        if code:
            raise typer.Exit(code)


@app.command()
def stats(root: edge.RunFolder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False) -> None:
    """Show what became of the text of a run: how much is left after each step, dropped for what reason, and held out."""
    with edge.clean():
        from langext.artifacts import finished, read_base
        from langext.cli import funnel_tables
        from langext.errors import ConfigError
        from langext.text_summaries import FilterSummary

        found = {path.name: text for path, manifest in finished(root) if (text := manifest.summary_as(FilterSummary))}
        if not found:
            raise ConfigError(f"{root}: no stage filter is finished here")
        if as_json:
            typer.echo(edge.json_text({name: [row.model_dump() for row in text.funnel] for name, text in found.items()}))
            return
        base = read_base(root)
        for name, text in found.items():
            funnel_tables.show(name, text.funnel, base.content if base else "")


@dataclass(frozen=True)
class Asked:
    """A source, and what it is judged with."""

    source: "Source"
    model: "LanguageId"
    expected: "Expected"
    name: str
    unsaid: bool = False
    """Whether nothing is said of its language, so that it is the one that is found most."""


def _expected(language: str | None, threshold: float | None, level: Level) -> "Expected":
    from langext import languages
    from langext.data.peek import Expected

    one = languages.find(language) if language else None
    level = "document" if one and one.code == languages.ZXX else level
    return Expected(one.code if one and one.single else None, "auto" if threshold is None else threshold, level)


def _there(path: str) -> bool:
    from langext.data import formats, remote
    from langext.errors import user_path

    with edge.clean():
        return remote.is_remote(path) or formats.pattern(path) >= 0 or user_path(path, "path").exists()


def _of_pipeline(file: str, name: str | None) -> list[Asked]:
    """The sources of a pipeline's stages of kind filter, or the one called `name`."""
    from langext import languages
    from langext.data.peek import Expected
    from langext.errors import ConfigError
    from langext.pipeline.plan import Pipeline
    from langext.spec import load, near
    from langext.stages.filter import Filter

    spec = load(edge.pipeline_file(file), Pipeline)
    found: list[Asked] = []
    for stage in spec.stages:
        if isinstance(stage, Filter):
            run = tuple(stage.identified((spec.language, *spec.original_languages)))
            for source in stage.sources:
                one = languages.find(source.language).single and source.identify
                level = "document" if source.language == languages.ZXX else stage.level
                unwanted = spec.language if source.language == languages.MUL and spec.language in run else None
                expected = Expected(source.language if one else None, stage.threshold, level, unwanted, run)
                found.append(Asked(source, _model(stage.lid_model, stage.lid_text), expected, source.key))
    if not found:
        raise ConfigError(f"{file}: no stage filter here, so there are no sources")
    if name is None:
        return [each for each in found if not each.source.piped]
    chosen = [each for each in found if name in (each.source.domain, each.source.key)]
    if not chosen:
        known = [each.source.key for each in found]
        raise ConfigError(f"{file}: no source is called {name!r}.{near(name, known)} There are: {', '.join(known)}")
    return chosen


def _of_path(path: str, language: str | None, lid: str, expected: "Expected", column: list[str] | None) -> Asked:
    from pydantic import ValidationError

    from langext.artifacts import first_problem
    from langext.data.sources import Source
    from langext.errors import ConfigError

    columns: Any = column[0] if column and len(column) == 1 else column or "text"
    try:
        source = Source.model_validate({"language": language or "mul", "path": path, "text_column": columns})
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}") from None
    return Asked(source, _model(lid), expected, path, unsaid=language is None)


def _model(name: str, text: Literal["auto", "plain", "words"] = "auto") -> "LanguageId":
    from langext.data import assets
    from langext.data.language_id import LanguageId
    from langext.errors import user_path

    return LanguageId(assets.resolve(name) if name.startswith(assets.PREFIX) else user_path(name, "lid_model"), text)


def _looks(asked: list[Asked], count: int) -> tuple[list[tuple[dict[str, Any], list["Judged"]]], int]:
    """What is said of each source and its documents, and the exit code of the first that cannot be looked at, else 0.

    Of several sources such a one is a line, and the others go on.
    """
    from langext.errors import EXIT_CONFIG, ConfigError, RunFailed

    if len(asked) == 1:
        return [_look(asked[0], count)], 0
    looks, code = [], 0
    for each in asked:
        try:
            looks.append(_look(each, count))
        except (ConfigError, RunFailed) as error:
            typer.secho(f"error: source {each.name}: {error}", fg="red", err=True)
            code = code or (EXIT_CONFIG if isinstance(error, ConfigError) else error.exit_code)
    return looks, code


def _look(asked: Asked, count: int) -> tuple[dict[str, Any], list["Judged"]]:
    """What is said of a source, and its documents."""
    from langext import languages
    from langext.data import peek

    seen, expected = peek.look(asked.source, count), asked.expected
    if asked.unsaid and (guess := languages.of_label(peek.commonest(asked.model, seen.documents), asked.model.labels())):
        expected = replace(expected, language=guess.code)
    found, cut = peek.judge(asked.model, seen.documents, expected)
    head = {"source": asked.name, "expected": expected.language, "demanded": cut and cut.told, "files": seen.files,
            "documents": len(seen.documents), "broken": seen.broken, "places": seen.places}  # fmt: skip
    return head, found


def _show(head: dict[str, Any], found: "list[Judged]", count: int) -> None:
    from langext import console
    from langext.data import peek

    kept, dropped = peek.split(found)
    reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(each.verdict for each in dropped).most_common())
    places = f" of {head['files']} file(s)" if head["files"] else ""
    console.say(
        f"{head['source']}: {head['documents']} documents{places}, expected {head['expected'] or 'any language'}: {len(kept)} "
        f"kept, {len(dropped)} dropped{f' ({reasons})' if reasons else ''}"
    )
    if head["demanded"]:
        console.say(f"demanded here, as found in these documents: {head['demanded']}")
    if head["broken"]:
        console.say(f"{head['broken']} entries cannot be read; {head['places'][0]}")
    for title, part in (("kept, the worst first", kept), ("dropped, the best first", dropped)):
        if part:
            rows = [
                [
                    f"{each.label} {each.score:.2f}",
                    f"{each.runner_up} {each.runner_up_score:.2f}",
                    each.verdict,
                    _short(each.text),
                ]
                for each in part[:count]
            ]
            console.table(f"{title} ({len(rows)} of {len(part)})", ["first choice", "runner-up", "verdict", "text"], rows)


def _short(text: str) -> str:
    line = " ".join(text[: 4 * SHOWN_LETTERS].split())
    return line if len(line) <= SHOWN_LETTERS else f"{line[:SHOWN_LETTERS]}..."
