"""Read the documents of a Corpus, and encode them. Rule: training and every measurement encode text with `encode` here."""

import gzip
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from langext.artifacts import Corpus
from langext.spec import ConfigError


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the documents of one file in order, as {"text", "id", ...}."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def batches(paths: Sequence[Path], size: int) -> Iterator[list[str]]:
    """Yield the texts of several files in lists of `size`; the last list may be shorter."""
    texts = (document["text"] for path in paths for document in read(path))
    while batch := list(islice(texts, size)):
        yield batch


def sources(corpus: Corpus, split: str, code: str) -> dict[str, list[Path]]:
    """`<language>/<domain>` -> its files, for the language `code` and one split (train or valid)."""
    files: dict[str, list[Path]] = {}
    for path in corpus.files(split, code):
        files.setdefault(f"{code}/{path.name.split('.')[0]}", []).append(path)
    return files


def heldout(corpus: Corpus, languages: Sequence[str]) -> dict[str, list[str]]:
    """`<language>/<domain>` -> texts of its held-out documents, in the order of `languages`."""
    files = {name: paths for code in languages for name, paths in sources(corpus, "valid", code).items()}
    return {name: [document["text"] for path in paths for document in read(path)] for name, paths in files.items()}


def start_token(tokenizer: Any) -> int:
    """Id of the token put before every document: the one the tokenizer itself puts there, or else its end-of-text token.

    Raises ConfigError when the tokenizer has neither.
    """
    plain, whole = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    return whole[0] if whole[0] != plain[0] else end_token(tokenizer)


def end_token(tokenizer: Any) -> int:
    """Id of the end-of-text token. Raises ConfigError when the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{tokenizer.name_or_path}: this tokenizer has no end-of-text token (eos_token)")
    return tokenizer.eos_token_id


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each document, beginning with the start token. Raises ConfigError when there is no start token."""
    if not texts:
        return []
    start = start_token(tokenizer)
    return [[start, *ids] for ids in tokenizer(list(texts), add_special_tokens=False).input_ids]


def identifiers(corpus: Corpus, source: str, numbers: Sequence[int]) -> list[str]:
    """The `id` fields of training documents of `source` (`<language>/<domain>`).

    `numbers` are the positions of the documents in the training text, from 0; the result is in ascending order of position.
    """
    code = source.split("/")[0]
    wanted, names = set(numbers), []
    documents = (document for path in sources(corpus, "train", code)[source] for document in read(path))
    for number, document in enumerate(islice(documents, max(wanted) + 1)):
        if number in wanted:
            names.append(str(document.get("id", number)))
    return names
