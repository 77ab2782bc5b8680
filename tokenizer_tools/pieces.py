"""What the pieces of a SentencePiece vocabulary may look like, read off the pieces that the base has.

The one rule: a new piece looks like a piece of the base. It crosses no space, and joins letters with digits or signs only where
the base does so too. Tokens that are no text (control, bytes, names that a user defined) are never a part of one.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tokenizers import Tokenizer

SPACE = "▁"
"""What SentencePiece writes for a space."""
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""The name of the token of a byte."""
LONGEST = 16
"""Characters of a piece at most, as SentencePiece has it."""


@dataclass(frozen=True)
class Pieces:
    """The vocabulary of a base, and what its pieces may be joined to."""

    ids: dict[str, int]
    """The pieces that are text."""
    unlike: frozenset[str]
    """Names of tokens that are no text, those of bytes left out."""
    octets: dict[str, int]
    """The token of each byte; empty for a base without byte fallback."""
    mixed: bool
    """Whether pieces of letters, digits and other signs together exist."""
    numbers: bool
    """Whether pieces of several digits exist."""

    def kind(self, piece: str) -> str:
        """The kind of signs that a piece is made of; empty for one that is joined to nothing."""
        body = piece.removeprefix(SPACE)
        if piece in self.unlike or SPACE in body:
            return ""
        kinds = {_kind(sign) for sign in body}
        if "N" in kinds and not self.numbers:
            return ""
        return "any" if self.mixed or not body else kinds.pop() if len(kinds) == 1 else ""

    def words(self, tokens: list[str]) -> Iterator[tuple[str, ...]]:
        """The runs of tokens of a text that may be joined. Bytes that spell a character are that character in it."""
        run: list[str] = []
        last = ""
        for token in self._characters(tokens):
            kind = self.kind(token)
            if run and (not kind or token.startswith(SPACE) or (kind != last and "any" not in (kind, last))):
                yield tuple(run)
                run, last = [], ""
            if kind:
                run.append(token)
                last = kind if last in ("", "any") else last
        if run:
            yield tuple(run)

    def between(self, tokens: list[str]) -> Iterator[str]:
        """The text between tokens that are no text, as written in the vocabulary."""
        part: list[str] = []
        for token in [*self._characters(tokens), None]:
            if token is None or token in self.unlike or token in self.octets:
                if part:
                    yield "".join(part)
                part = []
            else:
                part.append(token)

    def _characters(self, tokens: list[str]) -> Iterator[str]:
        """The tokens, with the characters that bytes spell in place of the bytes. Bytes that spell none are kept."""
        octets: list[str] = []
        for token in [*tokens, ""]:
            if token in self.octets:
                octets.append(token)
                continue
            if octets:
                raw = bytes(int(name[3:5], 16) for name in octets)
                text = raw.decode(errors="replace")
                yield from octets if "\ufffd" in text else text
                octets = []
            if token:
                yield token

    def spelt(self, token: str) -> tuple[int, ...]:
        """The id of a piece, or the ids of the bytes of a character that is none."""
        if token in self.ids:
            return (self.ids[token],)
        return tuple(self.octets[f"<0x{byte:02X}>"] for byte in token.encode())


def of(tokenizer: Tokenizer) -> Pieces:
    """The pieces of a tokenizer: BPE or unigram."""
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    held = model["vocab"]
    vocab: dict[str, int] = held if isinstance(held, dict) else {text: i for i, (text, _) in enumerate(held)}
    octets = {text: i for text, i in vocab.items() if BYTE.fullmatch(text)} if model.get("byte_fallback") else {}
    unlike = {token["content"] for token in state["added_tokens"]} - octets.keys()
    unlike |= {str(model.get("unk_token"))} if "unk_token" in model else {held[model["unk_id"] or 0][0]}
    ids = {text: i for text, i in vocab.items() if text not in unlike and text not in octets}
    bodies = [{_kind(sign) for sign in text.replace(SPACE, "")} for text in ids]
    numbers = any(sum(_kind(sign) == "N" for sign in text) > 1 for text in ids)
    return Pieces(ids, frozenset(unlike), octets, any(len(kinds) > 1 for kinds in bodies), numbers)


def _kind(sign: str) -> str:
    """L for letters with their marks, N for digits, S for everything else."""
    category = unicodedata.category(sign)[0]
    return {"L": "L", "M": "L", "N": "N"}.get(category, "S")


def encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[str]]:
    """The tokens of each text, in which the names of special tokens are text."""
    plain: Any = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()
    left = iter(texts)
    while batch := list(islice(left, 256)):
        yield from (encoding.tokens for encoding in plain.encode_batch(batch, add_special_tokens=False))


def word_counts(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[tuple[str, ...]]:
    """Number of times that each word occurs in the texts, as the tokens that the base writes it in."""
    rules = of(tokenizer)
    counts: Counter[tuple[str, ...]] = Counter()
    for tokens in encoded(tokenizer, texts):
        counts.update(rules.words(tokens))
    return counts
