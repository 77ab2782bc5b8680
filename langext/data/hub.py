"""Read datasets on the Hugging Face hub, and local folders in the form of one.

The one rule: the commit that a dataset stands at when it is begun is the commit that is read, and it is recorded.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DatasetsError, FileNotFoundDatasetsError
from datatrove.data import Document
from datatrove.pipeline.readers.huggingface import HuggingFaceDatasetReader
from datatrove.pipeline.writers.disk_base import DiskWriter
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of its HTTP library, whose name is not the same in all versions
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from yaml import YAMLError

from langext.data import formats, remote
from langext.data.readers import Reader
from langext.data.source_files import Place
from langext.errors import ConfigError, RunFailed, one_line
from langext.spec import near

KNOWN = (DatasetsError, HfHubHTTPError, HTTPError, OSError, TypeError, ValueError, RuntimeError, YAMLError)
"""What the libraries raise for a dataset that is not there or cannot be read; TypeError where its files have unlike columns."""
WRONG = (
    EmptyDatasetError, FileNotFoundDatasetsError, GatedRepoError, HFValidationError, RepositoryNotFoundError,
    RevisionNotFoundError,
)  # fmt: skip
"""Those that trying again does not mend, but the user can."""
LONGEST = 400
"""Letters of a library's message that are shown."""

LISTED = 10
"""Most configurations that a message names."""
NAMED = 3
"""Most files that a message names."""

datasets.logging.set_verbosity(logging.CRITICAL)  # it logs each error besides raising it


class HubReader(Reader, HuggingFaceDatasetReader):
    """datatrove's reader of datasets on the Hugging Face hub, with the checks of all readers."""

    name = "hub"

    def __init__(
        self,
        dataset: str,
        options: dict[str, Any],
        columns: Sequence[str],
        limit: int | None,
        rejects: DiskWriter | None = None,
        most_bad: float = 0.0,
    ):
        super().__init__(dataset, options, streaming=True, limit=limit or -1)
        self.account(columns, rejects, most_bad)
        self.row = 0

    def get_document_from_dict(self, data: dict[str, Any], source_file: str, id_in_file: int | str) -> Document | None:
        """One row as a document; None when it cannot be read. Rows are counted here, because datatrove counts documents."""
        row = f"{str(id_in_file).rpartition('/')[0]}/{self.row}"
        self.row += 1
        return self.accept(data, f"hub dataset {one_line(source_file)}: row {row}", f"{source_file}/{row}")

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield this task's share of the dataset. Raises ConfigError or RunFailed when the hub does not give it."""
        self.row = 0
        self.unread.begin(rank)
        try:
            with self.unread.writing():
                yield from HuggingFaceDatasetReader.run(self, data, rank, world_size)
            self.unread.end()
        except (ConfigError, RunFailed):  # they say all already
            raise
        except KNOWN as error:
            mine = [path.rpartition("/")[2] for path in self._files()[rank::world_size]]
            names = f" ({', '.join(mine[:NAMED])}{', ...' if len(mine) > NAMED else ''})" if mine else ""
            raise problem(error, self.dataset, f"part {rank + 1} of {world_size}{names}, after {self.row} rows: ") from None

    def _files(self) -> list[str]:
        try:
            return list(map(one_line, _builder_files(self.dataset, self.dataset_options)[1]))
        except KNOWN:  # there is an error already, which says more
            return []


def commit(dataset: str, revision: str | None) -> str:
    """The commit that a dataset of the hub stands at now. Raises ConfigError or RunFailed when the hub does not say it."""
    from huggingface_hub import HfApi

    try:
        sha = HfApi().dataset_info(dataset, revision=revision).sha
    except KNOWN as error:
        raise problem(error, dataset) from None
    if sha is None:
        raise RunFailed(f"hub dataset {one_line(dataset)}: the hub does not say its commit; run the same command again")
    return sha


