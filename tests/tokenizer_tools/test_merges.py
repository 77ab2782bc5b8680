"""Merges are found as by counting all pairs again after each, and their cost does not grow with the words around them."""

import random
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from tokenizer_tools import merges


def slow(words, min_count, name_of):
    """The same by definition, every pair counted anew for each merge; None where a merge is ambiguous."""
    words, found = [(list(tokens), count) for tokens, count in words], []
    while True:
        sums, ways = Counter(), Counter()
        for tokens, count in words:
            for pair in pairwise(tokens):
                sums[name_of(*pair)] += count
                ways[pair] += count
        name = min(sums, key=lambda each: (-sums[each], each), default=None)
        if name is None or sums[name] < min_count:
            return found
        if name_of is merges.text and any(merges._ambiguous(tokens, name) for tokens, _ in words):
            return None
        best = min((pair for pair in ways if name_of(*pair) == name), key=lambda pair: (-ways[pair], pair))
        found.append((*best, sums[name]))
        for tokens, _ in words:
            k = 0
            while k < len(tokens) - 1:
                if name_of(*tokens[k : k + 2]) == name:
                    tokens[k : k + 2] = ["".join(tokens[k : k + 2])]
                k += 1


@pytest.mark.parametrize("name_of", [merges.pair, merges.text])
def test_merges_are_those_that_counting_anew_finds(name_of):
    compared = 0
    for seed in range(60):
        dice = random.Random(seed)
        words = [(dice.choices(["a", "b", "ab", "c"], k=dice.randint(1, 9)), dice.randint(1, 5)) for _ in range(12)]
        expected = slow(words, 4, name_of)
        if expected is not None:
            assert list(merges.continued(words, 4, lambda name: False, name_of)) == expected
            compared += len(expected) > 3
    assert compared > 10


def test_the_cost_of_a_merge_does_not_hang_on_the_length_of_what_is_around_it():
    """One that is in ten long words changes the counts of three pairs in each, not of all."""

    class Counted(Counter):
        changes = 0

        def __setitem__(self, name, value):
            Counted.changes += 1
            super().__setitem__(name, value)

    words = [["x", "y", *map(str, range(500))] for _ in range(10)]
    changed = merges._join(("x", "y"), merges.pair, [*range(10)], words, [1] * 10, Counted(), defaultdict(list))
    assert Counted.changes == 30 and ("xy", "0") in changed and all(tokens[:2] == ["xy", "0"] for tokens in words)
