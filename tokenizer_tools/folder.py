"""Reads the tokenizer in a folder. The one rule: a folder is read in one way, whoever asks."""

from pathlib import Path
from typing import Any

import sentencepiece
from transformers import AutoTokenizer

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files that hold a tokenizer; the first one that is there is read."""


def file(folder: Path) -> Path | None:
    """The file that holds the tokenizer of a folder; None when there is none."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def load(path: Path) -> Any:
    """The tokenizer in the folder of `path`, which is its `file`. Raises errors of many classes for what cannot be read."""
    if path.suffix == ".model":  # else transformers takes it for one of tiktoken
        sentencepiece.SentencePieceProcessor().Load(str(path))
    return AutoTokenizer.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)


def read(folder: Path) -> Any:
    """The tokenizer in a local folder. Raises ValueError when there is none, or none that can be read."""
    path = file(folder)
    if path is None:
        cure = 'Of a base on the hub this brings it: hf download <its id> --include "tokenizer*" --local-dir base'
        raise ValueError(f"{folder}: no tokenizer here (looked for {', '.join(FILES)}); name a folder that has one. {cure}")
    try:
        return load(path)
    except Exception as error:  # the libraries raise errors of nearly every class
        raise ValueError(f"{path}: the tokenizer cannot be read: {error}") from None
