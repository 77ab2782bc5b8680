"""Write the tokenizer of an extension. The one rule: it is not there before every guarantee holds for it, read again."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizer_tools import guarantees, kinds, model_file, protect, roles
from tokenizer_tools.folder import misread
from tokenizer_tools.folder import write as write_folder
from tokenizer_tools.kinds import Kind
from tokenizer_tools.model_file import NAME
from tokenizer_tools.protect import Identity
from tokenizer_tools.texts import encode
from tokenizer_tools.vocabulary import next_id

SAMPLE = "A b  c\n\n été 日本語 12"
"""Some text that an unextended base must encode alike after it is written and read again."""
Read = Callable[[Path], Any]
Encode = Callable[[Any, Sequence[str]], list[list[int]]]


def kind_of(base: Any, folder: Path, read: Read) -> Kind:
    """The kind of the vocabulary of the base in `folder`. Raises ValueError, with the reason, when it cannot be extended.

    `read` reads the tokenizer of a folder.
    """
    kind, path = kinds.of(base), folder / model_file.NAME
    reason = model_file.obstacle(path, base) if kind.in_model_file and path.is_file() else ""
    reason = reason or misread(base, folder) or roles.unnamed(base, roles.configs(folder)) or _unlike_itself(base, read)
    if reason:
        raise ValueError(reason)
    return kind


def _unlike_itself(base: Any, read: Read) -> str:
    """Why a base is another one when it is written and read again, before anything is added; empty when it is not."""
    names = [token.content for token in base.added_tokens_decoder.values()]
    texts = [*(f"a{name}b {name} {name}{name}\n{name}" for name in names), SAMPLE]
    with TemporaryDirectory() as scratch:
        write_folder(base, Path(scratch))
        again = read(Path(scratch))
    as_text = zip(encode(base, texts), encode(again, texts), strict=True)
    for name, text, (before, after) in zip([*names, ""], texts, as_text, strict=True):
        if before != after or base(text).input_ids != again(text).input_ids:
            what = f"around its added token {name!r}" if name else f"as {text!r}"
            return (
                f"written by transformers and read again, the base itself encodes text {what} in another way, and so would an "
                f"extension. If that is what you want, save it once with save_pretrained and take that folder, without {NAME}"
            )
    return ""


@dataclass(frozen=True)
class Written:
    """An extension that is written, and what its guarantees were checked on."""

    tokenizer: Any
    compared: dict[str, Identity]
    """Of each set of protected texts, by its name: all documents are identical."""


def write(
    out: Path,
    folder: Path,
    kind: Kind,
    base: Any,
    found: Sequence[Any],
    *,
    read: Read,
    words: Counter[Any],
    texts: Sequence[str],
    protected: Mapping[str, Iterable[str]],
    ids: Sequence[int] | None = None,
    encode: Encode = encode,
) -> Written:
    """Write the base in `folder` with new tokens to `out`, and return it as `read` reads it.

    `words` are those that the tokens were learnt from; guarantees about whole texts are checked on `texts`; and the ids that
    `encode` gives for every text of the `protected` sets must be those of the base. `ids` are those of the tokens, if some are
    reserved ones of the base. Raises ValueError when a guarantee is broken; then nothing is left.
    """
    first = next_id(base)
    ids = range(first, first + len(found)) if ids is None else ids
    bigger = kind.extended(base, found, ids)
    beside = out.with_name(f".{out.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        write_folder(bigger, beside)
        source, target = folder / model_file.NAME, beside / model_file.NAME
        if kind.in_model_file and source.is_file():
            target.write_bytes(model_file.extended(source, base, found, ids))
        written = read(beside)
        reason = guarantees.broken(
            base, bigger, written, found, words, texts, roles.configs(folder), coarser=kind.coarser, ids=ids
        )  # fmt: skip
        if not reason and target.is_file() and (text := model_file.difference((source, base), (target, written), texts)):
            reason = f"sentencepiece and the tokenizers library would encode {text[:40]!r} in two ways, as they do not now"
        if reason:
            raise ValueError(reason)
        spelt = {i: token.base_ids for i, token in zip(ids, found, strict=True)}
        compared = {name: _compared(name, base, written, texts, spelt, encode) for name, texts in protected.items()}
        shutil.rmtree(out, ignore_errors=True)  # what a killed process has left
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Written(read(out), compared)


def _compared(
    name: str, base: Any, written: Any, texts: Iterable[str], spelt: Mapping[int, Sequence[int]], encode: Encode
) -> Identity:
    """Compare all texts of a protected set. Raises ValueError when one has other ids than by the base."""
    changed: list[str] = []

    def pairs() -> Iterator[tuple[list[int], list[int]]]:
        left = iter(texts)
        while batch := list(islice(left, 256)):
            for text, before, after in zip(batch, encode(base, batch), encode(written, batch), strict=True):
                if before != after and not changed:
                    changed.append(text)
                yield before, after

    found = protect.identity(pairs(), spelt)
    if changed:
        raise ValueError(
            f"protected text would be encoded in another way: {found.documents - found.identical:,} of {found.documents:,} "
            f"documents of {name}, such as {changed[0][:40]!r}"
        )
    return found
