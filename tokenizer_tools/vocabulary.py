"""What an extension adds to the vocabulary of a tokenizer. The one rule: every id of the base keeps its meaning."""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

SLOT = re.compile(
    r"<unused_?\d+>|\[unused\d+\]|\[UNUSED_TOKEN_\d+\]|<\|(?:reserved_special_token|unused|extra|reserved)_\d+\|>|"
    r"<\|placeholder\d+\|>|<SPECIAL_\d+>|\[control_\d+\]|<reserved_\d+>"
)
"""The names of tokens that makers leave free: those of Gemma, BERT, InternLM 2, Llama 3, Phi 3, Mistral and Baichuan, among
others."""


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


def ids(base: Any, count: int, spare: Sequence[int] = (), multiple: int = 1, rows: int = 0) -> list[int]:
    """The ids of at most `count` new tokens, ascending: `spare` ones of the base first (`slots`), then those behind its last.

    If spare ones are not enough, there are so many that the number of rows is a multiple of `multiple` (`rounded`). The model
    of the base has `rows`, with padding.
    """
    first, reused = next_id(base), list(spare[:count])
    behind = rounded(count - len(reused), first, multiple, rows) if count > len(reused) else 0
    return [*reused, *range(first, first + behind)]


def unrounded(base: Any, given: Sequence[int], multiple: int, rows: int = 0) -> str:
    """Why a multiple was not reached with the ids that new tokens were given, in one line; empty when it was."""
    size = max(rows, next_id(base), *(i + 1 for i in given)) if given else 0
    if not size % multiple:
        return ""
    return (
        f"rounding to a multiple of {multiple} does nothing: new tokens take rows that the base has, which keeps its {size:,}"
    )


def without(base: Any, state: dict[str, Any], given: Sequence[int]) -> set[int]:
    """Take the reserved tokens whose ids are among `given` out of the state of a tokenizer, in place; returns their ids.

    Raises ValueError when one of these ids is that of a token which is not reserved.
    """
    reused = {i for i in given if i < next_id(base)}
    if taken := sorted(reused - set(slots(base))):
        raise ValueError(
            f"{base.convert_ids_to_tokens(taken[0])!r} is no reserved token, so its id {taken[0]} stays what it is"
        )
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] not in reused]
    if isinstance(state["model"]["vocab"], dict):  # in a list, new tokens take the places of the old ones
        state["model"]["vocab"] = {text: i for text, i in state["model"]["vocab"].items() if i not in reused}
    return reused


def forget(bigger: Any, base: Any, reused: Collection[int]) -> None:
    """Make a tokenizer forget the names of reserved tokens: they would come back when it is written and read again."""
    if not reused:
        return
    names = {text for text, i in base.get_vocab().items() if i in reused}
    bigger._extra_special_tokens = [token for token in bigger._extra_special_tokens if str(token) not in names]
    for key in ("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"):
        bigger.init_kwargs.pop(key, None)


def rounded(found: int, first: int, multiple: int, rows: int = 0) -> int:
    """The most new tokens, up to `found`, for which a vocabulary that has `first` tokens becomes a multiple of `multiple`.

    Tensor parallelism divides the rows among devices. Rounding with tokens that exist needs no rows that stand for nothing:
    without a bias, no such row has a logit that is low in every state, nor has one of zeros. A base can have `rows` behind its
    tokens already: new ones that fit in there are not rounded, as the rows do not get more. 0 when no number fits.
    """
    return max(0, (first + found) // multiple * multiple - first, min(first + found, rows) - first)
