"""Which kinds of vocabularies can be extended, and by which room: one table, so that nobody else asks for the kind."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from tokenizer_tools import byte_bpe, pieces, protect, sentencepiece_bpe, unigram
from tokenizer_tools.vocabulary import NewPiece, NewToken


@dataclass(frozen=True)
class Kind:
    """A kind of vocabulary, with what its room does."""

    name: str
    obstacle: Callable[[Tokenizer], str]
    """Why a tokenizer is not of this kind or cannot be extended; empty when it can."""
    word_counts: Callable[..., Counter[Any]]
    """(tokenizer, texts, whether rare words may go where there are very many) -> how often each word occurs. What stands for a
    word is the room's own affair. The last may be left out; it is for text that is learnt from, never for protected text."""
    guarded: Callable[..., Any]
    """(tokenizer, words of protected text) -> what `learn` must leave alone so that this text is encoded as before."""
    learn: Callable[..., list[NewToken] | list[NewPiece]]
    """(tokenizer, words, number of tokens, least count, what is guarded, a `words.Progress`) -> the new tokens, in the order of
    their ids. The last two may be left out."""
    extended: Callable[..., Any]
    """(base, new tokens, their ids if they are not those behind the base's last) -> the tokenizer with them."""
    cuts: Callable[[Counter[Any]], float] = lambda words: 0.0
    """The share of words that begin with a combining mark or a joiner, because the base's rules for words cut there."""
    in_model_file: bool = True
    """Whether a tokenizer.model of such a base holds the same pieces."""
    coarser: bool = True
    """Whether a new token stands for its `base_ids` wherever it is. A piece of SentencePiece is known by its text alone: it can
    stand for other pieces of the base here and there, and those of a unigram model cut anew."""
    prefixes: bool = True
    """Whether the first tokens that are learnt are those that so many alone would have been."""

    def first(self, found: Sequence[Any], number: int, learn: Callable[[int], Sequence[Any]]) -> list[Any]:
        """The best `number` of the tokens that were `found`, or what `learn` makes of this number."""
        return list(found[:number] if self.prefixes or number == len(found) else learn(number))


KINDS = (
    Kind(
        "byte-level BPE", byte_bpe.obstacle, byte_bpe.word_counts, protect.pairs, byte_bpe.continue_merges, byte_bpe.extended,
        byte_bpe.cut_before_marks, in_model_file=False,
    ),
    Kind(
        "BPE of SentencePiece", sentencepiece_bpe.obstacle, pieces.word_counts, sentencepiece_bpe.guarded,
        sentencepiece_bpe.learn, sentencepiece_bpe.extended, coarser=False,
    ),
    Kind(
        "unigram", unigram.obstacle, unigram.word_counts, unigram.guarded, unigram.learn, unigram.extended, coarser=False,
        prefixes=False,
    ),
)  # fmt: skip


def of(tokenizer: Any) -> Kind:
    """The kind of a tokenizer of transformers. Raises ValueError, with the reason, when no room can extend it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError("it is not one of the tokenizers library, and only those are extended")
    if reason := _unsteady(tokenizer):
        raise ValueError(reason)
    reasons = [kind.obstacle(backend) for kind in KINDS]
    if "" in reasons:
        return KINDS[reasons.index("")]
    name = json.loads(backend.to_str())["model"].get("type")
    closest = {"BPE": reasons[1] if "not byte-level" in reasons[0] else reasons[0], "Unigram": reasons[2]}
    known = ", ".join(kind.name for kind in KINDS)
    raise ValueError(closest.get(name, f"its model is {name}, and only {known} are extended"))


def _unsteady(tokenizer: Any) -> str:
    """Why ids of a tokenizer do not say which text they stand for, or text does not always get the same; empty when they do."""
    holders: dict[int, str] = {}
    for text, i in tokenizer.get_vocab().items():
        # Added tokens outside of the vocabulary are numbered by its size, which is the id of another token if ids have holes.
        if (other := holders.setdefault(i, text)) != text:
            return f"the id {i} belongs to two tokens, {min(text, other)!r} and {max(text, other)!r}"
    if dropout := json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("dropout"):
        return f"it leaves merges out at random (dropout {dropout:g} in tokenizer.json), so text has no fixed encoding"
    return ""
