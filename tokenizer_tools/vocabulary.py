"""What an extension adds to the vocabulary of a tokenizer. The one rule: every id of the base keeps its meaning."""

from dataclasses import dataclass
from typing import Any


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
