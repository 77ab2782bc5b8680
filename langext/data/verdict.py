"""Decide what text is kept as text of a language, by what a model says of it relative to the alternatives.

The one rule: a first choice that is unsure is no mistake. What is dropped is what the model takes for another language, and
what it is far less sure of than it is of the rest of the same source (see `cuts`).
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex

from langext.data.language_id import Guesses

EMPTY, NONE = "empty", "none"
"""The reason for which text without a word is dropped; and what stands in place of a label where the model knows no word."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is decided about one piece of text, and why."""

    reason: str
    """Why it is dropped; empty when it is kept."""
    right: bool
    """Whether the model's first choice is the language."""
    label: str
    """The model's first choice, or `none`."""
    score: float
    """Its probability."""
    runner_up: str
    """The best label of another language than the first choice; empty when there is none."""
    runner_up_score: float
    unsure: bool = False
    """Whether it says little by itself, so that a paragraph or line goes by what surrounds it."""

    @property
    def kept(self) -> bool:
        """Whether the text is kept."""
        return not self.reason


@dataclass(frozen=True)
class Rule:
    """What text of a source must be like. The reasons for which `verdict` drops text are in the order in which they are tried.

    empty               there are no words
    neighbour_<label>   the first choice is a near neighbour of the language
    language_<label>    the first choice is another language
    script              the first choice is right, but it is not in the script of the language, which the label does not say
    close_to_<label>    the first choice is right, but a neighbour, or another language of the run, is nearly as likely
    low_score           the first choice is right, but the model is less sure of it than of the rest of the source
    """

    own: frozenset[str]
    """Labels of the language; their probabilities count together."""
    neighbours: frozenset[str] = frozenset()
    """Labels of languages that are easily taken for it."""
    rivals: frozenset[str] = frozenset()
    """Labels that there can be a margin to: those of the neighbours and of the other languages of the run."""
    score: float = 0.0
    """Least probability of the first choice."""
    margins: tuple[tuple[str, float], ...] = ()
    """Runner-up -> how many times as likely as that the first choice must be."""
    silent: float = 0.0
    """Another language as the first choice says nothing about a paragraph or line when it is less probable than this."""
    script: str = ""
    """ISO 15924 code of the script that the text must mostly be in; empty when any will do."""

    def verdict(self, text: str, guesses: Guesses) -> Verdict:
        """Judge one text by the guesses of a model, of which there must be one more than the language has labels."""
        if not text.strip():
            return Verdict(EMPTY, False, NONE, 0.0, "", 0.0)
        if not guesses:
            return Verdict(f"language_{NONE}", False, NONE, 0.0, "", 0.0, unsure=True)
        own, other, rival = self.sides(guesses)
        mine = next((label for label, _ in guesses if label in self.own), "")
        if own < rival:
            reason = f"{'neighbour' if other in self.neighbours else 'language'}_{other}"
            return Verdict(reason, False, other, rival, mine, own, unsure=rival < self.silent)
        reason = ""
        if self.script and not in_script(text, self.script):
            return Verdict("script", False, mine, own, other, rival)
        if rival and own < self._margin_to.get(other, 0.0) * rival:
            reason = f"close_to_{other}"
        elif own < self.score:
            reason = "low_score"
        return Verdict(reason, True, mine, own, other, rival, unsure=bool(reason))

    @functools.cached_property
    def _margin_to(self) -> dict[str, float]:
        return dict(self.margins)

    def sides(self, guesses: Guesses) -> tuple[float, str, float]:
        """The probability of the language, and the most likely other label with its probability."""
        own = min(1.0, sum(score for label, score in guesses if label in self.own))
        other, rival = next(((label, score) for label, score in guesses if label not in self.own), ("", 0.0))
        return own, other, rival

    @property
    def count(self) -> int:
        """How many guesses the rule needs."""
        return len(self.own) + 1


def together(verdicts: Sequence[Verdict], sizes: Sequence[int]) -> list[Verdict]:
    """The verdicts on the paragraphs or lines of one document, with what the model is unsure of decided by the rest.

    Such a part is kept when more text of the document, in characters (`sizes`), is surely of the language than surely is not.
    """
    sure = sum(size if v.kept else -size for v, size in zip(verdicts, sizes, strict=True) if not v.unsure)
    return [_kept(v) if v.unsure and sure > 0 else v for v in verdicts]


def _kept(verdict: Verdict) -> Verdict:
    return Verdict("", verdict.right, verdict.label, verdict.score, verdict.runner_up, verdict.runner_up_score)


def in_script(text: str, script: str) -> bool:
    """Whether at least half of the letters of a text are in a script that Unicode tells apart (see `parts`)."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return int(_letters(script)[np.minimum(points, _LAST)].sum(dtype=np.int64)) >= 0


@functools.cache
def _letters(script: str) -> np.ndarray:
    """For each code point 1 for a letter of the script, -1 for one of another, else 0; the last stands for all others."""
    scripts = "".join(rf"\p{{Script={part}}}" for part in parts(script))
    every = "".join(map(chr, range(_LAST)))
    found = np.zeros(_LAST + 1, np.int8)
    for pattern, value in ((r"\p{L}", -1), (rf"[[{scripts}]&&\p{{L}}]", 1)):
        found[[match.start() for match in regex.finditer(pattern, every, regex.V1)]] = value
    return found


_LAST = 0x34000
"""The first code point from which on there is no letter."""
_COMPOSED = {"Jpan": ("Hani", "Hira", "Kana"), "Kore": ("Hang",), "Hans": (), "Hant": ()}
"""Scripts of ISO 15924 that are several of Unicode's, or none of their own."""


def parts(script: str) -> tuple[str, ...]:
    """The scripts of Unicode that a script of ISO 15924 consists of; () when text does not show which of several it is."""
    if script in _COMPOSED:
        return _COMPOSED[script]
    try:
        regex.compile(rf"\p{{Script={script}}}")
    except regex.error:
        return ()
    return (script,)


def odds(probability: float) -> float:
    """The logarithm of the odds of a probability, which is taken to be at most one millionth from 0 or 1."""
    bounded = min(1 - 1e-6, max(1e-6, probability))
    return math.log(bounded / (1 - bounded))
