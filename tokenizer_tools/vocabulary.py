"""What an extension adds to the vocabulary of a tokenizer. The one rule: every id of the base keeps its meaning."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

SLOT = re.compile(r"<unused_?\d+>|\[unused\d+\]|<\|(?:reserved_special_token|unused|extra|reserved)_\d+\|>|<SPECIAL_\d+>")
"""The names of tokens that makers leave free: those of Gemma, BERT, Llama 3 and Mistral, among others."""


@dataclass(frozen=True)
class NewToken:
    """A new token and its merge: the two tokens `left` and `right` joined."""

    left: str
    right: str
    base_ids: tuple[int, ...]
    """The ids of the base tokens into which the base splits the text of this token."""

    @property
    def text(self) -> str:
        """The text of the token, written as in the vocabulary."""
        return self.left + self.right


@dataclass(frozen=True)
class NewPiece:
    """A new piece of a SentencePiece vocabulary."""

    text: str
    """As in the vocabulary, with ▁ for a space."""
    base_ids: tuple[int, ...]
    """The ids of the base tokens into which the base splits this text."""
    score: float = 0.0
    """Its log-probability, for a unigram model. BPE knows only the order."""


def next_id(tokenizer: Any) -> int:
    """The id that the next new token gets: one more than the largest id, which can have holes below."""
    return max(tokenizer.get_vocab().values()) + 1


def slots(tokenizer: Any, used: Collection[int] = ()) -> list[int]:
    """The ids of reserved tokens that nothing uses, ascending: their names say so, and no role or chat template has them.

    `used` are ids that a config names.
    """
    template = json.dumps(tokenizer.chat_template or "")
    taken = set(tokenizer.special_tokens_map.values()) if tokenizer.special_tokens_map else set()
    return sorted(
        i
        for text, i in tokenizer.get_vocab().items()
        if SLOT.fullmatch(text) and text not in taken and text not in template and i not in used
    )


def rounded(found: int, first: int, multiple: int) -> int:
    """The most new tokens, up to `found`, for which a vocabulary that has `first` tokens becomes a multiple of `multiple`.

    Tensor parallelism divides the rows among devices. Rounding with tokens that exist needs no rows that stand for nothing:
    without a bias, no such row has a logit that is low in every state, nor has one of zeros. 0 when no number fits.
    """
    return max(0, (first + found) // multiple * multiple - first)
