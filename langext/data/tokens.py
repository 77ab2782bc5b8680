"""Text as token ids: files of documents, written once and mapped into memory, and the sequences that are cut out of them."""

import fcntl
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
from langext.spec import RunFailed
from langext.summaries import FilterSummary

IGNORE = -100
"""The label of a token that is not to be predicted, as in PyTorch."""
LOCK = ".lock"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt",
)  # fmt: skip
"""What decides the ids that a tokenizer gives."""


@dataclass(frozen=True)
class TokenFile:
    """The documents of one source in one memory-mapped stream; every document ends with the tokenizer's end token."""

    tokens: np.ndarray
    """(num_tokens,) uint32."""
    starts: np.ndarray
    """(num_documents,) int64, where each document begins, in order."""

    @staticmethod
    def write(folder: Path, documents: Iterable[list[int]]) -> "TokenFile":
        """Write documents of token ids to `folder`; `done.json` comes last and marks it complete."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "done.json").unlink(missing_ok=True)
        starts, at = [], 0
        with (folder / "tokens.bin").open("wb") as file:
            for ids in documents:
                starts.append(at)
                file.write(np.asarray(ids, dtype=np.uint32).tobytes())
                at += len(ids)
            file.flush()
            os.fsync(file.fileno())
        np.save(folder / "starts.npy", np.asarray(starts, dtype=np.int64))
        write_json(folder / "done.json", {"tokens": at, "documents": len(starts)})
        return TokenFile.open(folder)

    @staticmethod
    def is_done(folder: Path) -> bool:
        """Is there a finished file?"""
        return (folder / "done.json").is_file()

    @staticmethod
    def open(folder: Path) -> "TokenFile":
        """Map a finished file into memory."""
        size = read_json(folder / "done.json")["tokens"]
        tokens = np.memmap(folder / "tokens.bin", dtype=np.uint32, mode="r", shape=(size,)) if size else np.zeros(0, np.uint32)
        return TokenFile(tokens, np.load(folder / "starts.npy"))

    def num_sequences(self, length: int) -> int:
        """Sequences of `length` inputs with a label each that the stream holds."""
        return max(0, (len(self.tokens) - 1) // length)

    def sequence(self, index: int, length: int) -> "Packed":
        """The `index`-th run of `length` tokens, with labels and positions that keep its documents apart."""
        at = index * length
        window = np.asarray(self.tokens[at : at + length + 1], dtype=np.int64)
        first, last = np.searchsorted(self.starts, [at, at + length + 1], side="left")
        begins = np.asarray(self.starts[first:last]) - at  # document starts inside the window, 0 .. length
        positions = np.arange(length)
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
    """Start again at 0 with every document, which is how attention is told not to cross into another one."""


BATCH = 512


def folder_of(tokens: Path, corpus: Corpus, tokenizer: Any) -> Path:
    """The folder, in `tokens`, of a corpus's training text in the ids of this tokenizer: other text or ids have another."""
    source = Path(tokenizer.name_or_path)
    texts = {name: sha256 for name, sha256 in corpus.manifest.hashes.items() if name.startswith("documents/train/")}
    rules = {name: sha256_file(source / name) for name in TOKENIZER_FILES if (source / name).is_file()}
    return tokens / fingerprint({"corpus": texts, "tokenizer": rules})


def tokenise(tokens: Path, corpus: Corpus, tokenizer: Any, languages: Sequence[str]) -> None:
    """Make the token files of all training text, unless they are there.

    The tokenizer works on all cores while the next documents are read. Several runs may share the folder `tokens`: one of them
    works, the others wait for it. After an interruption finished files are not made again.
    """
    folder = folder_of(tokens, corpus, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    summary = corpus.manifest.summary_as(FilterSummary)
    num_bytes = {row.source: row.train_bytes for row in summary.funnel} if summary else {}
    with (folder / LOCK).open("w") as lock:
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
    """The token files that `tokenise` has made, by `<language>/<domain>`. Raises RunFailed when they are gone."""
    folder = folder_of(tokens, corpus, tokenizer)
    names = [name for code in languages for name in sources(corpus, "train", code)]
    if gone := next((name for name in names if not TokenFile.is_done(folder / name)), None):
        raise RunFailed(
            f"{folder / gone}: no tokens here; they were deleted while they were needed. Run the same command again."
        )
    return {name: TokenFile.open(folder / name) for name in names}


def _ids(name: str, paths: Sequence[Path], tokenizer: Any, total_bytes: int) -> Iterator[list[int]]:
    """Start token, text, end token of every document."""
    progress, done, end = Progress(f"tokenising {name}", max(1, total_bytes)), 0, end_token(tokenizer)
    for texts in _ahead(batches(paths, BATCH)):
        for text, row in zip(texts, encode(tokenizer, texts), strict=True):
            done += len(text.encode())
            yield [*row, end]
        progress.at(done)


def _ahead(batches: Iterator[list[str]]) -> Iterator[list[str]]:
    """The same batches, the next one read in another thread meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch
