"""Continue the merges of a byte-level BPE tokenizer on new text. Every id of the base tokenizer must keep its meaning.

New merges come after all merges of the base. BPE applies merges in order, so a text is first encoded as by the base, and then
the new merges join these tokens further. Hence it is exact to learn the new merges from words that the base has encoded, and a
word without a new pair is encoded as before.
"""

import copy
import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerBase

from tokenizer_tools import merges, roundtrip
from tokenizer_tools.vocabulary import NewToken, forget, next_id, without
from tokenizer_tools.words import Progress, counted, frequent, untold

_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {chr(byte): byte for byte in _PLAIN} | {
    chr(256 + k): byte for k, byte in enumerate(byte for byte in range(256) if byte not in _PLAIN)
}
"""The letter by which byte-level BPE writes each byte (GPT-2's table, https://github.com/openai/gpt-2/blob/master/src/encoder.py)."""


def obstacle(tokenizer: Tokenizer) -> str:
    """Why the merges of this tokenizer cannot be continued; empty when they can."""
    state = json.loads(tokenizer.to_str())
    kind = state["model"].get("type")
    if kind != "BPE":
        return f"merges can be continued for byte-level BPE only, this is {kind}"
    if '"ByteLevel"' not in json.dumps(state["pre_tokenizer"]):
        return "its pre-tokenizer is not byte-level"
    # Without one of ASCII a single sign is lost, which an audit counts; without others it is scripts.
    if lost := roundtrip.unwritable({*range(128), *(BYTES[text] for text in state["model"]["vocab"] if text in BYTES)}):
        return f"its byte-level BPE {lost}"
    if state["model"].get("ignore_merges") and tokenizer.pre_tokenizer is not None:  # words of the vocabulary are taken whole
        for token in state["added_tokens"]:
            parts = [part for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(token["content"])]
            if parts == [token["content"]] and token["content"] not in state["model"]["vocab"]:
                return f"with ignore_merges, text that spells the added token {token['content']!r} would become that token"
    return ""


JOINERS = "\u200c\u200d"
"""Signs without width within a word, at which its letters are joined or kept apart."""


def word_counts(tokenizer: Tokenizer, texts: Iterable[str], thin: bool = False) -> Counter[str]:
    """`words.counted`, keyed by byte-level characters. Raises ValueError if the tokenizer is not a byte-level BPE tokenizer."""
    if reason := obstacle(tokenizer):
        raise ValueError(reason)
    return counted(tokenizer, texts, thin)


def cut_before_marks(words: Counter[str]) -> float:
    """The share of pre-tokens, as counted by `word_counts`, that begin with a combining mark or a joiner: parts of cut words.

    Scripts of India write most vowels as such marks (category M of https://www.unicode.org/reports/tr44/), Persian divides
    parts of a word by the joiner U+200C, and a pre-tokenizer that takes only letters for parts of words cuts before each.
    """
    decoder = ByteLevel()
    first = ((decoder.decode([word])[:1] or " ", count) for word, count in words.items())
    cut = sum(count for letter, count in first if letter in JOINERS or unicodedata.category(letter)[0] == "M")
    return cut / max(1, words.total())


def octets(token: str) -> bytes:
    """The bytes that a token stands for, which is written in byte-level characters."""
    return bytes(BYTES[letter] for letter in token)


def plain(token: NewToken) -> str | None:
    """The text of a token as it is read; None if it begins or ends inside a character.

    Such tokens are not refused: of 2,000 tokens learnt from Japanese 170 were parts of characters, the text was 5 % longer
    without those that mix a part with a complete character, and text in other scripts was not disturbed less for it.
    """
    try:
        return octets(token.text).decode()
    except UnicodeDecodeError:
        return None


def continue_merges(
    tokenizer: Tokenizer, words: Counter[str], num_new: int, min_count: int, kept_apart: Collection[tuple[str, str]] = (),
    progress: Progress = untold,
) -> list[NewToken]:  # fmt: skip
    """The next `num_new` merges, most frequent pair first; fewer if no pair occurs at least `min_count` times any more.

    `words` are the counts of `word_counts`; of very many words, only the most frequent are learnt from. Of pairs with
    equal counts, the one that sorts first wins, so the result depends on the counts alone, and its first n tokens are what n
    alone would have given. A pair is skipped if its text is already a base token: joining it would let merges of the base apply
    where they did not apply before. Pairs in `kept_apart` (`protect.pairs`) are never joined. Raises ValueError for a tokenizer
    of another kind.
    """
    if reason := obstacle(tokenizer):
        raise ValueError(reason)
    base_vocab = tokenizer.get_vocab(with_added_tokens=True)
    ids_of: dict[str, tuple[int, ...]] = {}

    def written(word: str) -> list[str]:
        tokens = tokenizer.model.tokenize(word)
        if len(tokens) < 2:  # it has no pair to join
            return []
        ids_of.update((token.value, (token.id,)) for token in tokens)
        return [sys.intern(token.value) for token in tokens]  # one string for all occurrences of a token: there are millions

    split = [(tokens, count) for tokens, count in frequent(words, written) if tokens]

    def refused(pair: tuple[str, str]) -> bool:
        joined = pair[0] + pair[1]
        return joined in base_vocab or joined in ids_of or pair in kept_apart

    new_tokens: list[NewToken] = []
    for left, right, _ in merges.continued(split, min_count, refused, merges.pair):
        ids_of[left + right] = ids_of[left] + ids_of[right]
        new_tokens.append(NewToken(left, right, ids_of[left + right]))
        progress("tokens learnt", len(new_tokens), num_new)
        if len(new_tokens) == num_new:
            break
    return new_tokens


def extended(
    base: PreTrainedTokenizerBase, found: Sequence[NewToken], ids: Sequence[int] | None = None
) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer with new tokens: their ids follow the last id of the base, their merges follow all its merges.

    With `ids`, one for each token, they get these instead: ids of reserved tokens (`vocabulary.slots`), which are then gone,
    and free ones behind the last id. Raises ValueError when any other token of the base would get another id.
    """
    backend = getattr(base, "backend_tokenizer", None)
    assert backend is not None, "continue_merges has accepted the tokenizer, so it has a backend"
    state = json.loads(backend.to_str())
    first = next_id(base)
    ids = range(first, first + len(found)) if ids is None else ids
    reused = without(base, state, ids)
    # Added tokens outside of the vocabulary are numbered after it when a tokenizer is read. A larger vocabulary would move
    # them, so they become part of it: without merges nothing else leads to them.
    for token in state["added_tokens"]:
        state["model"]["vocab"].setdefault(token["content"], token["id"])
    listed = state["model"]["merges"]
    as_text = bool(listed) and isinstance(listed[0], str)  # older files write a merge as one string, newer ones as a pair
    for i, token in zip(ids, found, strict=True):
        state["model"]["vocab"][token.text] = i
        listed.append(f"{token.left} {token.right}" if as_text else [token.left, token.right])
    bigger: Any = copy.deepcopy(base)
    bigger._tokenizer = Tokenizer.from_str(json.dumps(state))
    forget(bigger, base, reused)
    had, has = {text: i for text, i in base.get_vocab().items() if i not in reused}, bigger.get_vocab()
    if moved := next((text for text, i in had.items() if has.get(text) != i), None):
        raise ValueError(f"the token {moved!r} would get another id ({had[moved]} -> {has.get(moved)})")
    if missing := next((token.text for i, token in zip(ids, found, strict=True) if has.get(token.text) != i), None):
        raise ValueError(f"the new token {missing!r} would get another id than it was given ({has.get(missing)})")
    return bigger
