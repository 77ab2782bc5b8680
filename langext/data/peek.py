"""A look at a source before a run: some of its documents, and what the language filter makes of them.

The one rule: the verdict is that of the filter itself, with the cut that is found in the documents that are looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from datatrove.data import Document

from langext.data import cuts, rules, working
from langext.data.language_filter import LanguageFilter, Level
from langext.data.language_id import LanguageId
from langext.data.sources import Source
from langext.data.verdict import Rule, Verdict
from langext.errors import ConfigError
from langext.text_summaries import Cut

FILES = 16
"""Most files of a source that documents are taken from."""
KEPT = "kept"


@dataclass(frozen=True)
class Expected:
    """What the filter is asked for."""

    language: str | None
    """Code of the language; None of text in many languages and in none."""
    threshold: Literal["auto"] | float = "auto"
    level: Level = "document"
    unwanted: str | None = None
    """Code of a language that is dropped where none is expected."""
    run: tuple[str, ...] = ()
    """Codes of all languages of the run."""


@dataclass(frozen=True)
class Judged:
    """One document, paragraph or line, and what the filter makes of it."""

    id: str
    text: str
    label: str
    """The model's first choice."""
    score: float
    """Its probability."""
    runner_up: str
    """The best label of another language; empty when there is none."""
    runner_up_score: float
    verdict: str
    """`kept`, or the reason why it is dropped."""
    fit: float
    """Probability of the language that is expected, 0 when it is neither first nor second."""


@dataclass(frozen=True)
class Seen:
    """What was read of a source."""

    documents: list[Document]
    files: int
    """Files that they are from; 0 of a dataset on the hub."""
    broken: int
    """Entries before and between them that cannot be read."""
    places: list[str]
    """The first of these, with the reason."""


def look(source: Source, count: int) -> Seen:
    """The first documents of up to `FILES` files of a source, spread evenly, `count` in all at the most.

    Raises ConfigError for what is wrong with all of it, as a column that is not there.
    """
    if source.piped:
        raise ConfigError("what comes from standard input can be read only once; look at a file")
    source.check()
    record = source.glance()
    chosen = sorted({i * record.tasks // min(record.tasks, FILES) for i in range(min(record.tasks, FILES))})
    tolerant = source.model_copy(update={"max_bad_frac": 1.0})
    documents: list[Document] = []
    broken, places = 0, list[str]()
    for number, rank in enumerate(chosen):
        reader, after = tolerant.steps(record)
        left = (count - len(documents)) // (len(chosen) - number)
        documents += islice(working.through([reader, *after], rank, record.tasks), left)
        broken, places = broken + reader.unread.broken, places + reader.unread.places
    return Seen(documents, len(chosen) if record.files else 0, broken, places)


def judge(lid: LanguageId, documents: Sequence[Document], expected: Expected) -> tuple[list[Judged], Cut | None]:
    """What the language filter makes of each document, paragraph or line, and the cut that it does that with."""
    texts, cut, rule = [document.text for document in documents], None, None
    if expected.language:
        found = rules.labels_of([expected.language, *expected.run], lid.labels())
        rule = rules.rule_of(expected.language, found, lid.labels(), expected.run)
        cut = cuts.find(rule, expected.threshold, cuts.seen(lid, texts, expected.level, rule))
        rule = cuts.applied(rule, cut)
    unwanted = rules.own(expected.unwanted, lid.labels()) if expected.unwanted else frozenset()
    judged = LanguageFilter(lid, rule, expected.level, None, unwanted).judge(texts)
    return [
        _judged(document, number if len(parts) > 1 else None, part, verdict, rule)
        for document, parts in zip(documents, judged, strict=True)
        for number, (_, part, verdict) in enumerate(parts)
    ], cut


def _judged(document: Document, number: int | None, text: str, verdict: Verdict, rule: Rule | None) -> Judged:
    sides = {verdict.label: verdict.score, verdict.runner_up: verdict.runner_up_score}
    return Judged(
        id=document.id if number is None else f"{document.id}#{number}", text=text, label=verdict.label, score=verdict.score,
        runner_up=verdict.runner_up, runner_up_score=verdict.runner_up_score, verdict=verdict.reason or KEPT,
        fit=max((sides[label] for label in rule.own if label in sides), default=0.0) if rule else 0.0,
    )  # fmt: skip


def split(found: Sequence[Judged]) -> tuple[list[Judged], list[Judged]]:
    """What is kept, the worst first, and what is dropped, the best first: what a cut somewhere else would change."""
    kept = sorted((each for each in found if each.verdict == KEPT), key=lambda each: (each.fit, -each.runner_up_score))
    dropped = sorted((each for each in found if each.verdict != KEPT), key=lambda each: (-each.fit, each.score))
    return kept, dropped


def commonest(lid: LanguageId, documents: Sequence[Document]) -> str:
    """The label that is the first choice for most documents; empty when there are none."""
    labels = [guesses[0][0] for guesses in lid.guesses([document.text for document in documents], 1) if guesses]
    return max(sorted(set(labels)), key=labels.count, default="")
