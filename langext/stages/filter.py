"""Stage filter: turns raw text into documents in the right language, split into training and held-out text.

The one rule: a document that is held out is never trained on.
"""

import contextlib
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from langext import languages
from langext.artifacts import Corpus, Manifest, read_json, sha256_file
from langext.console import say, warn
from langext.context import Context
from langext.data import assets
from langext.spec import ConfigError, Spec
from langext.stages.base import Stage
from langext.summaries import FilterSummary, FunnelRow, SourceFile

if TYPE_CHECKING:
    from langext.data.language_id import LanguageId

MAX_TASKS = 64
"""Most tasks that the files of one source are shared among."""


class Source(Spec):
    """A source of text in one language."""

    language: str
    """Language of the text: the new language or an original one."""
    path: str | None = None
    """A file or folder (.txt, .jsonl, .parquet, also .gz), or asset:<name>."""
    hub: str | None = None
    """A dataset on the Hugging Face hub, in place of `path`; it is streamed."""
    config: str | None = None
    """Configuration of the hub dataset, e.g. fra_Latn."""
    split: str = "train"
    """Split of the hub dataset."""
    revision: str | None = None
    """Commit, tag or branch of the hub dataset."""
    text_column: str = "text"
    """The field that holds the text."""
    name: str = Field("", pattern=r"^[A-Za-z0-9_-]*$")
    """Name of this domain in scores and reports; made from the path or dataset if empty."""
    max_documents: int | None = Field(None, ge=1)
    """Most documents to read; all when not given."""
    heldout_only: bool = False
    """Use this source only for measuring; nothing of it is trained on."""

    @field_validator("language")
    @classmethod
    def _language(cls, value: str) -> str:
        return languages.find(value).code

    @model_validator(mode="after")
    def _one_place(self) -> "Source":
        if (self.path is None) == (self.hub is None):
            raise ValueError("a source needs either path or hub")
        if self.path is not None and (self.config or self.revision):
            raise ValueError("config and revision belong to hub sources, this one has a path")
        return self

    @property
    def domain(self) -> str:
        """`name`, or a name made from the path or dataset, with only letters, digits, `_` and `-`."""
        raw = self.name or (self.hub or Path(self.path or "").name.split(".")[0].removeprefix(assets.PREFIX))
        return "".join(c if c.isalnum() or c in "_-" else "-" for c in raw)

    @property
    def origin(self) -> str:
        """Path or dataset, with configuration and revision, for reports."""
        where = self.path or "/".join(filter(None, [self.hub, self.config]))
        return f"{where} @ {self.revision}" if self.revision else where

    def local(self) -> Path | None:
        """The local path; None for a hub source."""
        if self.path is None:
            return None
        return assets.resolve(self.path) if self.path.startswith(assets.PREFIX) else Path(self.path).expanduser()


