"""The documents of a Corpus: read back, and turned into tokens once."""

import gzip
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from torch import distributed

from langext.artifacts import Corpus, fingerprint, sha256_file
from langext.console import Progress
from langext.context import Context
from langext.mixture import TokenFile
from langext.spec import ConfigError

BATCH = 512


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The documents of one file, in order: {"text", "id", ...}."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def batches(paths: Sequence[Path], size: int) -> Iterator[list[str]]:
    """The texts of several files, `size` at a time."""
    texts = (document["text"] for path in paths for document in read(path))
    while batch := list(islice(texts, size)):
        yield batch


def sources(corpus: Corpus, split: str, code: str) -> dict[str, list[Path]]:
    """The files of one language by `<language>/<domain>`."""
    found: dict[str, list[Path]] = {}
    for path in corpus.files(split, code):
        found.setdefault(f"{code}/{path.name.split('.')[0]}", []).append(path)
    return found


def heldout(corpus: Corpus, languages: Sequence[str]) -> dict[str, list[str]]:
    """Held-out documents by `<language>/<domain>`, in the order of `languages`."""
    found = {name: paths for code in languages for name, paths in sources(corpus, "valid", code).items()}
    return {name: [document["text"] for path in paths for document in read(path)] for name, paths in found.items()}


def start_token(tokenizer: Any) -> int:
    """The token that stands before a document: what the tokenizer itself puts there, or else its end-of-text token."""
    plain, whole = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    return whole[0] if whole[0] != plain[0] else end_token(tokenizer)


def end_token(tokenizer: Any) -> int:
    """The end-of-text token. Raises ConfigError when the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{tokenizer.name_or_path}: this tokenizer has no end-of-text token (eos_token)")
    return tokenizer.eos_token_id


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of documents, each after the start token: how text is read in training and in every measurement."""
    if not texts:
        return []
    start = start_token(tokenizer)
    return [[start, *ids] for ids in tokenizer(list(texts), add_special_tokens=False).input_ids]


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


def identifiers(corpus: Corpus, source: str, numbers: Sequence[int]) -> list[str]:
    """The `id` of documents of `<language>/<domain>` by their place in the training text."""
    code = source.split("/")[0]
    wanted, names = set(numbers), []
    documents = (document for path in sources(corpus, "train", code)[source] for document in read(path))
    for number, document in enumerate(islice(documents, max(wanted) + 1)):
        if number in wanted:
            names.append(str(document.get("id", number)))
    return names
