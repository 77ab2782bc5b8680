"""Stage filter: turns raw text into documents in the right language, split into training and held-out text.

The two rules: a document that is held out is never trained on; and what a source is, is written down before it is read.
"""

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from langext import languages
from langext.artifacts import Corpus, Manifest, read_as, read_json, write_json
from langext.console import say, warn
from langext.context import Context
from langext.data import assets, source_files, unread
from langext.data.sources import Source
from langext.errors import ConfigError, RunFailed, one_line, user_path
from langext.spec import LATER
from langext.stages.base import Stage
from langext.summaries import Cut, FilterSummary, FunnelRow, SourceFile, SourceRecord

if TYPE_CHECKING:
    from langext.data.language_id import LanguageId
    from langext.data.verdict import Rule

RECORD, LID_RECORD, CUT = "read.json", "lid_model.json", "cut.json"
"""Files, among the logs, of what a source and the language-identification model were before they were read, and of the cut that
was found in the source."""


class Filter(Stage):
    """Identify the language of every document with fastText, keep what matches, store the rejects, and hold out a part."""

    spreads: ClassVar[bool] = True

    uses: Literal["filter"]
    sources: list[Source] = Field(min_length=1)
    """Text of the new language and of every original language, and of what else is to be kept (`protect`) or measured."""
    lid_model: str = "asset:lid.176"
    """fastText model for language identification: a file, asset:lid.176 or asset:glotlid."""
    lid_text: Annotated[Literal["auto", "plain", "words"], LATER] = "auto"
    """What the model is shown: plain, the text in one line (lid.176, GlotLID); words, in lower case without digits and
    punctuation (OpenLID). auto looks at the model's labels."""
    threshold: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    """How sure the model must be of the expected language, its first choice. auto finds that in each source (docs/text.md); a
    number is the smallest probability that is accepted, whatever the language. Raise it for cleaner text, but less of it."""
    min_kept: Annotated[float, Field(ge=0, le=1), LATER] = 0.5
    """The stage stops when less of a source is kept than this share of the text for which the model's first choice is right. 0
    never stops it."""
    level: Literal["document", "paragraph", "line"] = "document"
    """What is checked: whole documents, or each paragraph or line, which removes those in another language from a document."""
    max_bad_frac: Annotated[float, Field(ge=0, le=1), LATER] = 0.001
    """Largest share of a source's entries that cannot be read, as broken lines, before the run stops. 0 stops at the first one,
    1 bears damaged files too. They are in rejects/, as `broken`."""
    heldout_frac: float = Field(0.01, gt=0, lt=1)
    """Share of the documents that is held out for measuring, chosen by a hash of their text. Raise it to train on less."""

    @model_validator(mode="after")
    def _distinct_domains(self) -> "Filter":
        seen = Counter((s.language, s.domain) for s in self.sources)
        twice = [f"{domain} ({language})" for (language, domain), n in seen.items() if n > 1]
        if twice:
            raise ValueError(f"two sources are called {', '.join(twice)}; give them a name each")
        if sum(source.piped for source in self.sources) > 1:
            raise ValueError("standard input (path: -) can be one source only")
        return self

    def check(self, ctx: Context) -> None:
        """Raise ConfigError for files that are missing or damaged, languages without a label, and no text to train on."""
        for source in self.sources:
            source.check_role(ctx.language, ctx.original_languages)
            source.check()
            if source.holds(ctx.out):
                raise ConfigError(f"source {source.domain}: {one_line(source.origin)} holds this run too, and would read it")
        if not any(source.trained and source.language == ctx.language for source in self.sources):
            raise ConfigError(f"sources: none has text of the new language {ctx.language} to train on")
        lid = self._lid()
        self._labels(lid, ctx)
        if not self.lid_model.startswith(assets.PREFIX):  # the bytes of assets are known
            lid.try_out()

    def outdated(self, manifest: Manifest) -> str:
        """The first source file that is new, missing or changed since it was read, or the LID model; else an empty string.

        A source or model that is missing as a whole is no change, because its text, or what it chose, is in this stage.
        """
        read = _by_source(manifest)
        for source in self.sources:
            gone = (ConfigError, RunFailed) if source.away else (ConfigError,)
            with contextlib.suppress(*gone):  # the source does not exist any more, or its store cannot be reached now
                if source.key in read and (reason := source.difference(read[source.key])):
                    return reason
        summary = manifest.summary_as(FilterSummary)
        with contextlib.suppress(ConfigError):
            if summary and (path := self._lid().path).exists() and _is_another(path, summary):
                return f"lid_model {one_line(path)} has changed since text was filtered with it"
        return ""

    def same_sources(self, manifest: Manifest) -> bool:
        """True when no source file is new, missing or changed, hub datasets are at the same commit, and so is the LID model."""
        summary = manifest.summary_as(FilterSummary)
        if summary is None:
            return False
        read, commits = _by_source(manifest), {row.source: row.commit for row in summary.funnel}
        try:
            if self.outdated(manifest) or not self._lid().path.exists():
                return False
            for source in self.sources:
                found = source.found()
                if found is None and (commits.get(source.key) is None or commits[source.key] != source.commit()):
                    return False
                if found is not None and set(found.files) != {file.name for file in read.get(source.key, [])}:
                    return False
        except (ConfigError, RunFailed):  # it is not there or cannot be read, or the hub does not answer
            return False
        return True

    def _lid(self) -> "LanguageId":
        from langext.data.language_id import LanguageId

        named = self.lid_model.startswith(assets.PREFIX)
        path = assets.resolve(self.lid_model) if named else user_path(self.lid_model, "lid_model")
        return LanguageId(path, self.lid_text)

    def _labels(self, lid: "LanguageId", ctx: Context) -> dict[str, str]:
        """The label of every language. Raises ConfigError when the model has none for one of them, or one for two."""
        from langext.data import rules

        return rules.labels_of([*ctx.languages, *(source.language for source in self.sources)], lid.labels())

    def run(self, ctx: Context) -> Corpus:
        """Write documents/<split>/<language>/<domain>.NNNNN.jsonl.gz and rejects/<language>/<domain>.NNNNN.jsonl.gz.

        Raises RunFailed when a source or the model changes or vanishes before the stage is finished, and for what only reading
        shows: sources that are finished are kept. Raises ConfigError when all of them together lack text.
        """
        funnel, files = [], []
        with _going_on():
            lid = self._lid()
            labels = self._labels(lid, ctx)
            model = self._begin_model(ctx, lid.path)
            sources = [source.at_hand(ctx.out) for source in self.sources]
            for source in sources:  # what was begun with before an interruption, all of it before anything goes on
                if (path := _log(ctx, source) / RECORD).exists():
                    self._unchanged(source.difference(read_as(path, SourceRecord).files))
            for source in sources:
                record = self._begin(ctx, source)
                funnel.append(self._filter(ctx, source, record, lid, labels))
                files += record.files
        for code in dict.fromkeys([*ctx.languages, *(source.language for source in self.sources)]):
            needed = any(source.language == code and (source.trained or source.protect) for source in self.sources)
            _demand(code, [row for row in funnel if row.language == code], needed)
        if source_files.changed(lid.path, model):
            self._unchanged(f"lid_model {one_line(lid.path)} has changed since it was first used")
        ctx.report(FilterSummary(funnel=funnel, source_files=files, lid_sha256=model.sha256, lid_model=model))
        return Corpus(ctx.out)

    def _unchanged(self, reason: str) -> None:
        if reason:
            raise RunFailed(
                f"{reason}, and a part of this stage is made of what it was. Put it back, or do all of it again with "
                f"--redo {self.name or self.uses}"
            )

    def _begin_model(self, ctx: Context, path: Path) -> SourceFile:
        """What the language-identification model was when this stage began with it."""
        record = ctx.out / "log" / LID_RECORD
        if not record.exists():
            record.parent.mkdir(parents=True, exist_ok=True)
            write_json(record, source_files.record("", path.name, path))
        model = read_as(record, SourceFile)
        if source_files.changed(path, model):
            self._unchanged(f"lid_model {one_line(path)} has changed since it was first used")
        return model

    def _begin(self, ctx: Context, source: Source) -> SourceRecord:
        """What a source was when this stage began to read it; it is written down now when this is the beginning."""
        log = _log(ctx, source)
        if not (log / RECORD).exists():
            if (log / "completions").exists():
                self._unchanged(f"another version of langext has begun to read source {source.key}")
            _forget(ctx, source)
            record = source.record()
            log.mkdir(parents=True)
            write_json(log / RECORD, record)
        return read_as(log / RECORD, SourceRecord)

    def _filter(
        self, ctx: Context, source: Source, record: SourceRecord, lid: "LanguageId", labels: dict[str, str]
    ) -> FunnelRow:
        """Read and filter one source. Keeps nothing of it when reading shows a mistake in it, or when it changes meanwhile.

        Text in many languages is kept but for what seems to be of the new language, and text in none whatever it seems to be.
        Raises ConfigError for the first, RunFailed for the second.
        """
        from langext.data import cuts
        from langext.data.executor import execute
        from langext.data.language_filter import LanguageFilter
        from langext.data.language_id import HoldOut
        from langext.data.writers import Writer

        log = _log(ctx, source)
        file_name = f"{source.key}.${{rank}}.jsonl.gz"
        rejects = Writer(ctx.out / "rejects", file_name)
        broken = Writer(ctx.out / "rejects", f"{source.key}.broken.${{rank}}.jsonl.gz")
        unwanted = {labels[ctx.language]} if source.language == languages.MUL else set()
        with _forgetting(ctx, source):
            rule = self._rule(ctx, source, record, lid, labels)
        whole = source.language == languages.ZXX  # blank lines of code are no paragraphs
        judge = LanguageFilter(lid, rule, "document" if whole else self.level, rejects, frozenset(unwanted))
        keep = Writer(ctx.out / "documents", "${split}/" + file_name)
        hold_out = HoldOut(source.heldout(self.heldout_frac))
        steps = [source.reader(record, broken, self.max_bad_frac), judge, hold_out, keep]
        with _forgetting(ctx, source):
            execute(steps, record.tasks, log, self.runtime)
        if reason := source.difference(record.files, count_new=False):
            _forget(ctx, source)
            raise RunFailed(f"{reason}: it changed while it was read. Run the same command again when it is complete")
        row = _count(source, record, log)
        with _forgetting(ctx, source):
            most = self.max_bad_frac if source.max_bad_frac is None else source.max_bad_frac
            files = sorted((ctx.out / "rejects").glob(f"{source.key}.broken.*"))
            unread.check(source.domain, row.dropped.get(unread.BROKEN, 0), row.documents_read, most, files)
            if row.cut and row.right_bytes:
                cuts.demand(row.domain, row.language, row.cut, row.right_kept_bytes / row.right_bytes, self.min_kept)
            _tell(row)
        return row

    def _rule(
        self, ctx: Context, source: Source, record: SourceRecord, lid: "LanguageId", labels: dict[str, str]
    ) -> "Rule | None":
        """What text of a source must be like, by the cut that is found in it; None of text in many languages and in none."""
        from langext.data import cuts, rules

        if source.language not in labels:
            return None
        rule = rules.rule_of(source.language, labels, lid.labels(), ctx.languages)
        asked = cuts.Asked(self.threshold, self.level, self.min_kept)
        cut = cuts.of(source, record, lid, rule, asked, _log(ctx, source) / CUT)
        return cuts.applied(rule, cut)


def _log(ctx: Context, source: Source) -> Path:
    return ctx.out / "log" / source.language / source.domain


@contextlib.contextmanager
def _going_on() -> Iterator[None]:
    """What was right when the run was planned, and is not now, costs nothing that is finished: it is a RunFailed."""
    try:
        yield
    except ConfigError as error:
        advice = "Mend that and run the same command again; sources that are finished are kept"
        raise RunFailed(f"{str(error).rstrip('.')}. {advice}") from None


@contextlib.contextmanager
def _forgetting(ctx: Context, source: Source) -> Iterator[None]:
    """A source in which reading shows a mistake is begun anew when it is mended."""
    try:
        yield
    except ConfigError:
        _forget(ctx, source)
        source.discard(ctx.out)
        raise


def _forget(ctx: Context, source: Source) -> None:
    """Remove all that is made of a source. Its log goes first and at once, because without it nothing counts as made."""
    log = _log(ctx, source)
    aside = log.with_name(f".{log.name}.old")
    if aside.exists():  # of an earlier time, which was killed
        shutil.rmtree(aside)
    if log.exists():
        log.rename(aside)
    for path in list(ctx.out.glob(f"*/**/{source.key}.*.jsonl.gz")):
        path.unlink()
    if aside.exists():
        shutil.rmtree(aside)


def _is_another(path: Path, summary: FilterSummary) -> bool:
    """True when `path` is not the language-identification model of `summary`."""
    if summary.lid_model:
        return source_files.changed(path, summary.lid_model)
    return source_files.record("", path.name, path).sha256 != summary.lid_sha256


def _by_source(manifest: Manifest) -> dict[str, list[SourceFile]]:
    """The files that a finished stage has read, by `<language>/<domain>`."""
    files: dict[str, list[SourceFile]] = {}
    summary = manifest.summary_as(FilterSummary)
    for file in summary.source_files if summary else []:
        files.setdefault(file.source, []).append(file)
    return files


def _count(source: Source, record: SourceRecord, log: Path) -> FunnelRow:
    """The counts of all steps for one source, added up over all tasks."""
    total: Counter[str] = Counter()
    for path in sorted((log / "stats").glob("*.json")):
        for step in read_json(path):
            for key, stat in step["stats"].items():
                total[key] += int(stat["total"] if isinstance(stat, dict) else stat)
    counts = ("judged", "bytes_read", "train_documents", "train_bytes", "valid_documents", "valid_bytes",
              "mended", "composed", "undivided", "right_bytes", "right_kept_bytes")  # fmt: skip
    revision = record.commit or source.revision
    return FunnelRow(
        language=source.language,
        domain=source.domain,
        origin=f"{source.origin} @ {revision}" if revision else source.origin,
        documents_read=(total["documents_read"] or total["judged"]) + total["dropped_broken"],
        dropped={k.removeprefix("dropped_"): n for k, n in total.most_common() if k.startswith("dropped_")},
        unread=record.unread,
        commit=record.commit,
        role=source.role,
        cut=read_as(log / CUT, Cut) if (log / CUT).exists() else None,
        **{name: total[name] for name in counts},
    )


