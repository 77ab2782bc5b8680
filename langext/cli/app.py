"""The commands of langext. Every error becomes one message and an exit code, which the README lists.

The one rule: modules that import slowly are imported inside the commands, so that --help is instant.
"""

from pathlib import Path
from typing import Annotated

import typer

from langext.cli import edge
from langext.cli.data import app as data
from langext.cli.dial import dial
from langext.cli.exporting import export
from langext.cli.init import init
from langext.cli.quickstart import quickstart
from langext.cli.tasks import formats, tasks
from langext.cli.transplant import transplant
from langext.cli.watch import watch
from langext.errors import EXIT_CONFIG

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Extend a language model to a new language without losing the old one.",
)


File = Annotated[str, typer.Argument(help="Pipeline file (YAML), or the name of one that comes with langext: quickstart.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


@app.command()
def run(
    file: File,
    overrides: edge.Set = None,
    out: edge.Out = None,
    redo: edge.Redo = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE",
            help="Stop after this stage. Only what runs is checked, so that a machine without GPUs can filter: --until filter.",
        ),
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            parser=edge.path,
            metavar="FOLDER",
            help="Another run; stages it finished by the same recipe are taken from it. Repeatable.",
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            parser=edge.folder,
            metavar="FOLDER",
            help="Folder of text as token ids; runs that name the same one share it. Default: <run folder>/tokens.",
        ),
    ] = None,
) -> None:
    """Run a pipeline. Finished stages are skipped, interrupted ones go on."""
    with edge.clean(file, overrides):
        from langext.pipeline import run
        from langext.report import page

        spec, root = edge.load(file, overrides, out)
        run.run(spec, root, redo=redo or [], others=reuse or [], tokens=tokens, until=until)
        written = page.build(root)
        typer.echo("\n" + page.headline(root, written))


app.command()(quickstart)
app.command()(init)
app.command()(watch)


@app.command()
def plan(
    file: File,
    overrides: edge.Set = None,
    out: edge.Out = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also try two steps of each training on this machine, for time and memory.")
    ] = False,
) -> None:
    """Show what would run: wiring, what is done, size, memory, disk and exports. Needs no GPU and downloads nothing.

    Exits with 2 when the run could not start.
    """
    with edge.clean(file, overrides):
        from langext.pipeline import estimate

        spec, root = edge.load(file, overrides, out)
        if not estimate.show(spec, root, edge.pipeline_file(file), overrides or []):
            raise typer.Exit(EXIT_CONFIG)
        if measure:
            from langext.pipeline import trial

            trial.show(spec, root)


@app.command("report")
def report_(root: edge.RunFolder, as_json: Json = False) -> None:
    """Write <run>/report.html from what the stages left, and print the headline."""
    with edge.clean():
        from langext.report import conditions, page, run_folder

        written = page.build(root)
        typer.echo(edge.json_text(conditions.table(run_folder.gather(root))) if as_json else page.headline(root, written))


