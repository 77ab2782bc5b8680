"""What a finished stage filter was made of, and whether that is still what it was.

The one rule: what is missing as a whole is no change, because its text, or what it chose, is in the stage.
"""

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from langext.artifacts import Manifest, sha256_file
from langext.data import published, source_files
from langext.errors import ConfigError, RunFailed, one_line
from langext.text_summaries import FilterSummary, SourceFile

if TYPE_CHECKING:
    from langext.data.language_id import LanguageId
    from langext.data.sources import Source


@dataclass(frozen=True)
class Asked:
    """The settings of the stage that name files."""

    sources: "Sequence[Source]"
    duplicates: str
    contamination: Sequence[Path]
    quality_values: Path | None
    judged: Collection[str]
    """Languages with text that is judged by values of quality rules."""
    lid: "Callable[[], LanguageId]"
    """Raises ConfigError when the model is not there."""


def outdated(asked: Asked, manifest: Manifest) -> str:
    """The first file that is new, missing or changed since it was read, in one line; an empty string when there is none."""
    read = _by_source(manifest)
    for source in asked.sources:
        gone = (ConfigError, RunFailed) if source.away else (ConfigError,)
        with contextlib.suppress(*gone):  # the source does not exist any more, or its store cannot be reached now
            if source.key in read and (reason := source.difference(read[source.key])):
                return reason
    summary = manifest.summary_as(FilterSummary)
    if summary is None or (summary.duplicates is None and asked.duplicates != "off"):
        return "an earlier version of langext filtered the text, and kept duplicates"
    for path in asked.contamination:
        if path.is_file() and summary.compared_files.get(str(path)) != sha256_file(path):
            return f"contamination: {one_line(path)} has changed since text was compared with it"
    with contextlib.suppress(ConfigError):
        for code, known in summary.qualities.items():
            wanted = asked.quality_values if code in asked.judged else None
            if wanted and known.published != published.of(wanted, code):
                return f"quality_values: those of {code} have changed since they were applied"
    with contextlib.suppress(ConfigError):
        if (path := asked.lid().path).exists() and _is_another(path, summary):
            return f"lid_model {one_line(path)} has changed since text was filtered with it"
    return ""


def same(asked: Asked, manifest: Manifest, measured: Callable[[], Collection[str]]) -> bool:
    """True when nothing is outdated, no source has other files or another commit, text was compared with `measured()`."""
    summary = manifest.summary_as(FilterSummary)
    if summary is None or not set(summary.tasks).issuperset(measured()):
        return False
    read, commits = _by_source(manifest), {row.source: row.commit for row in summary.funnel}
    try:
        if outdated(asked, manifest) or not asked.lid().path.exists():
            return False
        for source in asked.sources:
            found = source.found()
            if found is None and (commits.get(source.key) is None or commits[source.key] != source.commit()):
                return False
            if found is not None and not source.same_names(found, read.get(source.key, [])):
                return False
    except (ConfigError, RunFailed):  # it is not there or cannot be read, or the hub does not answer
        return False
    return True


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
