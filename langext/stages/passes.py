"""The passes of stage filter over text that was read and is in the right language: quality, duplicates, benchmarks, the split.

The one rule: every pass is tasks with completion markers, one for each part of a source, so an interrupted one goes on.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from langext import languages
from langext.artifacts import read_as, sha256_file, write_json
from langext.console import say, warn
from langext.context import Context, Runtime
from langext.data.filters import AnyFilter
from langext.data.sources import Source
from langext.errors import ConfigError, RunFailed
from langext.spec import Benchmarks, Spec
from langext.stages import funnel
from langext.text_summaries import BenchmarkRecord, LanguageRecord, SourceRecord

if TYPE_CHECKING:
    from langext.data.word_units import WordUnits
    from langext.data.writers import Writer

WORK, DONE = "work", "passes.json"
"""The working folder, and the record among the logs that all passes are finished."""
Duplicates = Literal["near", "exact", "off"]


class PassesRecord(Spec):
    """What the passes found."""

    qualities: dict[str, LanguageRecord]
    benchmarks: list[BenchmarkRecord]
    files: dict[str, str]
    """Path -> sha256 of files that text was compared with."""


class Compared(Spec):
    """What text is compared with, written down before."""

    given: list[Benchmarks]
    files: dict[str, str]
    """Path -> sha256 of files of the user's own."""
    words: dict[str, str]
    """Language -> how its words are found, which depends on what is installed."""
    forms: dict[str, int] = {}
    """What the passes leave for later ones -> the number of its form. Records of earlier versions have none."""
    records: list[BenchmarkRecord]


@dataclass(frozen=True)
class Part:
    """A source, with what it was when it was read."""

    source: Source
    record: SourceRecord
    filters: tuple[AnyFilter, ...]
    """What its text must pass."""


@dataclass(frozen=True)
class Passes:
    """All passes of one run of the stage."""

    ctx: Context
    parts: Sequence[Part]
    duplicates: Duplicates
    files: Sequence[Path]
    """Files of texts that must not be trained on."""
    words: int
    """Length of the runs of words that text is compared with benchmarks by."""
    heldout_frac: float
    runtime: Runtime
    quality_values: Path | None = None
    """Folder of FineWeb-2's values."""

    def run(self) -> PassesRecord:
        """Run all that are not finished. Raises ConfigError or RunFailed for what only reading shows."""
        done = self.ctx.out / "log" / DONE
        if not done.exists():
            compared = self._compared()
            qualities = {}
            for code in dict.fromkeys(part.source.language for part in self.parts):
                found = self._language(code, [record.task for record in compared.records if not record.unread])
                qualities |= {code: found} if found else {}
            write_json(done, PassesRecord(qualities=qualities, benchmarks=compared.records, files=compared.files))
        if (self.ctx.out / WORK).exists():
            shutil.rmtree(self.ctx.out / WORK)
        return read_as(done, PassesRecord)

    def _language(self, code: str, tasks: list[str]) -> LanguageRecord | None:
        """All passes over the sources of one language."""
        from langext.data.word_units import WordUnits

        units = WordUnits(code)
        parts = [part for part in self.parts if part.source.language == code]
        quality = self._judge(code, parts, units)
        # Of texts that are alike the first is kept, and what is only measured is not to change with what is trained on.
        parts.sort(key=lambda part: part.source.trained or part.source.protect)
        drops = self._find_duplicates(code, parts, units) if self.duplicates != "off" else None
        first = 0
        for part in parts:
            self._compare(part, units, tasks, drops, first)
            first += part.record.tasks
        self._split(code, parts)
        return quality

    def _judge(self, code: str, parts: Sequence[Part], units: "WordUnits") -> LanguageRecord | None:
        """Apply the filters of the sources that have some."""
        from langext.data import published, working
        from langext.data.filters.web import Web
        from langext.data.quality import Reference

        judged = [part for part in parts if part.filters]
        if not judged:
            return None
        web = [part for part in judged if any(isinstance(rule, Web) for rule in part.filters)]
        ask = [part for part in parts if part not in web] or parts
        file = self._work / "quality" / f"{code}.json"
        values = published.of(self.quality_values, code) if web and self.quality_values else None
        reference = Reference({part.source.key: self._files("text", part) for part in ask}, units, file, values)
        self._execute([reference], 1, self._work / "log" / code / "reference")
        found = read_as(file, LanguageRecord)
        for part in judged:
            rejects = [self._rejects(part.source, f"quality-{number}") for number in range(len(part.filters))]
            steps = [rule.step(units, found, place) for rule, place in zip(part.filters, rejects, strict=True)]
            last = [working.Tally("quality"), working.Save(self._folder("judged", part))]
            log = log_of(self.ctx, part.source) / "quality"
            read = working.Read(self._files("text", part), f"{part.source.key}: quality")
            self._execute([read, *steps, *last], part.record.tasks, log)
        return found

    def _find_duplicates(self, code: str, parts: Sequence[Part], units: "WordUnits") -> Path:
        """Folder of what is to be dropped of every part, the parts of all sources one after the other."""
        from langext.data import duplicates

        work, log = self._work / "duplicates" / code, self._work / "log" / code
        prints, signatures, pairs, found, drops = (work / name for name in ("prints", "signatures", "pairs", "found", "drops"))
        near = self.duplicates == "near" and code != languages.ZXX  # of code, what is alike in words may well be meant
        which = self._divided_tasks(parts)
        count, divided = len(which), [number for number, is_divided in enumerate(which) if is_divided and near]
        see = [duplicates.Prints(prints), *([duplicates.Signatures(signatures, units)] if near else [])]
        texts = self._texts(parts, f"{code}: looking for duplicates", divided)
        self._execute([*texts, *see], count + len(divided), log / "see")
        if near:
            tasks = min(self.runtime.workers, duplicates.MINHASH.num_buckets)
            self._execute([duplicates.Pairs(signatures, pairs)], tasks, log / f"pairs-{tasks}")
        wholes = {part: count + number for number, part in enumerate(divided)}
        choose = duplicates.Choose(prints, found if near else None, count, drops, wholes)
        self._execute([duplicates.clusters(pairs, found), choose] if near else [choose], 1, log / "choose")
        return drops

    def _compare(self, part: Part, units: "WordUnits", tasks: list[str], drops: Path | None, first: int) -> None:
        """Drop duplicates and what benchmarks have of one source, and write down what of it will be held out.

        `first` is the number of its first part among those of its language.
        """
        from langext.data import contamination, duplicates, heldout, split, working

        source = part.source
        steps = self._texts([part], f"{source.key}: comparing")
        if drops:
            steps += [duplicates.Unique(drops, first, self._rejects(source, "duplicates")), working.Tally("duplicates")]
            left = duplicates.left(drops, range(first, first + part.record.tasks))
            if not self._divided(part) and self._few(source, left):
                steps.append(split.Divide([True] * part.record.tasks))
        if tasks and (source.trained or source.protect):
            index, rejects = self._index(units), self._rejects(source, "benchmarks")
            whole = source.language == languages.ZXX
            steps += [contamination.Decontaminate(index, tasks, units, rejects, whole), working.Tally("contamination")]
        marks = heldout.Mark(source.heldout(self.heldout_frac), self._folder("marks", part))
        last = [marks, working.Save(self._folder("compared", part))]
        self._execute([*steps, *last], part.record.tasks, log_of(self.ctx, source) / "compare")

    def _split(self, code: str, parts: Sequence[Part]) -> None:
        """Write the documents of the sources of a language: what is held out of any is not trained on in any."""
        from langext.data import heldout, split, working
        from langext.data.writers import Writer

        fracs, held = list[float](), set[int]()
        for part in parts:
            frac = part.source.heldout(self.heldout_frac)
            chosen, keys = heldout.chosen(self._folder("marks", part), part.record.tasks, frac)
            fracs.append(chosen)
            held |= keys
        file = self._work / "marks" / f"{code}.npy"
        heldout.write(file, held)
        for part, frac in zip(parts, fracs, strict=True):
            source = part.source
            read = working.Read(self._files("compared", part), f"{source.key}: dividing")
            steps = [read, split.HoldOut(frac), split.Unite()]
            steps += [heldout.Apart(file, self._rejects(source, "heldout"), code == languages.ZXX), split.Shares()]
            keep = Writer(self.ctx.out / "documents", f"${{split}}/{source.key}.${{rank}}.jsonl.gz")
            self._execute([*steps, keep], part.record.tasks, log_of(self.ctx, source) / "split")

    def _compared(self) -> Compared:
        """Read the benchmarks and write down what to look for, once. Raises RunFailed when they have changed meanwhile.

        Also when another version has begun, which leaves the later passes something that this one would misread.
        """
        from langext.data import contamination, duplicates, heldout
        from langext.data.word_units import WordUnits

        forms = {"index": contamination.FORM, "marks": heldout.FORM, "prints": duplicates.FORM}
        file = self._work / "benchmarks" / "compared.json"
        hashes = {str(path): sha256_file(path) for path in self.files}
        every = {code: WordUnits(code) for code in dict.fromkeys(part.source.language for part in self.parts)}
        words = {code: units.kind for code, units in every.items()}
        if file.exists():
            compared = read_as(file, Compared)
            if compared.forms != forms:
                raise RunFailed(
                    "an earlier version of langext began to compare text here, and left it in another form; do all of it "
                    "again with --redo filter"
                )
            if (compared.given, compared.files) != (list(self.ctx.benchmarks), hashes):
                raise RunFailed(
                    "the benchmarks that text is compared with have changed since this stage began; put them back, or do all "
                    "of it again with --redo filter"
                )
            if other := next((code for code, kind in words.items() if compared.words.get(code) != kind), None):
                raise RunFailed(
                    f"the words of {other} were found by {compared.words.get(other)} when this stage began, and by "
                    f"{words[other]} now: another package is installed. Put it back, or do all of it again with --redo filter"
                )
            return compared
        items, records = self._items()
        found = [contamination.write_index(folder, items, units, self.words) for folder, units in
                 {self._index(units): units for units in every.values()}.items()]  # fmt: skip
        # Of a task in another language hardly an item seems long enough; its own language finds most.
        short = {task: min(each[task] for each in found) for task in items}
        records = [record.model_copy(update={"short": short.get(record.task, 0)}) for record in records]
        for record in records:
            if record.short > contamination.TOO_MANY_SHORT * record.items:
                warn(
                    f"benchmark {record.task}: {record.short} of {record.items} items are shorter than "
                    f"{contamination.SHORTEST} words, or many are the same, so they are not looked for in text"
                )
        compared = Compared(given=list(self.ctx.benchmarks), files=hashes, words=words, forms=forms, records=records)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, compared)
        return compared

    def _items(self) -> tuple[dict[str, list[tuple[str, ...]]], list[BenchmarkRecord]]:
        """The items of all benchmarks, and a record of each; a task whose data cannot be had is said and recorded."""
        from langext.data import contamination

        items = {str(path): contamination.file_items(path) for path in self.files}
        unread: list[BenchmarkRecord] = []
        for given in self.ctx.benchmarks:
            from langext.evaluation import harness

            for task in given.tasks:
                try:
                    items |= harness.items(task, given.include_path)
                except ConfigError as error:
                    warn(f"text is not compared with the items of {task}: {error}")
                    unread.append(BenchmarkRecord(task=task, items=0, unread=str(error)))
        if items:
            say(f"  comparing text with {sum(map(len, items.values())):,} items of {', '.join(items)}")
        return items, [*(BenchmarkRecord(task=task, items=len(found)) for task, found in items.items()), *unread]

    def _texts(self, parts: Sequence[Part], label: str, again: Sequence[int] = ()) -> list:
        """The steps that give what is compared and held out: documents, or passages where there are few documents.

        Then, as further tasks, the documents of the tasks numbered `again`, whole.
        """
        from langext.data import split, working

        files = [file for part in parts for file in self._files("judged" if part.filters else "text", part)]
        read = working.Read([*files, *(files[number] for number in again)], label)
        return [read, split.Divide([*self._divided_tasks(parts), *(False for _ in again)])]

    def _divided_tasks(self, parts: Sequence[Part]) -> list[bool]:
        """Of every task whether its documents are divided."""
        return [self._divided(part) for part in parts for _ in range(part.record.tasks)]

    def _divided(self, part: Part) -> bool:
        """Whether a source is divided into passages before duplicates are looked for."""
        steps = funnel.steps_of(log_of(self.ctx, part.source))
        return self._few(part.source, [step.documents for step in steps if step.name in ("language", "quality")][-1])

    def _few(self, source: Source, documents: int) -> bool:
        """Whether a source has few documents to hold out of. Code is never divided: a part of a file is no code."""
        from langext.data.split import FEW

        return source.language != languages.ZXX and source.heldout(self.heldout_frac) < 1 and documents < FEW

    def _index(self, units: "WordUnits") -> Path:
        """Folder of what benchmarks have in these units: a run has more of them in one script than in another."""
        return self._work / "benchmarks" / f"{units.kind}-{units.count(self.words)}"

    def _folder(self, kind: str, part: Part) -> Path:
        return folder_of(self.ctx, kind, part.source)

    def _files(self, kind: str, part: Part) -> list[Path]:
        from langext.data import working

        return working.parts(self._folder(kind, part), part.record.tasks)

    def _rejects(self, source: Source, step: str) -> "Writer":
        from langext.data.writers import Writer

        return Writer(self.ctx.out / "rejects", f"{source.key}.{step}.${{rank}}.jsonl.gz")

    def _execute(self, steps: list, tasks: int, log: Path) -> None:
        from langext.data.executor import execute

        execute(steps, tasks, log, self.runtime)

    @property
    def _work(self) -> Path:
        return self.ctx.out / WORK


def log_of(ctx: Context, source: Source) -> Path:
    """Folder of the logs of a source: of reading it, and below, of the passes over it alone."""
    return ctx.out / "log" / source.language / source.domain


def folder_of(ctx: Context, kind: str, source: Source) -> Path:
    """Folder of the working files of a source: its `text` as it was read, what was `judged` good, and so on."""
    return ctx.out / WORK / kind / source.key
