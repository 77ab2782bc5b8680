"""Beginnings of held-out text to continue, in any script: items of the continuation task, and starts of samples.

The one rule: everything is cut between words, as `Words` finds them. lm-eval scores the items (see harness).
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from langext.evaluation.words import Words

CHOICES = 4


def items(texts: Sequence[str], count: int, seed: int, most_bytes: int) -> list[dict[str, Any]]:
    """Multiple-choice items from documents: given the first half of a paragraph, which of four second halves continues it?

    The three wrong choices are second halves of other paragraphs with similar length. Returns at most `count` items
    {"query", "choices", "gold", "gap"}, fewer when there is little text. `gold` is the index of the right choice, and `gap`
    what stands between query and choice: a space, or nothing in scripts without spaces between words. No choice has more than
    `most_bytes` UTF-8 bytes: a paragraph with a longer second half is used without its end.
    """
    words = Words.of(texts)
    halves = [cut for text in texts for paragraph in text.split("\n\n") if (cut := _halves(paragraph, words, most_bytes))]
    dice = random.Random(seed)
    dice.shuffle(halves)
    made = []
    for i, (first, second) in enumerate(halves[:count]):
        others = [h for j, (_, h) in enumerate(halves) if j != i and h != second]
        others.sort(key=lambda h: abs(len(h) - len(second)))
        if len(others) < CHOICES - 1:
            continue
        # Twenty similar lengths to draw from: length must not give the answer away, nor the same wrong choices come every time.
        choices = [second, *dice.sample(others[:20], CHOICES - 1)]
        dice.shuffle(choices)
        made.append({"query": first, "choices": choices, "gold": choices.index(second), "gap": words.gap})
    return made


def _halves(paragraph: str, words: Words, most_bytes: int) -> tuple[str, str] | None:
    """The two halves of a paragraph, cut between words; None when it is too short to tell or too long for a question."""
    found = words.split(paragraph)
    if len(found) > 120:
        return None
    while len(found) >= 16:
        first, second = words.join(found[: len(found) // 2]), words.join(found[len(found) // 2 :])
        if len(second.encode()) <= most_bytes:
            return first, second
        found.pop()
    return None


def starts(texts: Sequence[str]) -> Iterator[str]:
    """The first twelve words of the first real paragraph, one of 24 words, of each document that has one.

    No text is read before the first start is asked for.
    """
    words = Words.of(texts)
    for text in texts:
        paragraphs = (found for p in text.split("\n\n") if len(found := words.split(p)) >= 24)
        if first := next(paragraphs, None):
            yield words.join(first[:12])
