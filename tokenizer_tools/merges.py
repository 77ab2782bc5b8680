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
) -> Iterator[tuple[str, str, int]]:
    """The next merges, most frequent first: the pair that is joined (the most frequent one of that name), and how often.

    They end when none occurs `min_count` times any more.

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
    where: defaultdict[Name, list[int]] = defaultdict(list)  # with repetitions: a set takes several times the memory
    for i, tokens in enumerate(split):
        for neighbours in itertools.pairwise(tokens):
            name = name_of(*neighbours)
            sums[name] += counts[i]
            where[name].append(i)
    # heapq pops the smallest, so counts are negative.
    heap = [(-count, name) for name, count in sums.items() if count >= min_count]
    heapq.heapify(heap)
    while heap:
        negative, name = heapq.heappop(heap)
        if sums[name] != -negative:
            continue  # this count is outdated; the merge is in the heap with its new count too
        if refused(name):
            continue
        places = sorted(set(where[name]))
        if name_of is text and any(_ambiguous(split[i], name) for i in places):
            continue
        ways: Counter[tuple[str, str]] = Counter()
        for i in places:
            for neighbours in itertools.pairwise(split[i]):
                if name_of(*neighbours) == name:
                    ways[neighbours] += counts[i]
        yield *min(ways, key=lambda neighbours: (-ways[neighbours], neighbours)), -negative
        del where[name]
        for changed in _join(name, name_of, places, split, counts, sums, where):
            if sums[changed] >= min_count:
                heapq.heappush(heap, (-sums[changed], changed))


def _ambiguous(tokens: list[str], joined: str) -> bool:
    """Whether two different pairs overlap that make this text: `ab a ba` for the text `aba`."""
    triples = zip(tokens, tokens[1:], tokens[2:], strict=False)
    return any(a + b == joined == b + c and (a, b) != (b, c) for a, b, c in triples)


def _join(name: Name, name_of: Any, places: list[int], split: list[list[str]], counts: Any, sums: Any, where: Any) -> set[Name]:
    """Apply one merge to the words at `places`, in place, from the left; returns the merges whose counts changed."""
    changed: set[Name] = set()

    def count(i: int, left: str, right: str, sign: int) -> None:
        other = name_of(left, right)
        sums[other] += sign * counts[i]
        changed.add(other)
        if sign == 1:
            where[other].append(i)

    for i in places:
        tokens, k = split[i], 0
        while k < len(tokens) - 1:
            left, right = tokens[k : k + 2]
            if name_of(left, right) == name:
                count(i, left, right, -1)
                joined = tokens[k] = left + right
                del tokens[k + 1]
                if k:
                    count(i, tokens[k - 1], left, -1)
                    count(i, tokens[k - 1], joined, 1)
                if k + 1 < len(tokens):
                    count(i, right, tokens[k + 1], -1)
                    count(i, joined, tokens[k + 1], 1)
            k += 1
    return changed
