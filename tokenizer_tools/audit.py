"""How well a tokenizer writes languages, and whether it is worth extending for one of them.

The rule of the advice: leave a vocabulary alone unless the new language clearly pays for it, and then stop at the size behind
which twice the rows no longer buy much.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tokenizer_tools import roundtrip
from tokenizer_tools.byte_bpe import octets
from tokenizer_tools.kinds import Kind
from tokenizer_tools.pieces import BYTE
from tokenizer_tools.texts import GRAPHEMES_PER_WORD, encode, words

SIZES = (1000, 2000, 4000, 8000, 16000)
"""Numbers of new tokens that are compared."""
CLOSE = 1.6
"""Up to so many times the fertility of the original language that a base writes best its vocabulary is left alone."""
WORTH = 0.04
"""Twice the tokens must save this share of the tokens of text, beside the share of parameters that they add."""
OCCURRENCES = 100
"""A new token has to be learnt from text: it must occur so often in it, or its rows stay close to where they start."""
LOST = 0.01
"""Share of lost characters from which on the vocabulary does not write the language, however few tokens it takes."""


@dataclass(frozen=True)
class Use:
    """How a tokenizer writes the text of one language."""

    documents: int
    size_bytes: int
    words: int
    unspaced: int
    """Characters, as readers see them, of scripts that put no space between words."""
    tokens: int
    parts: int
    """Tokens that hold a part of a character: byte fallback, and what byte-level BPE has in its place."""
    unknown: int
    used: int
    """Different tokens."""
    vocabulary: int
    characters: int
    """Of the text, without white space."""
    lost: int
    """Of these, what is not in the text that is decoded from its tokens."""

    @property
    def fertility(self) -> float:
        """Tokens per word. In scripts without spaces `GRAPHEMES_PER_WORD` characters stand for a word."""
        return self.tokens / max(1, self.words + self.unspaced / GRAPHEMES_PER_WORD)

    @property
    def per_character(self) -> float | None:
        """Tokens per character, for text that is mostly in a script without spaces; None for other text."""
        return self.tokens / self.unspaced if self.unspaced > self.words else None

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text that a token stands for."""
        return self.size_bytes / max(1, self.tokens)

    @property
    def part_share(self) -> float:
        """Share of the tokens that hold a part of a character."""
        return self.parts / max(1, self.tokens)

    @property
    def unknown_share(self) -> float:
        """Share of the tokens that stand for what the vocabulary cannot write."""
        return self.unknown / max(1, self.tokens)

    @property
    def lost_share(self) -> float:
        """Share of the characters that are lost, without a token or with one for unknown text."""
        return self.lost / max(1, self.characters)

    @property
    def unused_share(self) -> float:
        """Share of the vocabulary that this text never uses. Falls with more text."""
        return 1 - self.used / max(1, self.vocabulary)


def use(tokenizer: Any, texts: Iterable[str]) -> Use:
    """Measure text of one language."""
    partial, seen = parts(tokenizer), Counter[int]()
    documents = size = spaced = unspaced = characters = lost = 0
    left = iter(texts)
    while batch := list(islice(left, 256)):
        rows = encode(tokenizer, batch)
        there, gone = roundtrip.characters(tokenizer, batch, rows)
        characters, lost = characters + there, lost + gone
        for text, ids in zip(batch, rows, strict=True):
            documents, size = documents + 1, size + len(text.encode())
            seen.update(ids)
            more, signs = words(text)
            spaced, unspaced = spaced + more, unspaced + signs
    return Use(
        documents, size, spaced, unspaced, seen.total(), sum(seen[i] for i in partial),
        seen[tokenizer.unk_token_id] if tokenizer.unk_token_id is not None else 0, len(seen), len(tokenizer.get_vocab()),
        characters, lost,
    )  # fmt: skip


def parts(tokenizer: Any) -> set[int]:
    """The ids of all tokens that hold a part of a character."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    byte_level = '"ByteLevel"' in json.dumps([state["pre_tokenizer"], state["decoder"]])
    return {i for text, i in tokenizer.get_vocab().items() if (_is_part(text) if byte_level else BYTE.fullmatch(text))}


def _is_part(text: str) -> bool:
    try:
        octets(text).decode()
    except UnicodeDecodeError:
        return True
    except KeyError:  # a special token can be written in other letters
        pass
    return False


HEAD = "lm_head.weight"
"""How the name of a head's matrix ends."""


@dataclass(frozen=True)
class Matrices:
    """What a row costs in a model."""

    row: int
    """Parameters of one more token: a row of the embeddings, and one of the head if it is not tied to them."""
    model: int
    """Parameters of the whole model."""

    @staticmethod
    def of(folder: Path) -> "Matrices | None":
        """Read from config.json and the heads of the safetensors in a model's folder; None when they do not say.

        Where the config does not say whether the head is tied, it is not when it is among the weights.
        """
        config, weights = folder / "config.json", sorted(folder.glob("*.safetensors"))
        if not config.is_file() or not weights:
            return None
        whole = json.loads(config.read_text(encoding="utf-8"))
        said = {**whole, **whole.get("text_config", {})}
        total, tied = 0, True
        for path in weights:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    tied, number = tied and not name.endswith(HEAD), 1
                    for length in file.get_slice(name).get_shape():
                        number *= length
                    total += number
        width = next((said[key] for key in ("hidden_size", "n_embd", "d_model") if key in said), None)
        told = said.get("tie_word_embeddings")
        return Matrices(width * (1 if (tied if told is None else told) else 2), total) if width else None


@dataclass(frozen=True)
class Kept:
    """How a vocabulary writes documents of original languages."""

    documents: int
    same: int
    """Documents with the same ids as by the base."""
    tokens: int
    base_tokens: int
    """Of the same documents by the base."""

    @property
    def identical(self) -> float | None:
        """Share of the documents with the same ids; None without documents."""
        return self.same / self.documents if self.documents else None

    @property
    def lengthened(self) -> float | None:
        """Tokens for one of the base's; None without any."""
        return self.tokens / self.base_tokens if self.base_tokens else None


