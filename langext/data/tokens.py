"""Token files: the training text as token ids, written once and memory-mapped, and the packed sequences cut from it.

Rule: a folder of token files is named after its text and its tokenizer, so tokens of other text or ids are never read.
"""

import fcntl
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from langext.artifacts import Corpus, fingerprint, read_json, sha256_file, write_json
from langext.console import Progress, say
from langext.data.documents import batches, encode, end_token, sources
from langext.errors import RunFailed
from langext.text_summaries import FilterSummary

IGNORE = -100
"""The label of a position without a prediction, the same number as in PyTorch: it adds nothing to the loss."""
ENCODING = 2
"""Raised when `documents.encode` gives other ids for the same text: since 2, text never becomes special tokens."""
LOCK = ".lock"
DONE = "done.json"
"""Written last into the folder of a token file: its presence means that the file is finished."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt",
)  # fmt: skip
"""The files that decide which ids a tokenizer returns."""


@dataclass(frozen=True)
class TokenFile:
    """All documents of one source as one memory-mapped stream. Every document ends with the tokenizer's end token."""

    tokens: np.ndarray
    """(num_tokens,) uint32."""
    starts: np.ndarray
    """(num_documents,) int64: position of the first token of each document, ascending."""

    @staticmethod
    def write(folder: Path, documents: Iterable[list[int]]) -> "TokenFile":
        """Write documents of token ids to `folder` and open the result. `done.json` marks the folder as complete."""
        folder.mkdir(parents=True, exist_ok=True)
        # done.json goes first and comes back last: an interrupted run never leaves a folder that looks complete.
        for name in (DONE, "tokens.bin", "starts.npy"):  # not overwritten: another run may hold hard links of them
            (folder / name).unlink(missing_ok=True)
        starts, at = [], 0
        with (folder / "tokens.bin").open("wb") as file:
            for ids in documents:
                starts.append(at)
                file.write(np.asarray(ids, dtype=np.uint32).tobytes())
                at += len(ids)
            file.flush()
            os.fsync(file.fileno())
        content = io.BytesIO()  # numpy itself does not say why a disk takes no more
        np.save(content, np.asarray(starts, dtype=np.int64))
        with (folder / "starts.npy").open("wb") as file:
            file.write(content.getvalue())
            file.flush()
            os.fsync(file.fileno())
        write_json(folder / DONE, {"tokens": at, "documents": len(starts)})
        return TokenFile.open(folder)

    @staticmethod
    def is_done(folder: Path) -> bool:
        """True when `folder` holds a complete token file."""
        return (folder / DONE).is_file()

    @staticmethod
    def open(folder: Path) -> "TokenFile":
        """Map the complete token file in `folder` into memory."""
        size = read_json(folder / DONE)["tokens"]
        # An empty file cannot be mapped.
        tokens = np.memmap(folder / "tokens.bin", dtype=np.uint32, mode="r", shape=(size,)) if size else np.zeros(0, np.uint32)
        return TokenFile(tokens, np.load(folder / "starts.npy"))

    def num_sequences(self, length: int) -> int:
        """Number of sequences of `length` inputs in the stream. Every input has a label, which is the token after it."""
        return max(0, (len(self.tokens) - 1) // length)

    def sequence(self, index: int, length: int) -> "Packed":
        """The `index`-th sequence of `length` tokens, from 0. Labels and positions keep its documents apart."""
        at = index * length
        window = np.asarray(self.tokens[at : at + length + 1], dtype=np.int64)
        first, last = np.searchsorted(self.starts, [at, at + length + 1], side="left")
        begins = np.asarray(self.starts[first:last]) - at  # document starts inside the window, 0 .. length
        positions = np.arange(length)  # right for the first document, which may have begun in an earlier window
        for begin in begins[begins < length]:
            positions[begin:] = np.arange(length - begin)
        labels = window[1:].copy()
        labels[begins[begins > 0] - 1] = IGNORE  # the end of one document does not predict the start of the next
        return Packed(window[:-1], labels, positions)


@dataclass(frozen=True)
class Packed:
    """One packed training sequence; all arrays are (length,) int64."""

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    """Position within the document. Each document starts at 0, and attention does not look back across such a start."""


BATCH = 512
"""Documents in one call of the tokenizer, enough to keep all cores busy."""


def folder_of(tokens: Path, corpus: Corpus, tokenizer: Any) -> Path:
    """The folder below `tokens` for this training text and this tokenizer. Its name is a hash of both."""
    source = Path(tokenizer.name_or_path)
    texts = {name: sha256 for name, sha256 in corpus.manifest.hashes.items() if name.startswith("documents/train/")}
    # Hash the content, not the path: the same tokenizer at another path gives the same ids.
    rules = {name: sha256_file(source / name) for name in TOKENIZER_FILES if (source / name).is_file()}
    return tokens / fingerprint({"corpus": texts, "tokenizer": rules, "encoding": ENCODING})


def tokenise(tokens: Path, corpus: Corpus, tokenizer: Any, languages: Sequence[str]) -> None:
    """Write the token files of all training text in `languages`, except those that are already complete.

    The tokenizer works on all cores while the next documents are read. Several runs may share the folder `tokens`: one run
    tokenises, the others wait for it. After an interruption, complete files are kept.
    """
    folder = folder_of(tokens, corpus, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    summary = corpus.manifest.summary_as(FilterSummary)
    num_bytes = {row.source: row.train_bytes for row in summary.funnel} if summary else {}
    with (folder / LOCK).open("w") as lock:  # the system frees the lock even when the process is killed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("  waiting for another run that is tokenising the same text")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for code in languages:
            for name, paths in sources(corpus, "train", code).items():
                if not TokenFile.is_done(folder / name):
                    TokenFile.write(folder / name, _ids(name, paths, tokenizer, num_bytes.get(name, 0)))


def token_files(tokens: Path, corpus: Corpus, tokenizer: Any, languages: Sequence[str]) -> dict[str, TokenFile]:
    """`<language>/<domain>` -> token file, as written by `tokenise`. Raises RunFailed when one is missing."""
    folder = folder_of(tokens, corpus, tokenizer)
    names = [name for code in languages for name in sources(corpus, "train", code)]
    if missing := next((name for name in names if not TokenFile.is_done(folder / name)), None):
        raise RunFailed(
            f"{folder / missing}: no tokens here. They were deleted while they were needed (run the same command again), or "
            "are not on a disk that all nodes share"
        )
    return {name: TokenFile.open(folder / name) for name in names}


def _ids(name: str, paths: Sequence[Path], tokenizer: Any, total_bytes: int) -> Iterator[list[int]]:
    """Yield the ids of every document: start token, text, end token."""
    progress, done, end = Progress(f"tokenising {name}", max(1, total_bytes)), 0, end_token(tokenizer)
    for texts in _ahead(batches(paths, BATCH)):
        for text, row in zip(texts, encode(tokenizer, texts), strict=True):
            done += len(text.encode())
            yield [*row, end]
        progress.at(done)


def _ahead(batches: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yield the same batches, and read the next one in another thread in the meantime."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch
