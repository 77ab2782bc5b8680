"""Find, in a source itself, how sure a model must be of text to keep it.

The one rule: a source is overwhelmingly in the language that it is declared to be in, so the scores of its text that the model
takes for that language show how sure the model is of it. No number is set for a language.

All scores are looked at as log odds, in which they lie about evenly on both sides of their median. The half above the median is
nearly free of other text, which scores low; from there to the 84th percentile is one standard deviation of a normal
distribution. The cut lies three of these below the median, so it stays where it is when other text is mixed in; or higher,
where it costs no more than one hundredth of the text. In clean sources the second decides, and drops what is no text at all.
Where one file of several is of another kind, and the cut would cost it more than two hundredths, its own counts if it is lower.
"""

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datatrove.utils.batching import batched

from langext.artifacts import read_as, write_json
from langext.console import warn
from langext.data import working
from langext.data.language_filter import Level, units
from langext.data.language_id import Guesses, LanguageId
from langext.data.sources import Source
from langext.data.split import unit_hash
from langext.data.verdict import Rule, in_script, odds
from langext.errors import ConfigError
from langext.text_summaries import Cut, SourceRecord

SPREADS = 3.0
"""Standard deviations below the median at which the cut lies."""
MOST_SCORE = 0.5
"""Highest cut: what has more than half of the probability is never dropped for its score."""
MOST_MARGIN = 3.0
"""Highest margin, as a ratio of probabilities."""
GIVEN_UP = 0.01
"""Share of the text that is taken for the language, in characters, that the cut may always cost; and the margins to all
neighbours together as much again."""
ENOUGH = 20
"""Texts that are needed to see a distribution. With fewer, the first choice alone decides."""
MOST_READ, MOST_JUDGED, MOST_DOCUMENTS, MOST_TASKS = 64 << 20, 8 << 20, 2000, 8
"""Of a source: characters that are read for the sample, of these the characters and documents that are judged, and tasks that
it is taken from."""
BATCH = 256


@dataclass(frozen=True)
class Asked:
    """What a run wants of all its sources."""

    threshold: Literal["auto"] | float
    """The number that is the cut, or that it is to be found."""
    level: Level
    least: float
    """Share of the text taken for the language that must be kept."""


def of(source: Source, record: SourceRecord, lid: LanguageId, rule: Rule, asked: Asked, path: Path) -> Cut:
    """The cut of a source. It is found once and kept in the file `path`, so that an interrupted stage goes on with it.

    Raises ConfigError when it would keep too little.
    """
    if not path.exists():
        tolerant = source.model_copy(update={"max_bad_frac": 1.0})  # what cannot be read is counted when all of it is read
        reader, after = tolerant.steps(record)
        chosen = sampled([reader, *after], record.tasks)
        parts = [[text for place, text in chosen if place == rank] for rank in sorted({place for place, _ in chosen})]
        found = [seen(lid, texts, asked.level, rule) for texts in parts]
        cut = find(rule, asked.threshold, *found)
        demand(source.domain, source.language, cut, cut.kept_frac, asked.least)
        _doubt(source.domain, source.language, cut)
        write_json(path, cut)
    return read_as(path, Cut)


def sampled(steps: Sequence[Any], tasks: int) -> list[tuple[int, str]]:
    """Texts of documents of a source, always the same ones: those with the smallest hashes among the first of its files.

    Each comes with the number of its part: `steps` read the source in `tasks` parts, and make its text what is judged.
    """
    ranks = range(0, tasks, -(-tasks // MOST_TASKS))
    texts = ((rank, text) for rank in ranks for text in _first(working.through(steps, rank, tasks), MOST_READ // len(ranks)))
    chosen, size = [], 0
    for rank, text in heapq.nsmallest(MOST_DOCUMENTS, texts, key=lambda row: unit_hash(row[1])):
        if size and size + len(text) > MOST_JUDGED:
            break
        chosen.append((rank, text))
        size += len(text)
    return chosen


def _first(documents: Iterable[Any], most: int) -> Iterable[str]:
    read = 0
    for document in documents:
        if document.text.strip():
            yield document.text
        read += len(document.text)
        if read >= most:
            return


Side = tuple[int, float, str, float]
"""Characters of a text, probability of the language, and label and probability of its rival."""
Seen = Sequence[tuple[int, Guesses]]
"""For each piece of text its number of characters, and what a model takes it for."""


def seen(lid: LanguageId, texts: Iterable[str], level: Level, rule: Rule) -> Seen:
    """Ask the model about each text, or each of its paragraphs or lines, that is in the script that the rule demands."""
    parts = (part for text in texts for _, part in units(text, level))
    return [
        (len(text), guesses)
        for batch in batched((part for part in parts if not rule.script or in_script(part, rule.script)), BATCH)
        for text, guesses in zip(batch, lid.guesses(list(batch), rule.count), strict=True)
    ]


def find(rule: Rule, given: Literal["auto"] | float, *parts: Seen) -> Cut:
    """The cuts of a source, from what the model takes its sample for; of a number `given`, what that does to the sample.

    The sample comes in one part or several, by file.
    """
    found = [row for part in parts for row in part]
    sides, right = _sides(rule, found)
    total, mine = sum(size for size, _ in found), sum(size for size, *_ in right)
    score, margins = (given, {}) if given != "auto" else _of_parts(rule, right, parts)
    others: Counter[str] = Counter()
    for size, own, other, rival in sides:
        others[other] += size * (own < rival)
    cut = Cut(
        rule="auto" if given == "auto" else "threshold",
        labels=sorted(rule.own),
        score=score,
        margins=margins,
        usual=round(float(np.median([own for _, own, _, _ in right])), 4) if right else None,
        sampled=len(found),
        right_frac=mine / total if total else 0.0,
        others={label: round(size / total, 4) for label, size in others.most_common(3) if size},
    )
    with_cut = replace(applied(rule, cut), script="")  # the sample is in the script already, see `seen`
    kept = sum(size for size, guesses in found if with_cut.verdict("text", guesses).kept)
    return cut.model_copy(update={"kept_frac": kept / mine if mine else 0.0})


def _sides(rule: Rule, found: Seen) -> tuple[list[Side], list[Side]]:
    """All texts of a sample that the model knows something of, and those of them that it takes for the language."""
    sides = [(size, *rule.sides(guesses)) for size, guesses in found if guesses]
    return sides, [row for row in sides if row[1] >= row[3]]


def _of_parts(rule: Rule, right: Sequence[Side], parts: Sequence[Seen]) -> tuple[float, dict[str, float]]:
    """Score and margins for all the text that is `right`; lower where that costs a part of it too much.

    A part of which the model takes less than half for the language may be in another one, and says nothing.
    """
    score, margins = _score_and_margins(rule, right)
    for part in parts:
        _, mine = _sides(rule, part)
        size = sum(row[0] for row in mine)
        if len(mine) < ENOUGH or size < sum(size for size, _ in part) / 2:
            continue
        lost = sum(row[0] for row in mine if row[1] < score or row[1] < row[3] * margins.get(row[2], 1.0))
        if lost > 2 * GIVEN_UP * size:
            own, near = _score_and_margins(rule, mine)
            score, margins = min(score, own), {label: min(least, near.get(label, least)) for label, least in margins.items()}
    return score, margins


def _score_and_margins(rule: Rule, right: Sequence[Side]) -> tuple[float, dict[str, float]]:
    """What is demanded by the text that the model takes for the language."""
    if len(right) < ENOUGH:
        return 0.0, {}
    budget = GIVEN_UP * sum(size for size, *_ in right)
    low = _low([(odds(own), size) for size, own, _, _ in right], budget)
    return _down(min(MOST_SCORE, _chance(low))), _margins(rule, right, budget)


def applied(rule: Rule, cut: Cut) -> Rule:
    """The rule of a source with the cuts that were found.

    Another first choice says something about a paragraph only when it is more probable than what the model usually leaves to
    all others where it is right, 1 - `usual`: little of surely known languages, half in the worst case.
    """
    silent = min(MOST_SCORE, 1 - cut.usual) if cut.usual is not None else MOST_SCORE
    return replace(rule, score=cut.score, margins=tuple(sorted(cut.margins.items())), silent=silent)


def _doubt(source: str, language: str, cut: Cut) -> None:
    """Warn when the model takes most of the sample of a source for other languages."""
    if cut.right_frac >= 0.5 or not cut.sampled:
        return
    taken = ", ".join(f"{label} {100 * share:.0f} %" for label, share in cut.others.items())
    warn(
        f"source {source}: the language-ID model takes {100 * cut.right_frac:.0f} % of a sample for {language}"
        f" (others: {taken}). Either the source is in another language, or the model hardly knows this one: try lid_model: "
        "asset:glotlid"
    )


def demand(source: str, language: str, cut: Cut, kept_frac: float, least: float) -> None:
    """Raise ConfigError when less than `least` of the text of a source that the model takes for the language is kept."""
    if kept_frac >= least or cut.usual is None:
        return
    said = (
        f"source {source}: of the text that the language-ID model itself takes for {language}, only {100 * kept_frac:.0f} % is "
        f"kept (min_kept: {least:g}): {cut.score:.2f} is demanded, and the median of its probabilities is {cut.usual:.2f}"
    )
    advice = "leave threshold out, and the cut is found in it" if cut.rule == "threshold" else "look at it (langext data peek)"
    raise ConfigError(f"{said}. Mend it: {advice}, or set min_kept: 0 if this is meant")


def _low(rows: list[tuple[float, int]], budget: float) -> float:
    """Where the cut lies among log odds, each with the characters that it stands for: as this module says above."""
    rows = sorted(rows)
    spent = np.cumsum([size for _, size in rows])
    first = int(np.searchsorted(spent, budget, side="right"))
    cheap = rows[first][0] if first < len(rows) else np.inf
    if len(rows) < ENOUGH:
        return float(cheap)
    middle, high = np.quantile([value for value, _ in rows], [0.5, 0.84])
    return float(max(cheap, middle - SPREADS * (high - middle)))


def _chance(log_odds: float) -> float:
    return float(1 / (1 + np.exp(-log_odds)))


def _down(value: float) -> float:
    """Four digits, never above `value`: the text that a cut was taken from must pass it."""
    return math.floor(value * 10_000) / 10_000


def _margins(rule: Rule, right: Sequence[Side], budget: float) -> dict[str, float]:
    """The margin to each neighbour that occurs as a runner-up; to find it, ratios of probabilities are taken for odds."""
    near: dict[str, list[tuple[float, int]]] = {}
    for size, own, other, rival in right:
        if other in rule.rivals:
            near.setdefault(other, []).append((math.log(max(own, 1e-6) / max(rival, 1e-6)), size))
    lows = {label: _low(rows, budget / len(near)) for label, rows in sorted(near.items())}
    return {label: _down(min(MOST_MARGIN, math.exp(max(0.0, min(low, 9.0))))) for label, low in lows.items()}