@dataclass(frozen=True)
class Point:
    """A vocabulary with so many new tokens."""

    new_tokens: int
    tokens: int
    """Of text in the new language that nothing was learnt from."""
    size_bytes: int
    """Of the same text."""
    fertility: float
    kept: dict[str, Kept]
    """Of each set of documents of original languages, by its name."""

    @property
    def identical(self) -> float | None:
        """Share of the documents of all sets with the same ids as by the base; None without documents."""
        return self._all.identical

    @property
    def original_tokens(self) -> float | None:
        """Tokens of the documents of all sets, for one of the base's; None without documents."""
        return self._all.lengthened

    @property
    def _all(self) -> Kept:
        return Kept(*(sum(column) for column in zip((0, 0, 0, 0), *map(astuple, self.kept.values()), strict=True)))

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text that a token stands for."""
        return self.size_bytes / max(1, self.tokens)


def curve(
    base: Any, grown: Mapping[int, Any], new: Sequence[str], originals: Mapping[str, Sequence[str]]
) -> list[Point]:  # fmt: skip
    """The base (as 0) and the tokenizers of `grown` (number of new tokens -> tokenizer) on the same text, smallest first.

    `originals` are sets of documents of original languages, by name.
    """
    units = [words(text) for text in new]
    spread = max(1, sum(spaced + unspaced / GRAPHEMES_PER_WORD for spaced, unspaced in units))
    size, before = sum(len(text.encode()) for text in new), {name: encode(base, each) for name, each in originals.items()}
    points = []
    for number, tokenizer in sorted({0: base, **grown}.items()):
        tokens = sum(map(len, encode(tokenizer, new)))
        kept = {name: _kept(before[name], encode(tokenizer, each)) for name, each in originals.items()}
        points.append(Point(number, tokens, size, tokens / spread, kept))
    return points


def _kept(before: Sequence[list[int]], after: Sequence[list[int]]) -> Kept:
    same = sum(a == b for a, b in zip(before, after, strict=True))
    return Kept(len(before), same, sum(map(len, after)), sum(map(len, before)))


def sizes(found: int) -> list[int]:
    """The numbers of new tokens to compare when so many were learnt: all `SIZES` below it, and it."""
    return [*(n for n in SIZES if n < found), found][: len(SIZES)] if found else []


def grown(kind: Kind, base: Any, found: Sequence[Any], learn: Callable[[int], Sequence[Any]]) -> dict[int, Any]:
    """Number of new tokens -> tokenizer, for all `sizes` up to the tokens `found`. `learn` gives fewer where need be."""
    return {number: kind.extended(base, kind.first(found, number, learn)) for number in sizes(len(found))}


@dataclass(frozen=True)
class Advice:
    """Leave the vocabulary, or extend it."""

    new_tokens: int
    """0: leave it."""
    reason: str
    """In one line."""
    points: list[Point] = field(default_factory=list)

    @property
    def text(self) -> str:
        """As a sentence."""
        what = f"extend by {self.new_tokens:,} tokens" if self.new_tokens else "leave the vocabulary as it is"
        return f"{what}: {self.reason}"


def close(new: Use, originals: Sequence[Use]) -> Advice | None:
    """The advice to leave the vocabulary of a base that writes the new language well already; else None.

    Without text of an original language there is nothing to compare with, and None. Text that is lost is not written well.
    """
    if not originals or new.lost_share > LOST:
        return None
    usual = min(each.fertility for each in originals)  # code, and languages that the base writes badly, are no measure
    if new.fertility < CLOSE * usual:
        return Advice(
            0, f"{new.fertility:.2f} tokens per word, {new.fertility / usual:.2f} x the {usual:.2f} of what it writes best; "
            f"below {CLOSE} x, what new tokens save is small beside what their rows must learn"
        )  # fmt: skip
    return None


def advise(points: Sequence[Point], matrices: Matrices | None) -> Advice:
    """The number of new tokens behind which twice as many no longer pay. `points` as of `curve`, with the base first.

    Every size is reached from the one before, and is worth it as long as it saves `WORTH` of the tokens more than the share of
    the model's parameters that its rows add. Learn with `OCCURRENCES` as the least count, so that larger vocabularies
    than the text supports are not among the points.

    Kneedle and other geometric knees were not used: they depend on the largest size that is looked at.
    """
    if len(points) < 2:
        return Advice(0, f"no pair of tokens that may be joined occurs {OCCURRENCES} times in the text", list(points))
    best = points[0]
    for smaller, larger in pairwise(points):
        saved = 1 - larger.tokens / max(1, smaller.tokens)
        rows = (larger.new_tokens - smaller.new_tokens) * matrices.row / matrices.model if matrices else 0.0
        if saved < WORTH + rows:
            stop = (
                f"{larger.new_tokens:,} would save {saved:.1%} more of the tokens"
                f"{f' for {rows:.1%} more parameters' if matrices else ''}"
            )
            break
        best = larger
    else:
        stop = f"{best.new_tokens:,} is the most for which every token occurs {OCCURRENCES} times in the text"
    if not best.new_tokens:
        return Advice(0, stop, list(points))
    base, cost = points[0], f"{best.new_tokens:,} rows"
    if matrices:
        rows = best.new_tokens * matrices.row
        cost = f"{rows / 1e6:.1f} M parameters ({rows / matrices.model:.1%} of the model)"
    kept = "" if best.identical is None else f"{best.identical:.1%} of unseen original documents are encoded as before; "
    reason = (
        f"{1 - best.tokens / base.tokens:.0%} fewer tokens ({base.bytes_per_token:.2f} to {best.bytes_per_token:.2f} bytes per "
        f"token) for {cost}; {kept}{stop}"
    )
    return Advice(best.new_tokens, reason, list(points))


def plain(found: Use | Point) -> dict[str, Any]:
    """All figures, also the derived ones, by name."""
    derived = {name for name, value in vars(type(found)).items() if isinstance(value, property) and name[0] != "_"}
    return asdict(found) | {name: getattr(found, name) for name in sorted(derived)}
