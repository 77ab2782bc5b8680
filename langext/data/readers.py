"""Text files -> documents. Strict: a line that cannot be read stops the run with its place, it is never skipped.

A `.txt` file holds documents apart by a blank line, as CC-100 does (https://data.statmt.org/cc-100/). A `.jsonl` file holds
one object a line. Both may be gzipped. Parquet goes through datatrove's own reader.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetNotFoundError
from datatrove.data import Document
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.pipeline.readers.huggingface import HuggingFaceDatasetReader
from datatrove.pipeline.readers.parquet import ParquetReader
from huggingface_hub.errors import HfHubHTTPError

from langext.console import Progress
from langext.spec import ConfigError, near

TEXT_SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")


def find_files(path: Path) -> list[Path]:
    """The readable files that `path` is or holds, sorted. Raises ConfigError when there are none."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES))
    odd = [p for p in files if not p.name.endswith(SUFFIXES)]
    if odd or not files:
        what = f"cannot read {odd[0].name}" if odd else "nothing to read here"
        raise ConfigError(f"{path}: {what}; langext reads {', '.join(SUFFIXES)}")
    return files


class _Strict:
    """What all readers share: a missing text column is an error; an empty text passes, for the filter to count."""

    def __init__(self, text_column: str, *args: Any, **options: Any):
        super().__init__(*args, text_key=text_column, **options)  # pyright: ignore[reportCallIssue]

    def get_document_from_dict(self, data: dict[str, Any], source_file: str, id_in_file: int | str) -> Document:
        """One entry of a source as a document. Raises ConfigError when the text column is missing or not text."""
        column = self.text_key  # type: ignore[attr-defined]
        if column not in data:
            raise ConfigError(
                f"{source_file}: entry {id_in_file} has no {column!r}.{near(column, data)} "
                f"It has: {', '.join(map(str, data))}. Name the right one with text_column."
            )
        text = data[column]
        if text is not None and not isinstance(text, str):
            raise ConfigError(f"{source_file}: entry {id_in_file}: {column!r} is {type(text).__name__}, not text")
        return Document(text=text or "", id=str(data.get("id", f"{source_file}/{id_in_file}")))


class TextReader(_Strict, BaseDiskReader):
    """Reads .txt and .jsonl, plain or gzipped, and reports how far it is."""

    name = "text"

    def __init__(self, text_column: str, folder: Path, listing: Path, limit: int, label: str, total_bytes: int):
        super().__init__(text_column, str(folder), str(listing), limit)
        self.label, self.total_bytes = label, total_bytes

    def read_file(self, filepath: str) -> Iterator[Document]:
        """Documents of one file. Raises ConfigError naming file and line for what cannot be read."""
        progress = Progress(self.label, self.total_bytes)
        with self.data_folder.open(filepath, "rb") as raw:
            stream: Any = gzip.GzipFile(fileobj=raw) if filepath.endswith(".gz") else raw
            lines = io.TextIOWrapper(stream, encoding="utf-8")
            number = 0
            try:
                for number, data in _jsonl(lines) if ".jsonl" in filepath else _blocks(lines):
                    yield self.get_document_from_dict(data, filepath, number)
                    progress.at(raw.tell(), f"{number} lines of {filepath}")
            except json.JSONDecodeError as error:
                raise ConfigError(f"{filepath}: after line {number}: not a JSON object: {error.msg}") from None
            except UnicodeDecodeError:
                raise ConfigError(f"{filepath}: after line {number}: not UTF-8 text") from None
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ConfigError(f"{filepath}: after line {number}: damaged: {error}") from None


class TableReader(_Strict, ParquetReader):
    """datatrove's Parquet reader, strict."""


class HubReader(_Strict, HuggingFaceDatasetReader):
    """datatrove's reader of datasets on the Hugging Face hub, strict."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """This task's share of the dataset. Raises ConfigError when the hub does not give it."""
        try:
            yield from super().run(data, rank, world_size)
        except ConfigError:
            raise
        except (DatasetNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"hub dataset {self.dataset} {self.dataset_options}: {reason}") from None


def _jsonl(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            data = json.loads(line)
            if not isinstance(data, dict):
                raise json.JSONDecodeError("another kind of value", line, 0)
            yield number, data


def _blocks(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    block: list[str] = []
    number = 0
    for number, line in enumerate(lines, 1):
        if line.strip():
            block.append(line.rstrip("\n"))
        elif block:
            yield number, {"text": "\n".join(block)}
            block = []
    if block:
        yield number, {"text": "\n".join(block)}
