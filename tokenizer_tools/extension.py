"""Write the tokenizer of an extension. The one rule: it is not there before every guarantee holds for it, read again."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizer_tools import guarantees, kinds, model_file
from tokenizer_tools.kinds import Kind
from tokenizer_tools.texts import encode
from tokenizer_tools.vocabulary import next_id

CONFIGS = ("config.json", "generation_config.json")
"""Files of a base that name ids of tokens."""


def kind_of(base: Any, folder: Path) -> Kind:
    """The kind of the vocabulary of the base in `folder`. Raises ValueError, with the reason, when it cannot be extended."""
    kind, path = kinds.of(base), folder / model_file.NAME
    reason = model_file.obstacle(path, base) if kind.in_model_file and path.is_file() else ""
    if reason := reason or guarantees.unnamed(base, configs(folder)):
        raise ValueError(reason)
    return kind


def configs(folder: Path) -> dict[str, dict[str, Any]]:
    """What the files of a base say that may name ids of tokens, by their names; those that are there."""
    paths = [folder / name for name in CONFIGS]
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()}


def named(folder: Path) -> set[int]:
    """All ids of tokens that the configs of a base name."""
    found = set[int]()
    for config in configs(folder).values():
        for key, value in config.items():
            if key.endswith("_token_id"):
                found.update(value if isinstance(value, list) else [value])
    return found


def write(
    out: Path,
    folder: Path,
    kind: Kind,
    base: Any,
    found: Sequence[Any],
    *,
    read: Callable[[Path], Any],
    words: Counter[Any],
    texts: Sequence[str],
    protected: Iterable[str] = (),
    ids: Sequence[int] | None = None,
) -> Any:
    """Write the base in `folder` with new tokens to `out`, and return it as `read` reads it.

    `words` are those that the tokens were learnt from; guarantees about whole texts are checked on `texts`; and the ids of
    `protected` texts must be those of the base. `ids` are those of the tokens, if some are reserved ones of the base. Raises
    ValueError when a guarantee is broken; then nothing is left.
    """
    first = next_id(base)
    ids = range(first, first + len(found)) if ids is None else ids
    bigger = kind.extended(base, found, ids)
    beside = out.with_name(f".{out.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        bigger.save_pretrained(beside)
        source, target = folder / model_file.NAME, beside / model_file.NAME
        if kind.in_model_file and source.is_file():
            target.write_bytes(model_file.extended(source, base, found, ids))
        written = read(beside)
        reason = guarantees.broken(
            base, bigger, written, found, words, texts, configs(folder), coarser=kind.coarser, ids=ids
        )  # fmt: skip
        if not reason and target.is_file() and (text := model_file.difference((source, base), (target, written), texts)):
            reason = f"sentencepiece and the tokenizers library would encode {text[:40]!r} in two ways, as they do not now"
        if not reason and (text := _changed(base, written, protected)):
            reason = f"protected text would be encoded in another way: {text[:40]!r}"
        if reason:
            raise ValueError(reason)
        shutil.rmtree(out, ignore_errors=True)  # what a killed process has left
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return read(out)


def _changed(base: Any, written: Any, texts: Iterable[str]) -> str:
    """A text with other ids than by the base; empty when there is none."""
    left = iter(texts)
    while batch := list(islice(left, 256)):
        for text, before, after in zip(batch, encode(base, batch), encode(written, batch), strict=True):
            if before != after:
                return text
    return ""
