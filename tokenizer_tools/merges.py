"""The learning of byte-pair encoding: which neighbours are joined next. It knows nothing of bytes, words or files.

BPE for text: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Name = Any
"""What a merge is known by: the pair itself, or the text that it makes. Names can be sorted."""


def pair(left: str, right: str) -> Name:
    """A merge known by its two sides: BPE with a list of merges."""
    return left, right


def text(left: str, right: str) -> Name:
    """A merge known by the text that it makes, from whatever two sides: BPE of SentencePiece."""
    return left + right


def continued(
    words: Iterable[tuple[list[str], int]], min_count: int, refused: Callable[[Name], bool], name_of: Callable[[str, str], Name]
) -> Iterator[tuple[str, str]]:
    """The next merges, most frequent first, as the pair that is joined, until none occurs `min_count` times any more.

    `words` are tokens and how often the word occurs; their lists are changed. Of merges with equal counts, the one whose name
    sorts first wins, so the result depends on the counts alone. `refused` is asked when it is a merge's turn. A merge known by
    its text is left out as well where two places for it overlap that split it in different ways: which one wins depends on the
    program that encodes.
    """
    split: list[list[str]] = []
    counts: list[int] = []
    for tokens, count in words:
        split.append(tokens)
        counts.append(count)
    sums: Counter[Name] = Counter()
    where: defaultdict[Name, set[int]] = defaultdict(set)
    for i, tokens in enumerate(split):
        for neighbours in itertools.pairwise(tokens):
            sums[name_of(*neighbours)] += counts[i]
            where[name_of(*neighbours)].add(i)
    heap = [(-count, name) for name, count in sums.items()]  # heapq pops the smallest, so counts are negative
    heapq.heapify(heap)
    while heap:
        negative, name = heapq.heappop(heap)
        if sums[name] != -negative:
            continue  # this count is outdated; the merge is in the heap with its new count too
        if -negative < min_count:
            return
        if refused(name) or (name_of is text and any(_ambiguous(split[i], name) for i in where[name])):
            continue
        first = split[min(where[name])]
        yield next(neighbours for neighbours in itertools.pairwise(first) if name_of(*neighbours) == name)
        for changed in _join(name, name_of, split, counts, sums, where):
            heapq.heappush(heap, (-sums[changed], changed))


def _ambiguous(tokens: list[str], joined: str) -> bool:
    """Whether two different pairs overlap that make this text: `ab a ba` for the text `aba`."""
    triples = zip(tokens, tokens[1:], tokens[2:], strict=False)
    return any(a + b == joined == b + c and (a, b) != (b, c) for a, b, c in triples)


def _join(name: Name, name_of: Any, split: list[list[str]], counts: Any, sums: Any, where: Any) -> set[Name]:
    """Apply one merge to all words that have it, in place, from the left; returns the merges whose counts changed."""
    changed: set[Name] = set()
    for i in sorted(where.pop(name)):
        before, k = split[i], 0
        after: list[str] = []
        while k < len(before):
            wide = 2 if k + 1 < len(before) and name_of(before[k], before[k + 1]) == name else 1
            after.append("".join(before[k : k + wide]))
            k += wide
        split[i] = after
        # Counting the whole word again is simpler than finding the pairs that changed, and words are short.
        for tokens, sign in ((before, -1), (after, 1)):
            for neighbours in itertools.pairwise(tokens):
                other = name_of(*neighbours)
                sums[other] += sign * counts[i]
                changed.add(other)
                if sign == 1:
                    where[other].add(i)
    return {other for other in changed if sums[other] > 0}
