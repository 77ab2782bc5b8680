"""Continue the merges of a byte-level BPE tokenizer on new text. Every id of the base tokenizer must keep its meaning.

New merges come after all merges of the base. BPE applies merges in order, so a text is first encoded as by the base, and then
the new merges join these tokens further. Hence it is exact to learn the new merges from words that the base has encoded, and a
word without a new pair is encoded as before.
"""

import copy
import json
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerBase

from tokenizer_tools import merges
from tokenizer_tools.vocabulary import NewToken, next_id


def obstacle(tokenizer: Tokenizer) -> str:
    """Why the merges of this tokenizer cannot be continued; empty when they can."""
    state = json.loads(tokenizer.to_str())
    kind = state["model"].get("type")
    if kind != "BPE":
        return f"merges can be continued for byte-level BPE only, this is {kind}"
    if '"ByteLevel"' not in json.dumps(state["pre_tokenizer"]):
        return "its pre-tokenizer is not byte-level; BPE of SentencePiece is not extended"
    return ""


def word_counts(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """Number of times that each pre-token (roughly a word) occurs in the texts, keyed by its byte-level characters.

    Raises ValueError if the tokenizer is not a byte-level BPE tokenizer.
    """
    if reason := obstacle(tokenizer):
        raise ValueError(reason)
    assert tokenizer.pre_tokenizer is not None
    counts: Counter[str] = Counter()
    for text in texts:
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        counts.update(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    return counts


def cut_before_marks(words: Counter[str]) -> float:
    """The share of pre-tokens, as counted by `word_counts`, that begin with a combining mark: parts of words that were cut.

    Scripts of India write most vowels as such marks (category M of https://www.unicode.org/reports/tr44/), and a pre-tokenizer
    that takes only letters for parts of words cuts before each of them.
    """
    decoder = ByteLevel()
    cut = sum(count for word, count in words.items() if unicodedata.category(decoder.decode([word])[:1] or " ")[0] == "M")
    return cut / max(1, words.total())


def continue_merges(
    tokenizer: Tokenizer, words: Counter[str], num_new: int, min_count: int, kept_apart: Collection[tuple[str, str]] = ()
) -> list[NewToken]:
    """The next `num_new` merges, most frequent pair first; fewer if no pair occurs at least `min_count` times any more.

    `words` are the counts of `word_counts`. Of pairs with equal counts, the one that sorts first wins, so the result depends on
    the counts alone. A pair is skipped if its text is already a base token: joining it would let merges of the base apply where
    they did not apply before. Pairs in `kept_apart` (`protect.pairs`) are never joined. Raises ValueError if the tokenizer is
    not a byte-level BPE tokenizer.
    """
    if reason := obstacle(tokenizer):
        raise ValueError(reason)
    base_vocab = tokenizer.get_vocab(with_added_tokens=True)
    ids_of: dict[str, tuple[int, ...]] = {}
    split: list[tuple[list[str], int]] = []
    for word, count in sorted(words.items()):
        tokens = tokenizer.model.tokenize(word)
        if len(tokens) > 1:  # a word that is one token has no pair to join
            split.append(([token.value for token in tokens], count))
            ids_of.update((token.value, (token.id,)) for token in tokens)

    def refused(pair: tuple[str, str]) -> bool:
        joined = pair[0] + pair[1]
        return joined in base_vocab or joined in ids_of or pair in kept_apart

    new_tokens: list[NewToken] = []
    for left, right in merges.continued(split, min_count, refused, merges.pair):
        ids_of[left + right] = ids_of[left] + ids_of[right]
        new_tokens.append(NewToken(left, right, ids_of[left + right]))
        if len(new_tokens) == num_new:
            break
    return new_tokens


def extended(base: PreTrainedTokenizerBase, found: list[NewToken]) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer with new tokens: their ids follow the last id of the base, their merges follow all its merges.

    Raises ValueError when a token of the base would get another id.
    """
    backend = getattr(base, "backend_tokenizer", None)
    assert backend is not None, "continue_merges has accepted the tokenizer, so it has a backend"
    state = json.loads(backend.to_str())
    first = next_id(base)
    # Added tokens outside of the vocabulary are numbered after it when a tokenizer is read. A larger vocabulary would move
    # them, so they become part of it: without merges nothing else leads to them.
    for token in state["added_tokens"]:
        state["model"]["vocab"].setdefault(token["content"], token["id"])
    listed = state["model"]["merges"]
    as_text = bool(listed) and isinstance(listed[0], str)  # older files write a merge as one string, newer ones as a pair
    for i, token in enumerate(found):
        state["model"]["vocab"][token.text] = first + i
        listed.append(f"{token.left} {token.right}" if as_text else [token.left, token.right])
    bigger = copy.deepcopy(base)
    bigger._tokenizer = Tokenizer.from_str(json.dumps(state))  # type: ignore[attr-defined]
    had, has = base.get_vocab(), bigger.get_vocab()
    if moved := next((text for text, i in had.items() if has.get(text) != i), None):
        raise ValueError(f"the token {moved!r} would get another id ({had[moved]} -> {has.get(moved)})")
    return bigger
