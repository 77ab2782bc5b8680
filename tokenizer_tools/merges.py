"""Continue the merges of a byte-level BPE tokenizer on new text, so that every base id keeps its meaning.

New merges come after all base merges. BPE applies merges in order, so a text is first encoded as the base would and only then
joined further; hence training on base-encoded words is exact, and a word without a new pair is encoded as before.
BPE for text: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909.
"""

import copy
import heapq
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class NewToken:
    """One merge: two earlier tokens joined."""

    left: str
    right: str
    base_ids: tuple[int, ...]
    """The base tokens that spelt it before."""

    @property
    def text(self) -> str:
        """As the vocabulary spells it (byte-level characters)."""
        return self.left + self.right


def word_counts(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """How often each pre-token occurs, in the vocabulary's byte-level spelling. Raises ValueError without a pre-tokenizer."""
    if tokenizer.pre_tokenizer is None:
        raise ValueError("the tokenizer has no pre-tokenizer, so it is not byte-level BPE")
    counts: Counter[str] = Counter()
    for text in texts:
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        counts.update(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    return counts


def continue_merges(tokenizer: Tokenizer, words: Counter[str], num_new: int, min_count: int) -> list[NewToken]:
    """The next `num_new` merges by frequency; fewer when no pair occurs `min_count` times any more.

    Ties go to the pair that sorts first, so the result depends on the counts alone. A pair whose text is a base token already
    is left out: joining it would let base merges act where they did not before. Raises ValueError unless it is byte-level BPE.
    """
    state = json.loads(tokenizer.to_str())
    if state["model"]["type"] != "BPE" or '"ByteLevel"' not in json.dumps(state["pre_tokenizer"]):
        raise ValueError(f"merges can be continued for byte-level BPE only, this is {state['model']['type']}")
    base_vocab = tokenizer.get_vocab(with_added_tokens=True)
    ids_of: dict[str, tuple[int, ...]] = {}
    split: list[list[str]] = []
    counts: list[int] = []
    for word, count in sorted(words.items()):
        tokens = tokenizer.model.tokenize(word)
        if len(tokens) > 1:
            split.append([token.value for token in tokens])
            counts.append(count)
            ids_of.update((token.value, (token.id,)) for token in tokens)
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for i, tokens in enumerate(split):
        for pair in itertools.pairwise(tokens):
            pairs[pair] += counts[i]
            where[pair].add(i)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    found: list[NewToken] = []
    while heap and len(found) < num_new:
        negative, pair = heapq.heappop(heap)
        if pairs[pair] != -negative:
            continue  # an old count; the right one is in the heap too
        if -negative < min_count:
            break
        joined = pair[0] + pair[1]
        if joined in base_vocab or joined in ids_of:
            continue
        ids_of[joined] = ids_of[pair[0]] + ids_of[pair[1]]
        found.append(NewToken(*pair, ids_of[joined]))
        for changed in _join(pair, joined, split, counts, pairs, where):
            heapq.heappush(heap, (-pairs[changed], changed))
    return found


def _join(pair: Any, joined: str, split: Any, counts: Any, pairs: Any, where: Any) -> set[tuple[str, str]]:
    """Apply one merge to every word that has it; returns the pairs whose counts changed."""
    changed: set[tuple[str, str]] = set()
    for i in sorted(where.pop(pair)):
        before = split[i]
        after: list[str] = []
        for token in before:
            if after and after[-1] == pair[0] and token == pair[1]:
                after[-1] = joined
            else:
                after.append(token)
        split[i] = after
        for tokens, sign in ((before, -1), (after, 1)):
            for neighbour in itertools.pairwise(tokens):
                pairs[neighbour] += sign * counts[i]
                changed.add(neighbour)
                if sign == 1:
                    where[neighbour].add(i)
    return {p for p in changed if pairs[p] > 0}


def extended(base: PreTrainedTokenizerBase, found: list[NewToken]) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer with the new tokens right after its last id, in order, and their merges after all others."""
    backend = getattr(base, "backend_tokenizer", None)
    assert backend is not None, "continue_merges has accepted the tokenizer, so it has a backend"
    state = json.loads(backend.to_str())
    first = len(base)
    merges = state["model"]["merges"]
    as_text = bool(merges) and isinstance(merges[0], str)
    for i, token in enumerate(found):
        state["model"]["vocab"][token.text] = first + i
        merges.append(f"{token.left} {token.right}" if as_text else [token.left, token.right])
    bigger = copy.deepcopy(base)
    bigger._tokenizer = Tokenizer.from_str(json.dumps(state))  # type: ignore[attr-defined]
    return bigger
