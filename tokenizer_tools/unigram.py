"""New pieces for a unigram model of SentencePiece, by expectation maximisation with the base's log-probabilities fixed.

The model writes a text in the pieces whose log-probabilities have the largest sum, so a new piece can change any text that has
its letters. A text stays as it is exactly when no new piece is in its best writing: then that is the best one of the base too.
Kudo 2018, https://arxiv.org/abs/1804.10959, section 3.2; counts are those of the best writing of each word.
"""

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerBase

from tokenizer_tools import pieces
from tokenizer_tools.vocabulary import NewPiece, forget, next_id, without
from tokenizer_tools.words import Progress, tallied, untold

SEEDS = 8
"""Candidates at the start for each piece that is wanted."""
MOST_WORDS = 200_000
"""Different words that candidates are taken from, the most frequent ones."""
STEPS = 2
"""Steps of expectation maximisation before candidates are dropped."""
KEPT = 0.5
"""Share of the candidates that are left after each time that some are dropped."""
UNKNOWN = 10.0
"""How far the log-probability of an unknown character is below the lowest of a piece, as in SentencePiece."""
NEVER = -1e4
"""The log-probability of added tokens that become pieces, so that their ids stay: text is written in any other pieces first.

It is the lowest one, on which that of an unknown character hangs (`UNKNOWN`). So `obstacle` allows it only where every
character of a piece is a piece too: then no writing can trade an unknown character for a piece, and all lose the same.
"""
WORD = re.compile(f"{pieces.SPACE}*[^{pieces.SPACE}]+|{pieces.SPACE}+")


def obstacle(tokenizer: Tokenizer) -> str:
    """Why this is not a unigram model that can get more pieces; empty when it is."""
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    if model.get("type") != "Unigram":
        return f"this is {model.get('type')}, not a unigram model"
    names = [text for text, _ in model["vocab"]]
    if pieces.SPACE not in json.dumps([state["normalizer"], state["pre_tokenizer"]], ensure_ascii=False):
        return f"its unigram model does not write {pieces.SPACE} for spaces as SentencePiece does"
    if model.get("byte_fallback") and (lost := pieces.unwritable(names)):
        return f"its unigram model is to fall back to bytes, but {lost}"
    held = set(names)
    after = [token for token in state["added_tokens"] if token["content"] not in held]
    if sorted(token["id"] for token in after) != list(range(len(names), len(names) + len(after))):
        return "ids behind the pieces of its unigram model have no token, and new pieces must follow without a hole"
    behind = _behind(state)
    for text in behind:
        if any(token.id == model["unk_id"] or pieces.BYTE.fullmatch(token.value) for token in tokenizer.model.tokenize(text)):
            return (
                f"its unigram model cannot spell the added token {text!r} behind its pieces: as a piece, text would become it"
            )
    if behind and (alone := _only_inside(state)):
        return (
            f"with the added token {behind[0]!r} behind the pieces of its unigram model, text with {alone[0]!r} could be "
            f"written in other pieces: {alone[0]!r} is no piece itself, but a part of {alone[1]!r}"
        )
    if wide := next((name for name in names if re.search(f"[^{pieces.SPACE}]{pieces.SPACE}", name)), None):
        return f"a piece of its unigram model crosses words: {wide!r}"
    return ""


def _behind(state: dict[str, Any]) -> list[str]:
    """The added tokens whose ids follow the pieces, in the order of their ids."""
    held = {text for text, _ in state["model"]["vocab"]}
    return [
        token["content"] for token in sorted(state["added_tokens"], key=lambda each: each["id"]) if token["content"] not in held
    ]


def _only_inside(state: dict[str, Any]) -> tuple[str, str] | None:
    """A character that is a part of a piece and no piece itself, with this piece; None when there is none."""
    held = {text for text, _ in state["model"]["vocab"]}
    names = {token["content"] for token in state["added_tokens"]} | {state["model"]["vocab"][state["model"]["unk_id"] or 0][0]}
    texts = [text for text in sorted(held - names) if not pieces.BYTE.fullmatch(text)]
    return next(((sign, text) for text in texts for sign in text if sign not in held), None)


def word_counts(tokenizer: Tokenizer, texts: Iterable[str], thin: bool = False) -> Counter[str]:
    """Number of times that each word occurs in the texts, written as in the vocabulary: the parts that no piece crosses.

    With `thin`, rare words go where there are very many (`words.thinned`).
    """
    rules = pieces.of(tokenizer)
    documents = pieces.encoded(tokenizer, texts)
    return tallied(((word for part in rules.between(tokens) for word in WORD.findall(part)) for tokens in documents), thin)


def guarded(tokenizer: Tokenizer, words: Counter[str]) -> list[str]:
    """The words of protected text: no new piece may be in the best writing of any."""
    return sorted(words)


class _Base:
    """The pieces of the base as an extension will have them, with those that its added tokens become."""

    def __init__(self, tokenizer: Tokenizer):
        state = json.loads(tokenizer.to_str())
        model = state["model"]
        self.vocab: list[tuple[str, float]] = [(text, score) for text, score in model["vocab"]]
        self.floor = min(score for _, score in self.vocab)
        """The lowest log-probability of a piece of the base. No new piece is below it."""
        self.vocab += [(text, NEVER) for text in _behind(state)]
        self.unknown = min(score for _, score in self.vocab) - UNKNOWN
        """The log-probability of a character without a piece."""
        self.unk_id: int | None = model["unk_id"]
        self.byte_fallback = bool(model.get("byte_fallback"))

    def model(self, scores: Mapping[str, float]) -> Unigram:
        """The model with more pieces."""
        return Unigram([*self.vocab, *scores.items()], self.unk_id, self.byte_fallback)