class Filter(Stage):
    """Identify the language of every document with fastText, keep what matches, store the rejects, and hold out a part."""

    uses: Literal["filter"]
    sources: list[Source] = Field(min_length=1)
    """Text of the new language and of every original language."""
    lid_model: str = "asset:lid.176"
    """fastText model for language identification: a file, asset:lid.176 or asset:glotlid."""
    threshold: float = Field(0.65, ge=0, le=1)
    """Smallest probability of the expected language that is accepted. Raise it for cleaner text, but less of it."""
    level: Literal["document", "paragraph"] = "document"
    """What is checked: whole documents, or each paragraph, which removes paragraphs in another language from a document."""
    heldout_frac: float = Field(0.01, gt=0, lt=1)
    """Share of the documents that is held out for measuring, chosen by a hash of their text. Raise it to train on less."""

    @model_validator(mode="after")
    def _distinct_domains(self) -> "Filter":
        seen = Counter((s.language, s.domain) for s in self.sources)
        twice = [f"{domain} ({language})" for (language, domain), n in seen.items() if n > 1]
        if twice:
            raise ValueError(f"two sources are called {', '.join(twice)}; give them a name each")
        return self

    def check(self, ctx: Context) -> None:
        """Raise ConfigError when a file is missing, a language has no label, or no source trains the new language."""
        from langext.data.readers import find_files

        for source in self.sources:
            if source.language not in ctx.languages:
                raise ConfigError(f"source {source.domain}: {source.language} is not of this run ({', '.join(ctx.languages)})")
            if local := source.local():
                find_files(local)
        trained = {s.language for s in self.sources if not s.heldout_only}
        if ctx.language not in trained:
            raise ConfigError(f"sources: none has text of the new language {ctx.language} to train on")
        self._labels(self._lid(), ctx)

    def outdated(self, manifest: Manifest) -> str:
        """The first source file that is new, missing or changed since it was read, in words; else an empty string.

        A source that is missing as a whole is no change, because its text is in this stage.
        """
        here = self._files()
        for source, read in _by_source(manifest).items():
            now = here.get(source, {})
            for name, path in now.items():
                if name not in read:
                    return f"source file {path} is new since its folder was filtered"
                if _changed(path, read[name]):
                    return f"source file {path} has changed since it was filtered"
            if now and (gone := next((name for name in read if name not in now), None)):
                return f"source file {read[gone].path} was filtered and is gone"
        return ""

    def same_sources(self, manifest: Manifest) -> bool:
        """True when no source file is new, missing or changed, and the language-identification model is the same."""
        summary = manifest.summary_as(FilterSummary)
        if summary is None or summary.lid_sha256 != sha256_file(self._lid().path) or self.outdated(manifest):
            return False
        here, read = self._files(), _by_source(manifest)
        return {source: set(files) for source, files in here.items()} == {source: set(files) for source, files in read.items()}

    def _lid(self) -> "LanguageId":
        from langext.data.language_id import LanguageId

        path = assets.resolve(self.lid_model) if self.lid_model.startswith(assets.PREFIX) else Path(self.lid_model)
        if not path.is_file():
            raise ConfigError(f"lid_model: {path}: no such file")
        return LanguageId(path)

    def _labels(self, lid: "LanguageId", ctx: Context) -> dict[str, str]:
        return {code: languages.label_of(languages.find(code), lid.labels()) for code in ctx.languages}

    def run(self, ctx: Context) -> Corpus:
        """Write documents/<split>/<language>/<domain>.NNNNN.jsonl.gz and rejects/<language>/<domain>.NNNNN.jsonl.gz."""
        lid = self._lid()
        labels = self._labels(lid, ctx)
        funnel: list[FunnelRow] = []
        for source in self.sources:
            row = self._filter(ctx, source, lid, labels)
            funnel.append(row)
            say(
                f"  {row.domain} ({row.language}): {row.documents_read} documents read, {row.kept} kept, "
                f"{row.train_bytes / 1e6:.2f} MB to train on, {row.valid_bytes / 1e6:.2f} MB held out"
            )
            if not row.kept:
                reasons = ", ".join(f"{n} {reason}" for reason, n in row.dropped.items()) or "the source is empty"
                raise ConfigError(f"source {row.domain}: nothing of {row.language} is left ({reasons})")
        for code in ctx.languages:
            _demand(code, [row for row in funnel if row.language == code])
        ctx.report(FilterSummary(funnel=funnel, source_files=self._read_files(), lid_sha256=sha256_file(lid.path)))
        return Corpus(ctx.out)

    def _filter(self, ctx: Context, source: Source, lid: "LanguageId", labels: dict[str, str]) -> FunnelRow:
        from datatrove.pipeline.writers.jsonl import JsonlWriter

        from langext.data.language_id import HoldOut, JoinParagraphs, LanguageFilter, SplitParagraphs

        log = ctx.out / "log" / source.language / source.domain
        log.mkdir(parents=True, exist_ok=True)
        reader, tasks = self._reader(source, log)
        file_name = f"{source.language}/{source.domain}.${{rank}}.jsonl.gz"
        rejects = JsonlWriter(str(ctx.out / "rejects"), file_name)
        judge = LanguageFilter(lid, labels[source.language], self.threshold, rejects)
        keep = JsonlWriter(str(ctx.out / "documents"), "${split}/" + file_name)
        hold_out = HoldOut(1.0 if source.heldout_only else self.heldout_frac)
        filters = [SplitParagraphs(), judge, JoinParagraphs()] if self.level == "paragraph" else [judge]
        _execute([reader, *filters, hold_out, keep], tasks, self.runtime.workers, log)
        return _count(source, log)

    def _reader(self, source: Source, log: Path) -> tuple[Any, int]:
        """A reader, and the number of tasks that share its files. The number never depends on `runtime`, so results do not."""
        from langext.data import readers

        limit = source.max_documents or -1
        local = source.local()
        if local is None:
            options = {"name": source.config, "split": source.split, "revision": source.revision}
            reader = readers.HubReader(source.text_column, source.hub, options, streaming=True, limit=limit)
            return reader, 1 if source.max_documents else MAX_TASKS
        files = readers.find_files(local)
        folder = local.parent if local.is_file() else local
        listing = log / "files.txt"
        listing.write_text("".join(f"{f.relative_to(folder)}\n" for f in files), encoding="utf-8")
        tasks = 1 if source.max_documents else min(len(files), MAX_TASKS)
        kinds = {f.suffix == ".parquet" for f in files}
        if len(kinds) > 1:
            raise ConfigError(f"{local}: holds both Parquet and text files; name them in two sources")
        if kinds == {True}:
            return readers.TableReader(source.text_column, str(folder), str(listing), limit), tasks
        total = sum(f.stat().st_size for f in files) // tasks
        return readers.TextReader(source.text_column, folder, listing, limit, source.domain, total), tasks

    def _read_files(self) -> list[SourceFile]:
        return [
            SourceFile(
                source=source, name=name, path=str(path), bytes=path.stat().st_size, modified_ns=path.stat().st_mtime_ns,
                sha256=sha256_file(path),
            )
            for source, files in self._files().items() for name, path in files.items()
        ]  # fmt: skip

    def _files(self) -> dict[str, dict[str, Path]]:
        """The local files of the sources now, by `<language>/<domain>` and file name; without sources that are missing."""
        from langext.data.readers import find_files

        by_source: dict[str, dict[str, Path]] = {}
        for source in self.sources:
            with contextlib.suppress(ConfigError):  # the source does not exist any more
                if local := source.local():
                    folder = local.parent if local.is_file() else local
                    files = {str(path.relative_to(folder)): path.resolve() for path in find_files(local)}
                    by_source[f"{source.language}/{source.domain}"] = files
        return by_source


