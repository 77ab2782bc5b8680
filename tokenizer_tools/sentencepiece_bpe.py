"""Continue the merges of SentencePiece BPE, as Llama 2, Mistral and Gemma have it. Every id of the base keeps its meaning.

SentencePiece joins any two neighbours whose text is a piece, the piece with the highest score first. The new pieces have lower
scores than all of the base, so a text is first encoded as by the base, and then new pieces join its tokens further. A merge is
therefore known by its text, and a text stays as it is when no two of its neighbours make the text of a new piece.
https://github.com/google/sentencepiece/blob/master/src/bpe_model.cc
"""

import copy
import itertools
import json
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from tokenizer_tools import merges, pieces
from tokenizer_tools.vocabulary import NewPiece, forget, next_id, without
from tokenizer_tools.words import Progress, frequent, untold

Words = Counter[tuple[str, ...]]


def obstacle(tokenizer: Tokenizer) -> str:
    """Why this is not a BPE of SentencePiece whose merges can be continued; empty when it is."""
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    if model.get("type") != "BPE":
        return f"this is {model.get('type')}, not BPE"
    if not model.get("byte_fallback"):
        return "its BPE is neither byte-level nor does it fall back to bytes as that of SentencePiece does"
    if not any(pieces.BYTE.fullmatch(text) for text in model["vocab"]):
        # transformers reads every BPE of a tokenizer.model as one that falls back to bytes.
        return "its BPE has no tokens of bytes (a SentencePiece trained without byte_fallback), and drops what has no piece"
    if lost := pieces.unwritable(model["vocab"]):
        return f"its BPE is to fall back to bytes, but {lost}"
    if pieces.SPACE not in json.dumps([state["normalizer"], state["pre_tokenizer"]], ensure_ascii=False):
        return f"it falls back to bytes, but does not write {pieces.SPACE} for spaces as SentencePiece does"
    return ""


def guarded(tokenizer: Tokenizer, words: Words) -> set[str]:
    """The texts of neighbours, and the characters spelt in bytes, of protected text: no new piece may have such a text."""
    rules = pieces.of(tokenizer)
    found = {left + right for word in words for left, right in itertools.pairwise(word)}
    return found | {token for word in words for token in word if token not in rules.ids}


def learn(
    tokenizer: Tokenizer, words: Words, num_new: int, min_count: int, apart: Collection[str] = (), progress: Progress = untold
) -> list[NewPiece]:
    """The next `num_new` pieces; fewer if nothing occurs at least `min_count` times any more.

    Characters that the base spells in bytes and pieces made of two others, those first that save the most tokens of the text.
    `words` are the counts of `pieces.word_counts`; no piece has a text in `apart`. A text is left out if with it a piece of the
    base could be made in a way that the base does not know. The first n pieces are what n alone would have given.
    """
    rules = pieces.of(tokenizer)
    often = list(frequent(words, tuple))
    saved = _characters(rules, often, min_count, apart)
    known = rules.ids.keys() | saved.keys()
    ids_of = {token: rules.spelt(token) for word, _ in often for token in word if token in known}
    back = _Back(rules.ids)

    def refused(text: str) -> bool:
        odd = len(text) > pieces.LONGEST or not rules.may_be_new(text)
        return odd or text in known or text in apart or text in ids_of or back.reaches(text)

    characters = deque(sorted(saved, key=lambda text: (-saved[text], text)))
    found: list[NewPiece] = []

    def take(text: str) -> None:
        found.append(NewPiece(text, ids_of[text]))
        progress("pieces learnt", len(found), num_new)

    split = [(list(run), count) for word, count in often for run in _runs(word, known)]
    for left, right, count in merges.continued(split, min_count, refused, merges.text):
        # A merge saves no more than a character that it needs, for that is as frequent and takes two bytes or more.
        while characters and saved[characters[0]] >= count and len(found) < num_new:
            take(characters.popleft())
        if len(found) == num_new:
            break
        text = left + right
        ids_of[text] = ids_of[left] + ids_of[right]
        back.add(text)
        take(text)
    while characters and len(found) < num_new:
        take(characters.popleft())
    return found


def _characters(
    rules: pieces.Pieces, words: Iterable[tuple[Sequence[str], int]], min_count: int, apart: Collection[str]
) -> dict[str, int]:
    """Characters that the base spells in bytes and that may be pieces -> tokens that each saves.

    One that is part of a longer piece is left out: it could make that piece in a way that the base does not know.
    """
    counts: Counter[str] = Counter()
    for word, count in words:
        for token in word:
            if token not in rules.ids:
                counts[token] += count
    within = set().union(*rules.ids)
    return {
        text: count * (len(text.encode()) - 1)
        for text, count in counts.items()
        if count >= min_count and text not in within and text not in apart and rules.may_be_new(text)
    }


def _runs(word: Sequence[str], known: Collection[str]) -> Iterator[tuple[str, ...]]:
    """The parts of a word between the characters that stay bytes."""
    for is_known, run in itertools.groupby(word, known.__contains__):
        if is_known:
            yield tuple(run)


class _Back:
    """Ways to make a piece of the base out of two parts, of which at least one is none."""

    def __init__(self, base: Collection[str]):
        self.one: set[str] = set()
        """Texts that make a piece of the base together with another piece of the base."""
        self.two: defaultdict[str, set[str]] = defaultdict(set)
        """For texts that need another text that is no piece: all of these."""
        for piece in base:
            for k in range(1, len(piece)):
                left, right = piece[:k], piece[k:]
                if (left in base) != (right in base):
                    self.one.add(right if left in base else left)
                elif left not in base:
                    self.two[left].add(right)
                    self.two[right].add(left)

    def reaches(self, text: str) -> bool:
        """Whether with this text as a piece a piece of the base could be made in a new way."""
        return text in self.one or text in self.two.get(text, ())

    def add(self, text: str) -> None:
        """Take this text as a piece from now on."""
        self.one |= self.two.pop(text, set())


def extended(
    base: PreTrainedTokenizerBase, found: Sequence[NewPiece], ids: Sequence[int] | None = None
) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer with new pieces: their ids follow the last id of the base, their merges follow all its merges.

    A piece has a merge for every two pieces that make it, as SentencePiece has it. With `ids`, one for each piece, they get
    these instead: ids of reserved tokens (`vocabulary.slots`), which are then gone, and free ones behind the last id.
    """
    backend: Tokenizer = base.backend_tokenizer  # type: ignore[attr-defined]
    state, first = json.loads(backend.to_str()), next_id(base)
    ids = range(first, first + len(found)) if ids is None else ids
    reused = without(base, state, ids)
    for token in state["added_tokens"]:  # see byte_bpe.extended
        state["model"]["vocab"].setdefault(token["content"], token["id"])
    listed = state["model"]["merges"]
    as_text = bool(listed) and isinstance(listed[0], str)  # older files write a merge as one string, newer ones as a pair
    known = pieces.of(backend).ids.keys() | {piece.text for piece in found}
    for i, piece in zip(ids, found, strict=True):
        state["model"]["vocab"][piece.text] = i
        for k in range(1, len(piece.text)):
            left, right = piece.text[:k], piece.text[k:]
            if left in known and right in known:
                listed.append(f"{left} {right}" if as_text else [left, right])
    bigger = copy.deepcopy(base)
    bigger._tokenizer = Tokenizer.from_str(json.dumps(state))  # type: ignore[attr-defined]
    forget(bigger, base, reused)
    return bigger
