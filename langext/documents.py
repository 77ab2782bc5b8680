"""The documents of a Corpus: read back, and turned into tokens once."""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import distributed

from langext.artifacts import Corpus
from langext.console import Progress
from langext.mixture import TokenFile
from langext.stage import Context


def read(path: Path) -> Iterator[str]:
    """The texts of one document file, in order."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def batches(paths: Sequence[Path], size: int) -> Iterator[list[str]]:
    """The texts of several files, `size` at a time."""
    batch: list[str] = []
    for path in paths:
        for text in read(path):
            batch.append(text)
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch


def heldout(corpus: Corpus, languages: Sequence[str]) -> dict[str, list[str]]:
    """Held-out documents by `<language>/<domain>`, in the order of `languages`."""
    found: dict[str, list[str]] = {}
    for code in languages:
        for path in corpus.files("valid", code):
            found.setdefault(f"{code}/{path.name.split('.')[0]}", []).extend(read(path))
    return found


def tokenise(ctx: Context, corpus: Corpus, code: str, tokenizer: Any) -> TokenFile:
    """The token file of one language; made once, by rank 0, and found again after an interruption."""
    folder = ctx.out / "tokens" / code
    if ctx.rank == 0 and not (folder / "done.json").is_file():
        total = sum(f["train_bytes"] for f in corpus.manifest["summary"]["funnel"] if f["language"] == code)
        progress, done = Progress(f"tokenising {code}", max(1, total)), 0

        def ids() -> Iterator[list[int]]:
            nonlocal done
            for texts in batches(corpus.files("train", code), 256):
                for text, row in zip(texts, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
                    done += len(text.encode())
                    yield [*row, tokenizer.eos_token_id]
                progress.at(done)

        TokenFile.write(folder, ids())
    distributed.barrier()
    return TokenFile.open(folder)