def _tell(row: FunnelRow) -> None:
    """Print what became of a source. Raises ConfigError when nothing of it is left."""
    say(f"  {row.domain} ({row.language}): {row.documents_read} documents read, {row.kept} kept; {row.used}")
    if row.mended:
        say(f"  {row.domain} ({row.language}): broken Unicode in {row.mended} document(s), mended with U+FFFD")
    if row.composed:
        say(f"  {row.domain} ({row.language}): {row.composed} document(s) brought into the Unicode form NFC")
    if not row.kept:
        reasons = ", ".join(f"{n} {reason}" for reason, n in row.dropped.items()) or "the source is empty"
        raise ConfigError(f"source {row.domain}: nothing of {row.language} is left ({reasons})")


def _demand(code: str, rows: Sequence[FunnelRow], needed: bool) -> None:
    """Raise ConfigError when a language has no held-out document, or none to train or calibrate on, if these are `needed`.

    Warn when it has no source at all.
    """
    if not rows:
        warn(f"no source for the original language {code}: nothing replays it and nothing measures it")
        return
    if not any(row.valid_documents for row in rows):
        what, advice = f"no document of {code} fell into the held-out part", "raise heldout_frac or give more text"
    elif needed and not any(row.train_documents for row in rows):
        purpose = "calibrate gates" if any(row.role == "protect" for row in rows) else "train"
        what, advice = f"no document of {code} is left to {purpose} on", "lower heldout_frac or give more text"
    else:
        return
    if whole := [f"{row.undivided} in {one_line(row.origin)}" for row in rows if row.undivided]:
        what += f". A .txt file without a blank line is one single document ({', '.join(whole)})"
        advice = "if every line is a document, give its source txt_documents: lines"
    raise ConfigError(f"{what}; {advice}")