def check(dataset: str, options: dict[str, Any]) -> None:
    """Raise ConfigError when a local dataset lacks the configuration or the split, or when one must be named. Reads no rows."""
    try:
        splits = datasets.get_dataset_split_names(dataset, options["name"])
    except KNOWN as error:
        raise problem(error, dataset) from None
    if options["split"] not in splits:
        raise ConfigError(f"hub dataset {one_line(dataset)} has no split {options['split']!r}; it has: {', '.join(splits)}")


def shards(dataset: str, options: dict[str, Any]) -> int:
    """Number of files, or groups of files, that a dataset can be read in side by side."""
    try:
        return max(1, datasets.load_dataset(dataset, **options, streaming=True).num_shards)
    except KNOWN as error:
        raise problem(error, dataset) from None


def json_lines(dataset: str, options: dict[str, Any]) -> dict[str, Place]:
    """The files of a split, by name, when all of them are JSON Lines, which are read as those of all other sources; else {}.

    The library would make text of numbers, and stop at a broken line. Raises ConfigError or RunFailed when the hub fails.
    """
    try:
        builder, paths = _builder_files(dataset, options)
    except KNOWN as error:
        raise problem(error, dataset) from None
    places: dict[str, Place] = {path: remote.Remote(path) if remote.is_remote(path) else Path(path) for path in paths}
    plain = type(builder).__module__.startswith("datasets.packaged_modules.json") and builder.config.field is None
    if not paths or not plain or any(formats.kind(place) != formats.JSONL for place in places.values()):
        return {}
    below = {path: path.rpartition("://")[2] for path in paths}
    base = os.path.commonpath([os.path.dirname(path) for path in below.values()])
    return {os.path.relpath(below[path], base): place for path, place in places.items()}


def _builder_files(dataset: str, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """What reads a dataset in the library, and the files of the split in the order in which tasks take them."""
    builder = datasets.load_dataset_builder(dataset, options["name"], revision=options["revision"])
    return builder, list(map(str, (builder.config.data_files or {}).get(options["split"], [])))


def _some(reason: str) -> str:
    """A message about configurations with the first of them alone, where it lists more than `LISTED`."""
    before, bracket, rest = reason.partition("[")
    names, closed, _ = rest.partition("]")
    listed = names.split(", ")
    if not closed or len(listed) <= LISTED:
        return reason
    asked = re.search(r"BuilderConfig '([^']*)' not found", before)
    close = near(asked[1], [name.strip("'") for name in listed]) if asked else ""
    return f"{before}{bracket}{', '.join(listed[:LISTED])} and {len(listed) - LISTED} more].{close}"


def problem(error: Exception, dataset: str, at: str = "") -> ConfigError | RunFailed:
    """The error of a library about a dataset, in one line; what a second try may mend is a RunFailed.

    `at` says where in the dataset it happened.
    """
    # The list of what there is stands in later lines of the message, and an example of code after it.
    words = [str(error), *([f"({error.__cause__})"] if isinstance(error.__cause__, KNOWN) else [])]
    reason = " ".join(" ".join(words).split()).split(" Example of usage")[0] or type(error).__name__
    if "onfig name is missing" in reason or "BuilderConfig" in reason:
        said = _some(reason).rstrip(".")
        reason = f"{said}{'' if said.endswith('?') else '.'} Name one with the key config"
    reason = reason if len(reason) <= LONGEST else f"{reason[:LONGEST]}..."
    said = f"hub dataset {one_line(dataset)}: {at}{reason.rstrip('.')}"
    lost = isinstance(error, HfHubHTTPError | HTTPError | OfflineModeIsEnabled | OSError)
    missing = isinstance(error, FileNotFoundError) and Path(dataset).exists()  # a local folder that lacks a file
    if isinstance(error, WRONG) or missing or not lost:
        return ConfigError(said)
    return RunFailed(f"{said}. Run the same command again to go on")