def learn(
    tokenizer: Tokenizer, words: Counter[str], num_new: int, min_count: int, apart: Collection[str] = (),
    progress: Progress = untold,
) -> list[NewPiece]:  # fmt: skip
    """At most `num_new` pieces, the most probable first, each at least `min_count` times in the words.

    `words` are those of `word_counts`. Candidates start as the frequent parts of words. In turns their log-probabilities are
    estimated, and those are dropped without which the text loses the least. No piece is in the writing of a word of `apart`.
    """
    base = _Base(tokenizer)
    scores = _seeds(tokenizer, base, words, num_new * SEEDS, min_count)
    while True:
        counts: Counter[str] = Counter()
        for _ in range(STEPS):
            counts = _used(base.model(scores), words, progress)
            total = counts.total()
            # A piece that is not used enough goes; one that is gets its share of all tokens.
            scores = {text: max(math.log(counts[text] / total), base.floor) for text in scores if counts[text] >= min_count}
            scores = _clean(base, scores, apart)
        losses = _losses(base, scores, counts)
        size = max(num_new, int(len(scores) * KEPT))
        last = len(scores) <= num_new or size == num_new
        best = sorted(scores, key=lambda text: (-losses[text], text))[:size]
        scores = {text: scores[text] for text in best}
        if last:
            break
    # Dropping a piece changes only writings that have it, so words of `apart` are still written as by the base.
    ordered = sorted(scores, key=lambda text: (-scores[text], text))
    return [NewPiece(text, tuple(token.id for token in tokenizer.model.tokenize(text)), scores[text]) for text in ordered]


def _seeds(tokenizer: Tokenizer, base: _Base, words: Counter[str], most: int, min_count: int) -> dict[str, float]:
    """Frequent parts of words that look like pieces of the base -> their first log-probabilities."""
    rules, plain = pieces.of(tokenizer), base.model({})
    counts: Counter[str] = Counter()
    for word, count in words.most_common(MOST_WORDS):
        for letters in rules.words(list(word)):
            run = "".join(letters)
            for start in range(len(run)):
                for end in range(start + 1, min(len(run), start + pieces.LONGEST) + 1):
                    counts[run[start:end]] += count
    held = {text for text, _ in base.vocab}
    often = {text: count for text, count in counts.items() if count >= min_count and text not in held}
    fit = {text: count for text, count in often.items() if rules.may_be_new(text)}
    best = sorted(fit, key=lambda text: (-fit[text] * len(text), text))
    spelt = (text for text in best if base.unk_id not in [token.id for token in plain.tokenize(text)])
    total = _used(plain, words).total()
    return {text: max(math.log(fit[text] / total), base.floor) for text, _ in zip(spelt, range(most), strict=False)}


def _used(model: Unigram, words: Counter[str], progress: Progress = untold) -> Counter[str]:
    """How often each piece is used in the best writings of the words."""
    counts: Counter[str] = Counter()
    for number, (word, count) in enumerate(words.items()):
        if not number % 1000:
            progress("words written in pieces", number, len(words))
        for token in model.tokenize(word):
            counts[token.value] += count
    return counts


def _clean(base: _Base, scores: dict[str, float], apart: Collection[str]) -> dict[str, float]:
    """The pieces without those that are in the best writing of a word of `apart`, until there is none."""
    left, suspects = dict(scores), list(apart)
    while suspects:
        model = base.model(left)
        hit = {word: [token.value for token in model.tokenize(word) if token.value in left] for word in suspects}
        # A word without a new piece stays so when pieces go.
        suspects = [word for word, found in hit.items() if found]
        left = {text: score for text, score in left.items() if text not in {piece for found in hit.values() for piece in found}}
    return left


def _losses(base: _Base, scores: Mapping[str, float], counts: Counter[str]) -> dict[str, float]:
    """What the log-probability of the text loses without each piece: its count times the distance to its next best writing."""
    every = {**dict(base.vocab), **scores}
    return {text: counts[text] * (scores[text] - _without(text, every, base.unknown)) for text in scores}


def _without(text: str, scores: Mapping[str, float], unknown: float) -> float:
    """The log-probability of the best writing of a piece's text in other pieces (Viterbi)."""
    best = [0.0] + [-math.inf] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(end):
            part = text[start:end]
            score = scores.get(part, unknown if len(part) == 1 else -math.inf)
            if part != text or len(text) == 1:
                best[end] = max(best[end], best[start] + (unknown if part == text else score))
    return best[-1]


def extended(
    base: PreTrainedTokenizerBase, found: Sequence[NewPiece], ids: Sequence[int] | None = None
) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer with new pieces. Their ids follow the last id of the base, or are `ids` (`vocabulary.without`)."""
    state, first = json.loads(base.backend_tokenizer.to_str()), next_id(base)  # type: ignore[attr-defined]
    ids = range(first, first + len(found)) if ids is None else ids
    reused, vocab = without(base, state, ids), state["model"]["vocab"]
    # When a tokenizer is read, added tokens are numbered behind the pieces, so new pieces would move those that stand there.
    vocab += [[text, NEVER] for text in _behind(state)]
    for i, piece in zip(ids, found, strict=True):
        vocab[i : i + 1] = [[piece.text, piece.score]]
    bigger = copy.deepcopy(base)
    bigger._tokenizer = Tokenizer.from_str(json.dumps(state))  # type: ignore[attr-defined]
    forget(bigger, base, reused)
    return bigger
