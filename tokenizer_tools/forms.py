"""Tokenizers in the forms of other programs, which are not read. The one rule: who has one alone is told so."""

import re
from pathlib import Path

from tokenizer_tools import folder as folders

OTHERS = re.compile(r"tekken.*\.json|(?:.*tokenizer\.model|spiece\.model|sentencepiece.*\.model).*")
"""Names under which tokenizers lie in other programs' folders."""
TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n?")
"""A line of tiktoken's form (Llama 3 as Meta publishes it): the bytes of a token in base64, and its rank."""
HUGGING_FACE = "take tokenizer.json and tokenizer_config.json of the same model in Hugging Face form"


def named(folder: Path) -> str:
    """Which tokenizer a folder has under a name that is not read, and what to do; empty when there is none."""
    other = next((each.name for each in sorted(folder.glob("*")) if OTHERS.fullmatch(each.name)), "")
    if not other:
        return ""
    return (
        f"{other} {f'has another form; {HUGGING_FACE}' if 'tekken' in other else 'is called tokenizer.model where it is read'}"
    )


def inside(path: Path) -> str:
    """Why the `folder.file` of a folder is no tokenizer in a form that is read, and what to do; empty when it is one."""
    with path.open("rb") as file:
        begin = file.readline(1000)
    if path.name == "tokenizer.model" and TIKTOKEN.fullmatch(begin):
        return f"is in the form of tiktoken, not of SentencePiece; {HUGGING_FACE}"
    return ""


def checked(folder: Path) -> Path:
    """The folder itself. Raises ValueError when it has a tokenizer in another form, and none that is read."""
    path = folders.file(folder)
    if path is None and (other := named(folder)):
        raise ValueError(f"{folder}: no tokenizer here (looked for {', '.join(folders.FILES)}); {other}")
    if path and (other := inside(path)):
        raise ValueError(f"{path}: {other}")
    return folder
