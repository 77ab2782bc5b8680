"""What the pieces of a SentencePiece vocabulary may look like, read off the pieces that the base has.

The one rule: a new piece looks like the usual pieces of the base. It crosses no space and no line, and joins letters with
digits or signs only where the base does so too. Tokens that are no text (control, bytes, names that a user defined) are never
a part of one.
"""

import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tokenizers import Tokenizer

from tokenizer_tools import roundtrip
from tokenizer_tools.roundtrip import SPACE
from tokenizer_tools.words import tallied

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""The name of the token of a byte."""
LONGEST = 16
"""Characters of a piece at most, as SentencePiece has it."""
LONGEST_RUN = 64
"""Tokens of a word at most. In scripts without spaces a word would be a sentence, of which no two are equal."""
COMMON = 0.01
"""From this share of the base's pieces of several characters on, what they join is joined in new ones too. A single odd piece,
one that a user has named for example, is no rule."""


@dataclass(frozen=True)
class Pieces:
    """The vocabulary of a base, and what its pieces may be joined to."""

    ids: dict[str, int]
    """The pieces that are text."""
    unlike: frozenset[str]
    """Names of tokens that are no text, those of bytes left out."""
    octets: dict[str, int]
    """The token of each byte; empty for a base without byte fallback."""
    common: frozenset[frozenset[str]]
    """Kinds of signs that pieces of the base join, see `_made_of`."""

    known: dict[str, bool] = field(default_factory=dict)
    """What `is_joined` has said already: it is asked for every token of a text."""

    def is_joined(self, piece: str) -> bool:
        """Whether a piece may be joined to others within a word: text without breaks of lines, controls or spaces inside."""
        if piece not in self.known:
            body = piece.removeprefix(SPACE)
            apart = piece in self.unlike or piece in self.octets or SPACE in body or any(map(_divides, body))
            self.known[piece] = not apart
        return self.known[piece]

    def may_be_new(self, text: str) -> bool:
        """Whether a text looks like pieces of the base.

        A single character must be a letter, or any sign where letters join signs. It is never one of ASCII: all text is full of
        them, whatever text is protected.
        """
        made_of = _made_of(text.removeprefix(SPACE))
        if not self.is_joined(text) or (len(made_of) > 1 and made_of not in self.common):
            return False
        joins_signs = frozenset("LS") in self.common
        return len(text) > 1 or (not text.isascii() and ("L" in made_of or ("S" in made_of and joins_signs)))

    def words(self, tokens: list[str]) -> Iterator[tuple[str, ...]]:
        """The runs of tokens of a text that may be joined. Bytes that spell a character are that character in it.

        Of a long run, parts that overlap by one token: every two neighbours are together in one part.
        """
        run: list[str] = []
        for token in self._characters(tokens):
            joined = self.is_joined(token)
            if run and (not joined or token.startswith(SPACE)):
                yield tuple(run)
                run = []
            if joined:
                if len(run) == LONGEST_RUN:
                    yield tuple(run)
                    run = run[-1:]
                run.append(sys.intern(token))  # one string for all occurrences: there are millions
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
                yield from _decoded(octets)
                octets = []
            if token:
                yield token

    def spelt(self, token: str) -> tuple[int, ...]:
        """The id of a piece, or the ids of the bytes of a character that is none."""
        if token in self.ids:
            return (self.ids[token],)
        return tuple(self.octets[f"<0x{byte:02X}>"] for byte in token.encode())


def unwritable(vocab: Iterable[str]) -> str:
    """`roundtrip.unwritable` of a vocabulary that falls back to bytes."""
    return roundtrip.unwritable({int(match[1], 16) for text in vocab if (match := BYTE.fullmatch(text))})


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
    several = [made_of for text in ids if len(body := text.replace(SPACE, "")) > 1 and (made_of := _made_of(body))]
    counts = Counter(made_of for made_of in several if len(made_of) > 1)
    common = frozenset(made_of for made_of, count in counts.items() if count >= COMMON * len(several))
    return Pieces(ids, frozenset(unlike), octets, common)


def _decoded(octets: list[str]) -> Iterator[str]:
    """The characters that tokens of bytes spell, and the names of those that spell none."""
    raw, k = bytes(int(name[3:5], 16) for name in octets), 0
    while k < len(raw):
        for length in range(1, 5):  # of a character in UTF-8
            try:
                character = raw[k : k + length].decode()
            except UnicodeDecodeError:
                continue
            yield character
            k += length
            break
        else:
            yield octets[k]
            k += 1


def _made_of(text: str) -> frozenset[str]:
    """The kinds of signs in a text, and "NN" beside them where it has several digits."""
    kinds = [_kind(sign) for sign in text]
    return frozenset(kinds) | ({"NN"} if kinds.count("N") > 1 else set())


def _divides(sign: str) -> bool:
    """Whether a sign is a control or a break of lines, which no piece is made of but those that the base has."""
    return unicodedata.category(sign) in ("Cc", "Zl", "Zp")


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


def word_counts(tokenizer: Tokenizer, texts: Iterable[str], thin: bool = False) -> Counter[tuple[str, ...]]:
    """Number of times that each word occurs in the texts, as the tokens that the base writes it in.

    With `thin`, rare words go where there are very many (`words.thinned`).
    """
    rules = of(tokenizer)
    return tallied((rules.words(tokens) for tokens in encoded(tokenizer, texts)), thin)
