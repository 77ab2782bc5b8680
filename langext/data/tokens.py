"""Text as token ids: files of documents, written once and mapped into memory, and the sequences that are cut out of them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import distributed

from langext.artifacts import Corpus, fingerprint, read_json, sha256_file, write_json
from langext.console import Progress
from langext.context import Context
from langext.data.documents import batches, encode, end_token, sources

IGNORE = -100
"""The label of a token that is not to be predicted, as in PyTorch."""


@dataclass(frozen=True)
class TokenFile:
    """The documents of one source in one memory-mapped stream; every document ends with the tokenizer's end token."""

    tokens: np.ndarray
    """(num_tokens,) uint32."""
    starts: np.ndarray
    """(num_documents,) int64, where each document begins, in order."""

    @staticmethod
    def write(folder: Path, documents: Iterable[list[int]], mark: str = "") -> "TokenFile":
        """Write documents of token ids to `folder`; `done.json` comes last and marks it complete. `mark` says what it is of."""
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
        write_json(folder / "done.json", {"tokens": at, "documents": len(starts), "mark": mark})
        return TokenFile.open(folder)

    @staticmethod
    def is_done(folder: Path, mark: str) -> bool:
        """Is there a finished file of what `mark` says?"""
        return (folder / "done.json").is_file() and read_json(folder / "done.json")["mark"] == mark

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


def tokenise(ctx: Context, corpus: Corpus, tokenizer: Any) -> dict[str, TokenFile]:
    """The token files of all training text by `<language>/<domain>`.

    Made once, by rank 0: the tokenizer works on all cores while the next documents are read. Found again after an interruption;
    made anew when the corpus or the tokenizer has changed.
    """
    found = {name: paths for code in ctx.languages for name, paths in sources(corpus, "train", code).items()}
    folder = Path(tokenizer.name_or_path)
    marks = {path.name: sha256_file(path) for path in sorted(folder.glob("*")) if path.suffix in (".json", ".model", ".txt")}
    mark = fingerprint({"corpus": corpus.manifest["fingerprint"], "tokenizer": marks})
    if ctx.rank == 0:
        bytes_by = {f"{f['language']}/{f['domain']}": f["train_bytes"] for f in corpus.manifest["summary"]["funnel"]}
        for name, paths in found.items():
            if not TokenFile.is_done(ctx.out / "tokens" / name, mark):
                TokenFile.write(ctx.out / "tokens" / name, _ids(name, paths, tokenizer, bytes_by[name]), mark)
    distributed.barrier()
    return {name: TokenFile.open(ctx.out / "tokens" / name) for name in found}


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
