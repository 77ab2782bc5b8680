"""The sources of text that a pipeline names: what can be read there, and what it was when it was read."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from langext import languages
from langext.console import Progress, warn
from langext.data import assets, formats, heads, piped, remote, source_files, unread
from langext.data.formats import PARQUET, TXT, UTF_8
from langext.data.source_files import EVERY, Found, Place
from langext.data.source_spec import SourceSpec
from langext.errors import ConfigError, one_line, user_path
from langext.text_summaries import SourceFile, SourceRecord

if TYPE_CHECKING:
    from datatrove.pipeline.base import PipelineStep
    from datatrove.pipeline.writers.disk_base import DiskWriter

    from langext.data.readers import Reader

MAX_TASKS = 64
"""Most tasks that the files of one source are shared among."""
REMOTE_HEADS = 8
"""Files of an object store whose beginning is looked at when a run is planned."""


class Source(SourceSpec):
    """A source of text in one language."""

    def at_hand(self, stage: Path) -> "Source":
        """The source as it can be read more than once: of standard input, the copy in the folder `stage`, which is made now.

        Raises ConfigError when nothing comes, or it is not what it should be.
        """
        if not self.piped:
            return self
        path = piped.copy(stage / piped.NAME / self.language, self.domain, self.format)
        source = self.model_copy(update={"path": str(path), "name": self.domain, "format": None})
        with piped.discarding(path):
            source.check()
        return source

    def discard(self, stage: Path) -> None:
        """Remove the copy of standard input in the folder `stage`, in which a mistake has been found."""
        if self.path and Path(self.path).is_relative_to(stage / piped.NAME):
            Path(self.path).unlink(missing_ok=True)

    def folder(self) -> Path | None:
        """The local file or folder; None of a dataset on the hub, of an object store, and of standard input.

        Raises ConfigError when it can be seen that it is missing.
        """
        if self.path is not None:
            if self.piped or self.away:
                return None
            return assets.resolve(self.path) if self.path.startswith(assets.PREFIX) else source_files.base(self.path)
        path = user_path(self.hub or "", "hub")
        if path.is_file():
            raise ConfigError(f"hub: {one_line(path)} is a file; name it with path")
        if not path.exists() and (self.hub or "").startswith((".", "/", "~")):
            raise ConfigError(f"hub dataset {one_line(path)}: no such folder")
        return path if path.exists() else None

    def holds(self, path: Path) -> bool:
        """Whether what lies at `path` would be read as a part of this source."""
        folder, whole = self.folder(), path.resolve()
        if folder is None or not whole.is_relative_to(folder.resolve()):
            return False
        if self.path is None or not source_files.is_pattern(self.path):
            return True
        return "**" in self.path or any(whole.is_relative_to(at.resolve()) for at in source_files.matches(self.path))

    def check_apart(self, stage: Path) -> None:
        """Raise ConfigError when the source would read what is written into the folder `stage`."""
        if self.holds(stage):
            raise ConfigError(f"source {self.domain}: {one_line(self.origin)} holds this run too, and would read it")

    def found(self) -> Found | None:
        """The files; None of a dataset on the hub and of standard input.

        Of a local dataset all files, for its README.md counts too.
        """
        if self.piped:
            return None
        if self.path and not self.path.startswith(assets.PREFIX):
            return source_files.search(self.path)
        folder = self.folder()
        return source_files.find(folder, formats.SUFFIXES if self.path else EVERY) if folder else None

    def check(self, max_bad_frac: float = 1.0) -> None:
        """Raise ConfigError for what shows without reading it all: files that are no text, tables without the column.

        Names what is not read in a warning. Nothing is read of standard input. `max_bad_frac` is the share of entries that may
        be broken if the source has none of its own; with 0 no archive may be damaged.
        """
        found = self.found()
        if found is None:
            if self.hub:
                _check_name(self.hub)
            return
        if found.unread:
            warn(f"source {self.domain}: {one_line(self.origin)}: {found.told()}")
        if self.hub:
            self._check_dataset(self.hub, found)
        else:
            self._check_files(found, max_bad_frac if self.max_bad_frac is None else self.max_bad_frac)

    def _check_dataset(self, dataset: str, found: Found) -> None:
        """Raise ConfigError when a local folder is not the dataset that it should be."""
        from langext.data import hub

        if self.revision:
            raise ConfigError(f"hub dataset {one_line(dataset)}: revision is for datasets on the hub; this is a local folder")
        for place in found.files.values():
            heads.check_pointer(place)
        hub.check(self._dataset, self._options(None))

    def _check_files(self, found: Found, most_bad: float) -> None:
        where, kinds = one_line(self.origin), {formats.kind(place) for place in found.files.values()}
        if PARQUET in kinds and len(kinds) > 1:
            raise ConfigError(f"{where}: holds both Parquet and text files; name them in two sources")
        if self.txt_documents != "blocks" and TXT not in kinds:
            raise ConfigError(f"{where}: txt_documents is for .txt files, and there is none")
        if self.columns != ["text"] and kinds == {TXT}:
            raise ConfigError(f"{where}: text_column is for .jsonl, .csv, .tsv and .parquet files, and there is none")
        if self.encoding and kinds == {PARQUET}:
            raise ConfigError(f"{where}: encoding is for files of text, and there is none")
        places = list(found.files.values())
        if any(isinstance(place, remote.Remote) for place in places):
            places = places[:REMOTE_HEADS]
        alone = len(found.files) == 1
        shown = [heads.check(place, self.columns, self.encoding or UTF_8, alone, self.language) for place in places]
        if damaged := [place for place, head in zip(places, shown, strict=True) if head.closed]:
            self._check_closed(damaged, found, len(damaged) == len(places), most_bad)
        if not any(head.rows for head in shown):
            raise ConfigError(f"{where}: the source is empty, its tables have no rows")
        one = [one_line(place) for place, head in zip(places, shown, strict=True) if head.undivided]
        if one and self.txt_documents == "blocks":
            more = f" and {len(one) - 1} more" if len(one) > 1 else ""
            advice = "if every line is a document, set txt_documents: lines; if the whole file is one, txt_documents: files"
            warn(f"source {self.domain}: {one[0]}{more} has no blank line at its beginning, which divides documents; {advice}")

    def _check_closed(self, damaged: Sequence[Place], found: Found, all_are: bool, most_bad: float) -> None:
        """Name archives of which nothing can be read.

        Raises ConfigError when they are a larger share of the source's bytes than `most_bad`, or all.
        """
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        what = f"{one_line(damaged[0])}{more}: damaged, nothing can be read of it"
        if not most_bad or all_are:
            raise ConfigError(f"{what}; mend or remove it{'' if all_are else ' (max_bad_frac is 0)'}")
        lost, whole = (sum(map(source_files.size, places)) for places in (damaged, found.files.values()))
        if unread.borne(lost, whole, most_bad) > most_bad:
            raise ConfigError(f"{what}{unread.too_large(lost / whole, most_bad)}; mend or remove it")
        warn(f"source {self.domain}: {what}; its {lost / max(1, whole):.2%} of the source's bytes are lost")

    def commit(self) -> str:
        """The commit that the dataset on the hub stands at now. Raises ConfigError or RunFailed when it is not said."""
        from langext.data import hub

        return hub.commit(self.hub or "", self.revision)

    def record(self) -> SourceRecord:
        """What the source is now. Reads every local file once, for its sha256; asks the hub for the commit of its datasets."""
        found = self.found()
        commit = self.commit() if self.hub and found is None else None
        files = found.files if found else {}
        tasks = len(files)
        if self.hub:  # with a limit too: it tells of a configuration or split that is not there
            from langext.data import hub

            tasks = hub.shards(self._dataset, self._options(commit))
        return SourceRecord(
            files=self._records(files),
            unread=found.first(source_files.RECORDED) if found else [],
            commit=commit,
            tasks=1 if self.max_documents else min(tasks, MAX_TASKS),
        )

    def glance(self) -> SourceRecord:
        """What is needed to read the source now, to look at it: no file is read for it."""
        found = self.found()
        files = [source_files.glance(self.key, *file) for file in found.files.items()] if found else []
        commit = self.commit() if self.hub and found is None else None
        return SourceRecord(files=files, unread=[], commit=commit, tasks=1 if self.hub else len(files))

    def _records(self, files: dict[str, Place]) -> list[SourceFile]:
        sizes = [source_files.size(place) for place in files.values()]
        progress = Progress(f"{self.domain}: hashing", max(1, sum(sizes)))
        records, done = [], 0
        for (name, place), size in zip(files.items(), sizes, strict=True):
            progress.at(done, one_line(name))
            records.append(source_files.record(self.key, name, place))
            done += size
        return records

    def difference(self, then: Sequence[SourceFile], *, count_new: bool = True) -> str:
        """The first file that has changed, is gone, or is new (if `count_new`) since `then`, in words; else empty.

        Raises ConfigError when the source is gone as a whole, and RunFailed when a file cannot be read.
        """
        found = self.found()
        if found is None:
            return ""
        for file in then:
            # Not only what would be read today: an earlier version read hidden files, and a file can have become empty.
            place = self._place(file, found)
            if isinstance(place, Path) and not place.exists():
                return f"source file {one_line(file.path)} was filtered and is gone"
            if source_files.changed(place, file):
                return f"source file {one_line(place)} has changed since it was filtered"
        new = _new(found, then) if count_new else None
        return f"source file {one_line(new)} is new since its folder was filtered" if new else ""

    def same_names(self, found: Found, then: Sequence[SourceFile]) -> bool:
        """True when the files are called as they were `then`: none is new, and none is gone."""
        return {file.name for file in then} <= found.files.keys() and _new(found, then) is None

    def reader(self, record: SourceRecord, rejects: "DiskWriter | None" = None, max_bad_frac: float = 0.0) -> "Reader":
        """The step that reads what `record` describes. What is no longer there is found out when it is read.

        What cannot be read goes to `rejects`, up to the share `max_bad_frac` if the source has none of its own.
        """
        most = max_bad_frac if self.max_bad_frac is None else self.max_bad_frac
        if self.hub:
            from langext.data import hub

            options = self._options(record.commit)
            if not (files := hub.json_lines(self._dataset, options)):
                if self.encoding:
                    raise ConfigError(
                        f"hub dataset {one_line(self._dataset)}: encoding is for JSON Lines, and it is something else"
                    )
                return hub.HubReader(self._dataset, options, self.columns, self.max_documents, rejects, most)
            sizes = {name: source_files.size(place) for name, place in files.items()}
        else:
            files = {file.name: self._place(file, None) for file in record.files}
            sizes = {file.name: file.bytes for file in record.files}
        from langext.data import readers

        if all(formats.kind(place) == PARQUET for place in files.values()):
            return readers.TableReader(files, self.columns, self.max_documents, rejects, most)
        return readers.TextReader(
            files, self.columns, self.max_documents, rejects, most, division=self.txt_documents,
            encoding=self.encoding or UTF_8, language=self.language, label=self.domain, sizes=sizes,
        )  # fmt: skip

    def steps(
        self, record: SourceRecord, rejects: "DiskWriter | None" = None, max_bad_frac: float = 0.0
    ) -> "tuple[Reader, list[PipelineStep]]":
        """The reader, and the steps after it that make its documents what the language filter sees.

        Whoever looks at a source takes both, so that what is seen is what is judged.
        """
        from langext.data.repair import Repair

        reader, code = self.reader(record, rejects, max_bad_frac), self.language == languages.ZXX
        reader.composes = not code
        return reader, [] if code else [Repair()]  # odd letters in code are meant

    def _place(self, file: SourceFile, found: Found | None) -> Place:
        """Where a file that was recorded is now."""
        if found and file.name in found.files:
            return found.files[file.name]
        folder = self.folder()
        if folder is None:
            return remote.Remote(file.path)
        return folder if folder.name == file.name and not folder.is_dir() else folder / file.name

    @property
    def _dataset(self) -> str:
        return str(self.folder() or self.hub)

    def _options(self, commit: str | None) -> dict[str, str | None]:
        return {"name": self.config, "split": self.split, "revision": commit}


def _new(found: Found, then: Sequence[SourceFile]) -> Place | None:
    """The first file that was not there `then`.

    None that is damaged so that nothing can be read of it: it adds no text, and an earlier version did not record it.
    """
    before = {file.name for file in then}
    return next((place for name, place in found.files.items() if name not in before and heads.opens(place)), None)


def _check_name(dataset: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(dataset)
    except HFValidationError as error:
        raise ConfigError(f"hub: {one_line(error)}") from None
