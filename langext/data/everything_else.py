"""A small set of text in many languages and of code, of what is free and at hand: what else a model is to be kept as it is on.

The one rule: what is chosen is chosen by the hash of its name, so that it is spread over the whole source and always the same.
"""

import hashlib
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

from langext import languages
from langext.data.handbook import ROOT, pages

PIECE_BYTES = 4000
"""Most UTF-8 bytes of a piece, if no single paragraph is longer."""
EDITION_BYTES, CODE_BYTES = 40_000, 400_000
"""Text of each edition of the handbook, and code, in UTF-8 bytes."""
ORIGINAL = "en-US"
_SCRIPTS = {"zh-TW": "zho_Hant"}
"""Editions whose language is not what the first letters alone say."""


def editions(tree: Path) -> Iterator[dict[str, str]]:
    """Yield pieces of every translation of the Debian Administrator's Handbook, as {"id", "text", "language"}.

    The editions are translated in part only. A page that is mostly the English one is left out, and so is a paragraph that is
    word for word an English one. The English edition itself is not in the set.
    """
    english = {_page(row): set(_paragraphs(row)) for row in pages(tree, ORIGINAL)}
    for edition in sorted(path.name for path in (tree / ROOT).iterdir() if path.name != ORIGINAL):
        code = _SCRIPTS.get(edition) or languages.find(edition.split("-")[0]).code
        pieces: dict[str, str] = {}
        for row in pages(tree, edition):
            every = _paragraphs(row)
            own = [part for part in every if part not in english.get(_page(row), ())]
            if 2 * sum(map(len, own)) > sum(map(len, every)):
                pieces |= _pieces(row["id"], own)
        yield from _chosen(pieces, EDITION_BYTES, code)


def standard_library() -> Iterator[dict[str, str]]:
    """Yield pieces of the Python source of the standard library that is running, as {"id", "text", "language"}."""
    pieces: dict[str, str] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):
        with tokenize.open(path) as file:
            pieces |= _pieces(f"python/{path.name}", file.read().split("\n\n"))
    yield from _chosen(pieces, CODE_BYTES, languages.ZXX)


def _page(row: dict[str, str]) -> str:
    return row["id"].split("/", 1)[1]


def _paragraphs(row: dict[str, str]) -> list[str]:
    return row["text"].split("\n\n")


def _pieces(name: str, paragraphs: Iterable[str]) -> dict[str, str]:
    """Neighbouring paragraphs together, up to PIECE_BYTES, by `<name>#<number>`. A longer paragraph is a piece of its own."""
    pieces: list[list[str]] = []
    size = PIECE_BYTES
    for paragraph in paragraphs:
        size += len(paragraph.encode()) + 2
        if size > PIECE_BYTES:
            pieces.append([])
            size = len(paragraph.encode())
        pieces[-1].append(paragraph)
    texts = ("\n\n".join(parts).strip("\n") for parts in pieces)
    return {f"{name}#{number}": text for number, text in enumerate(texts) if text.strip()}


def _chosen(pieces: dict[str, str], total_bytes: int, code: str) -> Iterator[dict[str, str]]:
    """About `total_bytes` of these pieces, in the order of the sha256 of their names. The last one may exceed the total."""
    used = 0
    for name in sorted(pieces, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if used >= total_bytes:
            return
        used += len(pieces[name].encode())
        yield {"id": name, "text": pieces[name], "language": code}
