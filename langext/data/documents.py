"""Read the documents of a Corpus, and encode them.

Rule: training and every measurement encode text here, so that text stays text: `<|im_start|>` or `<s>` in a document become
the tokens of their letters, never the special token of that name.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from langext.artifacts import Corpus
from langext.data.plain_text import encode_text, own_start
from langext.errors import ConfigError, RunFailed


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the documents of one file in order, as {"text", "id", ...}. Raises RunFailed when the file is damaged."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        # The message of a ValueError may hold text of the document.
        reason = error if isinstance(error, OSError | EOFError | zlib.error) else "not JSON in UTF-8"
        raise RunFailed(f"{path}: filtered text is damaged: {reason}; make it again with --redo of its filter stage") from None


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


def heldout_texts(corpus: Corpus, languages: Sequence[str]) -> list[str]:
    """The same in one list."""
    return [text for texts in heldout(corpus, languages).values() for text in texts]


def start_token(tokenizer: Any) -> int:
    """Id of the token put before every document: the one the tokenizer itself puts there, or else its end-of-text token.

    Raises ConfigError when the tokenizer has neither.
    """
    own = own_start(tokenizer)
    return own[0] if own else end_token(tokenizer)


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
    return [[start, *ids] for ids in encode_text(tokenizer, texts)]


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
