"""A look at a source before a run: some of its documents, and what the language filter makes of them.

The one rule: the verdict is that of the filter itself, `judge` is the only place that asks it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from datatrove.data import Document

from langext.data.language_id import LABEL, LanguageFilter, LanguageId
from langext.data.sources import Source
from langext.errors import ConfigError

FILES = 16
"""Most files of a source that documents are taken from."""
KEPT = "kept"


@dataclass(frozen=True)
class Expected:
    """What the filter is asked for."""

    label: str | None
    """The model's label of the language; None keeps whatever is not `unwanted`."""
    threshold: float
    unwanted: str | None = None


@dataclass(frozen=True)
class Judged:
    """One document, and what the filter makes of it."""

    id: str
    text: str
    label: str
    """The model's first choice, without its prefix; empty when it has none."""
    score: float
    """Its probability."""
    second: str
    """The runner-up."""
    second_score: float
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
        reader = tolerant.reader(record)
        left = (count - len(documents)) // (len(chosen) - number)
        documents += islice(reader.run(None, rank, record.tasks), left)
        broken, places = broken + reader.unread.broken, places + reader.unread.places
    return Seen(documents, len(chosen) if record.files else 0, broken, places)


def judge(model: LanguageId, documents: Sequence[Document], expected: Expected) -> list[Judged]:
    """What the language filter makes of each document."""
    judged = LanguageFilter(model, expected.label, expected.threshold, None, expected.unwanted)  # type: ignore[arg-type]
    verdicts = judged.filter_batch(list(documents))
    # Lines are joined because fastText stops at the end of one.
    labels, scores = model.model.predict([" ".join(document.text.split()) for document in documents], k=2)
    found = []
    for document, verdict, names, values in zip(documents, verdicts, labels, scores, strict=True):
        second, second_score = (names[1], float(values[1])) if len(names) > 1 else ("", 0.0)
        label, score = document.metadata["language_label"], document.metadata["language_score"]
        fit = {LABEL + label: score, second: second_score}.get(expected.label or "", 0.0)
        reason = KEPT if verdict is True else verdict[1] if isinstance(verdict, tuple) else "dropped"
        found.append(
            Judged(document.id, document.text, label, score, second.removeprefix(LABEL), min(1.0, second_score), reason, fit)
        )
    return found


def split(found: Sequence[Judged]) -> tuple[list[Judged], list[Judged]]:
    """What is kept, the worst first, and what is dropped, the best first: what a cut somewhere else would change."""
    kept = sorted((each for each in found if each.verdict == KEPT), key=lambda each: (each.fit, -each.second_score))
    dropped = sorted((each for each in found if each.verdict != KEPT), key=lambda each: (-each.fit, each.score))
    return kept, dropped


def commonest(model: LanguageId, documents: Sequence[Document]) -> str:
    """The label that is the first choice for most documents; empty when there are none."""
    labels = [label for label, _ in model.predict([document.text for document in documents])]
    return max(sorted(set(labels)), key=labels.count, default="")
