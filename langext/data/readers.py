"""Read documents from text files, Parquet files and the hub. Rule: unreadable input stops the run; it is never skipped.

In a `.txt` file a blank line separates documents, as in CC-100 (https://data.statmt.org/cc-100/). A `.jsonl` file has one
object per line. Both may be gzipped. datatrove's own reader reads Parquet.
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
    """`path` itself if it is a file, or all readable files below it, sorted. Raises ConfigError when there are none."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES))
    unreadable = [p for p in files if not p.name.endswith(SUFFIXES)]
    if unreadable or not files:
        problem = f"cannot read {unreadable[0].name}" if unreadable else "nothing to read here"
        raise ConfigError(f"{path}: {problem}; langext reads {', '.join(SUFFIXES)}")
    return files


class _Strict:
    """Common to all readers: a missing text column is an error. An empty text is passed on, so that the filter counts it."""

    def __init__(self, text_column: str, *args: Any, **options: Any):
        super().__init__(*args, text_key=text_column, **options)  # pyright: ignore[reportCallIssue]

    def get_document_from_dict(self, data: dict[str, Any], source_file: str, id_in_file: int | str) -> Document:
        """Turn one entry of a source into a document. Raises ConfigError when the text column is missing or not text."""
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
    """Reads .txt and .jsonl, plain or gzipped, and prints its progress."""

    name = "text"

    def __init__(self, text_column: str, folder: Path, listing: Path, limit: int, label: str, total_bytes: int):
        super().__init__(text_column, str(folder), str(listing), limit)
        self.label, self.total_bytes = label, total_bytes

    def read_file(self, filepath: str) -> Iterator[Document]:
        """Yield the documents of one file. Raises ConfigError with file and line when something cannot be read."""
        progress = Progress(self.label, self.total_bytes)
        with self.data_folder.open(filepath, "rb") as raw:
            stream: Any = gzip.GzipFile(fileobj=raw) if filepath.endswith(".gz") else raw
            lines = io.TextIOWrapper(stream, encoding="utf-8")
            number = 0
            try:
                for number, data in _jsonl(lines) if filepath.removesuffix(".gz").endswith(".jsonl") else _blocks(lines):
                    yield self.get_document_from_dict(data, filepath, number)
                    # The position in the compressed file: its size is known, that of the text is not.
                    progress.at(raw.tell(), f"{number} lines of {filepath}")
            except json.JSONDecodeError as error:
                raise ConfigError(f"{filepath}: after line {number}: not a JSON object: {error.msg}") from None
            except UnicodeDecodeError:
                raise ConfigError(f"{filepath}: after line {number}: not UTF-8 text") from None
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ConfigError(f"{filepath}: after line {number}: damaged: {error}") from None


class TableReader(_Strict, ParquetReader):
    """datatrove's Parquet reader with the strict checks."""


class HubReader(_Strict, HuggingFaceDatasetReader):
    """datatrove's reader of datasets on the Hugging Face hub, with the strict checks."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield this task's share of the dataset. Raises ConfigError when the hub does not give it."""
        try:
            yield from super().run(data, rank, world_size)
        except ConfigError:  # a ValueError too, but its message is complete
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
