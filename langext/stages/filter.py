"""Stage filter: turns raw text into documents in the right language, split into training and held-out text.

The two rules: what is held out is never trained on; and what a source is, is written down before it is read. What becomes of
text once it is read and in the right language is in `passes`.
"""

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from langext import languages
from langext.artifacts import Corpus, Manifest, read_as, write_json
from langext.context import Context
from langext.data import assets, published, source_files, unread
from langext.data.filters import AnyFilter, Web
from langext.data.sources import Source
from langext.errors import ConfigError, Mistakes, RunFailed, one_line, user_path
from langext.spec import LATER
from langext.stages import funnel, provenance
from langext.stages.base import Stage
from langext.stages.passes import Duplicates, Part, Passes, folder_of, log_of
from langext.text_summaries import FilterSummary, SourceFile, SourceRecord

if TYPE_CHECKING:
    from langext.data.language_id import LanguageId
    from langext.data.verdict import Rule

RECORD, LID_RECORD = "read.json", "lid_model.json"
"""Files, among the logs, of what a source and the language-identification model were before they were read."""


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
    """How sure the model must be of the expected language, its first choice. auto finds that in each source (docs/data.md); a
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
    """Share of the documents that is held out for measuring, chosen by a hash of their text; of a source of fewer than 50
    documents, share of their passages. Raise it to train on less."""
    quality_values: Annotated[Path | None, LATER] = None
    """Folder `configs` of a copy of https://github.com/huggingface/fineweb-2. Where `quality: web` is asked for, the values
    that are published for a language are applied, in place of what is found in its text; where there are none, that is."""
    filters: Annotated[list[AnyFilter], LATER] = []
    """What text of every source must pass, for example `{name: length, min_characters: 200}`."""
    duplicates: Annotated[Duplicates, LATER] = "near"
    """near: of texts of one language that are alike (about three quarters of their runs of five words) keep the first, whatever
    sources they are in, so that no copy of what is trained on is measured on. exact: only of equal texts. off: keep all."""
    contamination: Annotated[list[Path], LATER] = []
    """Files of texts that must not be trained on (.jsonl or .txt, one item a line), besides the items of the tasks that stages
    evaluate name."""
    contamination_words: Annotated[int, LATER] = Field(13, ge=5)
    """Text is dropped when it has so many words in a row of an item. Lower it to find more, and more that is chance."""

    @model_validator(mode="after")
    def _distinct_domains(self) -> "Filter":
        seen = Counter((s.language, s.domain) for s in self.sources)
        twice = [f"{domain} ({language})" for (language, domain), n in seen.items() if n > 1]
        if twice:
            raise ValueError(f"two sources are called {', '.join(twice)}; give them a name each")
        if self.piped > 1:
            raise ValueError("standard input (path: -) can be one source only")
        return self

    @property
    def piped(self) -> int:
        """How many of the sources are standard input."""
        return sum(source.piped for source in self.sources)

    @field_validator("contamination")
    @classmethod
    def _files(cls, value: list[Path]) -> list[Path]:
        return [user_path(path, "contamination") for path in value]

    @field_validator("quality_values")
    @classmethod
    def _folder(cls, value: Path | None) -> Path | None:
        return value and user_path(value, "quality_values")

    def check(self, ctx: Context) -> None:
        """Raise one ConfigError for all files missing or damaged, languages without a label, and no text to train on."""
        from langext.data import contamination, quality  # they import datatrove

        mistakes = Mistakes()
        for number, path in enumerate(self.contamination):
            with mistakes.part("contamination", number):
                contamination.file_items(path)
        for number, source in enumerate(self.sources):
            with mistakes.part("sources", number):
                source.check_role(ctx.language, ctx.original_languages)
                source.check(self.max_bad_frac)
                source.check_apart(ctx.out)
        quality.tell_missing(judged := self._judged())
        with mistakes.part("quality_values"):
            if self.quality_values:
                published.check(self.quality_values, judged)
        if not any(source.trained and source.language == ctx.language for source in self.sources):
            mistakes.add(ConfigError(f"sources: none has text of the new language {ctx.language} to train on", ("sources",)))
        with mistakes.part("lid_model"):
            lid = self._lid()
            self._labels(lid, ctx)
            if not self.lid_model.startswith(assets.PREFIX):  # the bytes of assets are known
                lid.try_out()
        mistakes.end()

    def outdated(self, manifest: Manifest) -> str:
        """The first source file that is new, missing or changed since it was read, or the LID model; else an empty string."""
        return provenance.outdated(self._asked(), manifest)

    def same_sources(self, manifest: Manifest, measured: Callable[[], Collection[str]] = tuple) -> bool:
        """True when no source file is new, missing or changed, hub datasets are at the same commit, and so is the LID model.

        And when the text was compared with every benchmark that this run measures.
        """
        return provenance.same(self._asked(), manifest, measured)

    def _asked(self) -> provenance.Asked:
        values, judged = self.quality_values, self._judged()
        return provenance.Asked(self.sources, self.duplicates, self.contamination, values, judged, self._lid)

    def _judged(self) -> list[str]:
        """The languages with a source that the rules for web pages judge."""
        web = [source for source in self.sources if any(isinstance(rule, Web) for rule in self._filters(source))]
        return [source.language for source in web]

    def _lid(self) -> "LanguageId":
        from langext.data.language_id import LanguageId

        named = self.lid_model.startswith(assets.PREFIX)
        path = assets.resolve(self.lid_model) if named else user_path(self.lid_model, "lid_model")
        return LanguageId(path, self.lid_text)

    def _labels(self, lid: "LanguageId", ctx: Context) -> dict[str, str]:
        """The label of every language. Raises ConfigError when the model has none for one of them, or one for two."""
        from langext.data import rules

        return rules.labels_of(self.identified(ctx.languages), lid.labels())

    def identified(self, run: Sequence[str]) -> list[str]:
        """The languages of the `run` and of sources that text is judged by: all but those of which no source is."""
        every = [*run, *(source.language for source in self.sources)]
        known = {source.language for source in self.sources if source.identify}
        taken = {source.language for source in self.sources} - known
        return [code for code in dict.fromkeys(every) if code not in taken]

    def run(self, ctx: Context) -> Corpus:
        """Write documents/<split>/<language>/<domain>.NNNNN.jsonl.gz and rejects/<language>/<domain>.NNNNN.jsonl.gz.

        Raises RunFailed when a source or the model changes or vanishes before the stage is finished, and for what only reading
        shows: sources that are finished are kept. Raises ConfigError when all of them together lack text.
        """
        from langext.data.executor import prepare

        files = []
        prepare(self.runtime)
        with _going_on():
            lid = self._lid()
            labels = self._labels(lid, ctx)
            model = self._begin_model(ctx, lid.path)
            for source in self.sources:
                if source.hub and source.folder() is None:  # a wrong name is told before hours of reading, not after
                    self._begin(ctx, source)
            sources = [source.at_hand(ctx.out) for source in self.sources]
            for source in sources:  # what was begun with before an interruption, all of it before anything goes on
                if (path := log_of(ctx, source) / RECORD).exists():
                    self._unchanged(source.difference(read_as(path, SourceRecord).files))
            parts = []
            for source in sources:
                record = self._begin(ctx, source)
                self._read(ctx, source, record, lid, labels)
                parts.append(Part(source, record, self._filters(source)))
                files += record.files
            extra, words = self.contamination, self.contamination_words
            values = self.quality_values
            found = Passes(ctx, parts, self.duplicates, extra, words, self.heldout_frac, self.runtime, values).run()
        rows = [funnel.count(part.source, part.record, log_of(ctx, part.source)) for part in parts]
        rows = funnel.with_tokens(rows, ctx.out)
        for row in rows:
            funnel.tell(row)
        for code in dict.fromkeys([*ctx.languages, *(source.language for source in self.sources)]):
            needed = any(source.language == code and (source.trained or source.protect) for source in self.sources)
            funnel.demand(code, [row for row in rows if row.language == code], needed)
        if source_files.changed(lid.path, model):
            self._unchanged(f"lid_model {one_line(lid.path)} has changed since it was first used")
        known = {"lid_sha256": model.sha256, "lid_model": model, "duplicates": self.duplicates, "qualities": found.qualities}
        tasks = [task for given in ctx.benchmarks for task in given.tasks]
        compared = {"benchmarks": found.benchmarks, "tasks": tasks, "compared_files": found.files}
        ctx.report(FilterSummary(funnel=rows, source_files=files, **compared, **known))
        return Corpus(ctx.out)

    def _filters(self, source: Source) -> tuple[AnyFilter, ...]:
        """What text of a source must pass, in this order."""
        web = [Web(name="web")] if source.quality == "web" else []
        single = languages.find(source.language).single
        every = [rule for rule in (*self.filters, *web) if single or not isinstance(rule, Web)]
        return tuple(rule for number, rule in enumerate(every) if rule not in every[:number])

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
        log = log_of(ctx, source)
        if not (log / RECORD).exists():
            if (log / "completions").exists():
                self._unchanged(f"another version of langext has begun to read source {source.key}")
            _forget(ctx, source)
            record = source.record()
            log.mkdir(parents=True)
            write_json(log / RECORD, record)
        return read_as(log / RECORD, SourceRecord)

    def _read(self, ctx: Context, source: Source, record: SourceRecord, lid: "LanguageId", labels: dict[str, str]) -> None:
        """Read one source, and keep what is in the right language in the working folder.

        Text in many languages is kept but for what seems to be of the new language, and text in none whatever it seems to be.
        Keeps nothing of it when reading shows a mistake in it, or when it changes meanwhile. Raises ConfigError for the first,
        RunFailed for the second.
        """
        from langext.data import cuts, rules, working
        from langext.data.executor import execute
        from langext.data.language_filter import LanguageFilter
        from langext.data.writers import Writer

        log = log_of(ctx, source)
        rejects = Writer(ctx.out / "rejects", f"{source.key}.${{rank}}.jsonl.gz")
        broken = Writer(ctx.out / "rejects", f"{source.key}.broken.${{rank}}.jsonl.gz")
        judges_new = source.language == languages.MUL and ctx.language in labels
        unwanted = rules.own(ctx.language, lid.labels()) if judges_new else frozenset()
        with _forgetting(ctx, source):
            rule = self._rule(ctx, source, record, lid, labels)
        code = source.language == languages.ZXX
        # Blank lines of code are no paragraphs.
        judge = LanguageFilter(lid, rule, "document" if code else self.level, rejects, unwanted)
        if len(list((log / "completions").glob("*"))) < record.tasks:  # what is read need not be there any more
            reader, after = source.steps(record, broken, self.max_bad_frac)
            last = [working.Tally("read"), judge, working.Tally("language"), working.Save(folder_of(ctx, "text", source))]
            with _forgetting(ctx, source):
                execute([reader, *after, *last], record.tasks, log, self.runtime)
            if reason := source.difference(record.files, count_new=False):
                _forget(ctx, source)
                raise RunFailed(f"{reason}: it changed while it was read. Run the same command again when it is complete")
        with _forgetting(ctx, source):
            row = funnel.count(source, record, log)
            most = self.max_bad_frac if source.max_bad_frac is None else source.max_bad_frac
            files = sorted((ctx.out / "rejects").glob(f"{source.key}.broken.*"))
            size = sum(file.bytes for file in record.files)  # 0 of a dataset on the hub, of which each file is judged alone
            lost = unread.borne(row.lost_bytes, size, most) if size else 0.0
            broken = row.dropped.get(unread.BROKEN, 0)
            unread.check(source.domain, broken, row.documents_read, most, files, row.lost_files, lost)
            if row.cut and row.right_bytes:
                cuts.demand(row.domain, row.language, row.cut, row.right_kept_bytes / row.right_bytes, self.min_kept)
            funnel.demand_text(row, next(step.documents for step in row.steps if step.name == "language"))

    def _rule(
        self, ctx: Context, source: Source, record: SourceRecord, lid: "LanguageId", labels: dict[str, str]
    ) -> "Rule | None":
        """What text of a source must be like, by the cut that is found in it; None of text that is kept whatever it is."""
        from langext.data import cuts, rules

        if source.language not in labels or not source.identify:
            return None
        rule = rules.rule_of(source.language, labels, lid.labels(), ctx.languages)
        asked = cuts.Asked(self.threshold, self.level, self.min_kept)
        cut = cuts.of(source, record, lid, rule, asked, log_of(ctx, source) / funnel.CUT)
        return cuts.applied(rule, cut)


@contextlib.contextmanager
def _going_on() -> Iterator[None]:
    """What was right when the run was planned, and is not now, costs nothing that is finished: it is a RunFailed."""
    try:
        yield
    except ConfigError as error:
        advice = "Mend that and run the same command again; finished sources are kept, if no setting of this stage changes"
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
    log = log_of(ctx, source)
    aside = log.with_name(f".{log.name}.old")
    if aside.exists():  # of an earlier time, which was killed
        shutil.rmtree(aside)
    if log.exists():
        log.rename(aside)
    for path in list(ctx.out.glob(f"*/**/{source.key}.*.jsonl.gz")):
        path.unlink()
    if (working := folder_of(ctx, "text", source)).exists():
        shutil.rmtree(working)
    if aside.exists():
        shutil.rmtree(aside)