def _by_source(manifest: Manifest) -> dict[str, dict[str, SourceFile]]:
    """The files that a finished stage has read, by `<language>/<domain>` and file name."""
    files: dict[str, dict[str, SourceFile]] = {}
    summary = manifest.summary_as(FilterSummary)
    for file in summary.source_files if summary else []:
        files.setdefault(file.source, {})[file.name] = file
    return files


def _changed(path: Path, then: SourceFile) -> bool:
    """True when the file differs from `then`. Its bytes are hashed only if the size is equal and the time is not."""
    now = path.stat()
    if now.st_size != then.bytes:
        return True
    return now.st_mtime_ns != then.modified_ns and sha256_file(path) != then.sha256


def _execute(steps: list[Any], tasks: int, workers: int, log: Path) -> None:
    """Run datatrove steps on this machine. Tasks that finished before an interruption are not repeated."""
    from datatrove.executor import LocalPipelineExecutor

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # the task logs have all of it
        LocalPipelineExecutor(steps, tasks=tasks, workers=min(workers, tasks), logging_dir=str(log)).run()


def _count(source: Source, log: Path) -> FunnelRow:
    """The counts of all steps for one source, added up over all tasks."""
    total: Counter[str] = Counter()
    for path in sorted((log / "stats").glob("*.json")):
        for step in read_json(path):
            for key, stat in step["stats"].items():
                total[key] += int(stat["total"] if isinstance(stat, dict) else stat)
    return FunnelRow(
        language=source.language,
        domain=source.domain,
        origin=source.origin,
        documents_read=total["documents_read"] or total["judged"],
        judged=total["judged"],
        bytes_read=total["bytes_read"],
        dropped={k.removeprefix("dropped_"): n for k, n in total.most_common() if k.startswith("dropped_")},
        train_documents=total["train_documents"],
        train_bytes=total["train_bytes"],
        valid_documents=total["valid_documents"],
        valid_bytes=total["valid_bytes"],
    )


def _demand(code: str, rows: list[FunnelRow]) -> None:
    """Raise ConfigError when a language has no held-out document; warn when it has no source at all."""
    if rows and not any(row.valid_documents for row in rows):
        raise ConfigError(f"no document of {code} fell into the held-out part; raise heldout_frac or give more text")
    if not rows:
        warn(f"no source for the original language {code}: nothing replays it and nothing measures it")