@app.command()
def scores(
    root: edge.RunFolder,
    fail_if: Annotated[
        list[str] | None, typer.Option(help="Exit with 3 if this is true, e.g. 'original.bpb_increase > 0.5%'. Repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what the evaluations of a run have found, before and after, and test conditions on it. Measures nothing itself."""
    with edge.clean():
        from langext.report import conditions, run_folder

        run = run_folder.gather(root)
        values = conditions.measures(run)
        true = conditions.met(fail_if or [], values)
        if as_json:
            typer.echo(edge.json_text(conditions.table(run) | {"failed": true}))
        else:
            for name, value in values.items():
                typer.echo(f"{name + ' ':.<52} {value:+.6f}")
        if not values:
            typer.echo(f"{root}: no evaluation of this run has finished, so nothing has been measured", err=True)
        edge.fail(true)


app.command()(export)


@app.command("apply")
def apply_(
    delta: Annotated[
        Path, typer.Argument(parser=edge.path, metavar="FOLDER", help="Folder that `langext export --format delta` wrote.")
    ],
    to: Annotated[Path, typer.Option(parser=edge.path, metavar="FOLDER", help="Run folder to make; must not exist yet.")],
    base: Annotated[str | None, typer.Option(help="The delta's base: a hub id or a folder. Default: the one it names.")] = None,
) -> None:
    """Make a run folder of a delta and its base, to export it or to add another language."""
    with edge.clean():
        from langext.exports import delta as deltas

        deltas.apply(delta, base, to.resolve())
        typer.echo(f"{to}: a run folder; export it with `langext export`, or give it as base_model to add a language")


app.add_typer(data, name="data")
app.command()(transplant)
app.command()(dial)


@app.command()
def chat(
    where: Annotated[Path, typer.Argument(parser=edge.path, metavar="FOLDER", help="Run folder, or an exported model.")],
    base: Annotated[
        Path | None,
        typer.Option(
            parser=edge.path,
            metavar="FOLDER",
            help="Folder of the base of an exported model. Default: of its run, or the hub's.",
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 100,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the Python code that an exported model brings. Read it before.")
    ] = False,
) -> None:
    """Talk to the base and to the extended model side by side, in any language."""
    with edge.clean():
        from langext.cli import chat as chatting

        chatting.talk(chatting.speakers(where, base, trust=trust_remote_code), tokens, chatting.typed())


@app.command()
def certify(
    where: Annotated[Path, typer.Argument(parser=edge.path, metavar="FOLDER", help="Run folder, or an exported model.")],
    against: Annotated[
        str | None,
        typer.Option(
            help="The base: a folder, a hub id, a .gguf file, asset:<name> or a run. Default: what the run began with."
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to measure on, as <language>/<domain>=<file or folder>. Repeatable. Default: the run's held-out text, "
            "but that of its new language."
        ),
    ] = None,
    text_bytes: Annotated[int, typer.Option("--bytes", min=1000, help="Bytes of each text that are measured.")] = 40_000,
    continuations: Annotated[int, typer.Option(min=0, help="Passages of each text that both models continue greedily.")] = 32,
    keep_text: Annotated[
        bool, typer.Option("--keep-text/--drop-text", help="Whether the passages go into the folder, for others to check.")
    ] = True,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the Python code that an exported model brings. Read it before.")
    ] = False,
    fail_if: Annotated[
        list[str] | None, typer.Option(help="Exit with 3 if this is true, e.g. 'total.kl > 0.005'. Repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure, token by token in float32, how far a model has moved from its base on text that it should not have touched.

    Writes neutrality.json into the folder; into an exported model also a section of its model card and certify.py, with which
    anybody can measure again.
    """
    with edge.clean():
        from langext.cli import certify as certifying
        from langext.evaluation.neutrality import Settings
        from langext.report import conditions

        settings = Settings(continuations=continuations)
        asked = certifying.Asked(against, text or [], text_bytes, settings, keep_text, trust_remote_code, fail_if or [])
        with edge.only_json(as_json):
            found = certifying.certify(where, asked)
        true = conditions.met(asked.fail_if, found.measures())
        if as_json:
            typer.echo(edge.json_text(found.model_dump(mode="json") | {"measures": found.measures(), "failed": true}))
        edge.fail(true)


@app.command()
def compare(
    roots: Annotated[
        list[Path], typer.Argument(parser=edge.path, metavar="FOLDERS", help="Run folders, or the folder of a sweep.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=edge.folder, metavar="FOLDER", help="Folder for compare.html and compare.csv. Default: where the runs are."
        ),
    ] = None,
    links: Annotated[
        bool, typer.Option(help="Link the page to the reports of the runs; not for a page to publish alone.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Compare runs: what each learned and forgot, and which of them no other one beats in both."""
    with edge.clean():
        from langext.report import compare_page as page
        from langext.report import comparison

        found = comparison.gather(roots)
        written = page.build(found, out or comparison.folder(roots), links)
        if as_json:
            typer.echo(edge.json_text(comparison.table(found)))
        else:
            page.show(found, written)


@app.command()
def sweep(
    files: Annotated[list[str], typer.Argument(help="Pipeline files (YAML), or names of those that come with langext.")],
    over: Annotated[
        list[str] | None,
        typer.Option(help="Values of one key, e.g. train.lr=1e-4,3e-4 or extend.method=lora,full. Repeatable."),
    ] = None,
    overrides: edge.Set = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=edge.folder, metavar="FOLDER", help="Folder of the runs. Default: runs/<pipeline name>-sweep."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs side by side; more than GPUs share them. Default: one on each; 1 on CPUs."),
    ] = None,
) -> None:
    """Run pipelines with every combination of values, common stages once, and compare them. The same command goes on."""
    with edge.clean():
        from langext.errors import ConfigError
        from langext.pipeline import sweep as sweeping
        from langext.report import compare_page as page
        from langext.report import comparison

        paths = [edge.pipeline_file(name) for name in files]
        root = (out or Path("runs") / f"{sweeping.name_of(paths[0], overrides or [], over or [])}-sweep").resolve()
        points = sweeping.points(paths, over or [], overrides or [], root)
        failed = sweeping.run(points, jobs)
        if len(failed) < len(points):
            found = comparison.gather([root])
            try:
                page.show(found, page.build(found, root))
            except ConfigError:
                sweeping.report(failed)  # failed runs explain better why there is nothing to compare
                raise
        sweeping.report(failed)


app.command()(tasks)
app.command()(formats)


@app.command()
def fetch(
    what: Annotated[str, typer.Argument(help="quickstart, the name of one asset, or a program for `export --verify`.")],
) -> None:
    """Bring small models and texts to this machine, verified; afterwards no network is needed.

    Of a program that exports are compared in (vllm), an environment is made with pip.
    """
    with edge.clean():
        from langext.data import assets
        from langext.exports import runners

        if what in runners.RUNNERS:
            typer.echo(f"{runners.make(what, runners.environments())}: {what}")
            return
        for name in assets.names(what, runners.RUNNERS):
            assets.fetch(name)


@app.command()
def doctor(
    fields: Annotated[bool, typer.Option("--fields", help="Explain every key of a pipeline file instead.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only what is wrong.")] = False,
    cluster: Annotated[Path | None, typer.Option(help="Try the machines of this host file instead.")] = None,
    shared: Annotated[Path, typer.Option(help="With --cluster: the folder in which runs will be written.")] = Path(),
) -> None:
    """Say what this machine has, and what will not work on it, with the cure. Exits with 1 when nothing can run."""
    with edge.clean():
        if cluster:
            from langext.cli import cluster as machines

            raise typer.Exit(machines.check(cluster, shared))
        from langext.cli import doctor

        raise typer.Exit(doctor.fields() if fields else doctor.show(quiet))
