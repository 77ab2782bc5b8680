"""The tables of `langext data stats`: what became of the text of a run. Rule: a number stands beside what it counts."""

import re
from collections.abc import Callable, Iterable, Sequence

from langext import console
from langext.text_summaries import FunnelRow, FunnelStep

STEPS = {"read": "read", "language": "right language", "quality": "filters, quality", "duplicates": "duplicates out",
         "contamination": "benchmarks out"}  # fmt: skip
"""Steps in their order -> what they are called in a table."""
BY_LANGUAGE = re.compile(r"(language|neighbour|close_to)_.*|low_score|script|empty")
"""Reasons of the language filter."""
LAST = re.compile(r"duplicate|near_duplicate|contaminated_.*|held_out")
"""Reasons of the steps before which a source of few documents is divided into passages."""
ROLES = {"train": "", "protect": " (protected)", "measure": " (measured)"}
"""What is said of a source that is not trained on."""


def show(name: str, funnel: Sequence[FunnelRow], base: str) -> None:
    """Print all tables of the stage called `name`; `base` is the content of the run's base, for the tokens."""
    _sources(name, funnel, base)
    _steps(funnel, base)
    _cuts(funnel)
    _table("dropped, by reason", ["source", "reason", "number", "of what", "share"], funnel, _reasons)
    _table("taken out of documents, or changed in them", ["source", "what", "number"], funnel, _within)


def _sources(name: str, funnel: Sequence[FunnelRow], base: str) -> None:
    rows = [
        [f"{row.source}{ROLES[row.role]}", f"{row.documents_read:,}", f"{row.kept:,}", f"{row.kept_frac:.1%}",
         f"{row.train_documents:,}", _mb(row.train_bytes), _tokens([row], [row.train_bytes], base),
         f"{row.valid_documents:,}{' passages' if row.divided else ''}", _mb(row.valid_bytes)]
        for row in funnel
    ]  # fmt: skip
    heads = ["source", "documents", "kept", "of bytes", "to train", "MB", "tokens", "held out", "MB"]
    console.table(name, heads, rows)


def _steps(funnel: Sequence[FunnelRow], base: str) -> None:
    """What is left after each step, of each source and of all sources of a language."""
    rows: list[list[str]] = []
    for language in dict.fromkeys(row.language for row in funnel):
        mine = [row for row in funnel if row.language == language and row.steps]
        groups = {row.source: [row] for row in mine}
        if len(mine) > 1:
            groups[f"{language}, all"] = mine
        for title, group in groups.items():
            rows += _after_each(title, group, base)
    if rows:
        heads = ["source", "left after", "documents", "MB", "of bytes", "tokens, about"]
        console.table("left after each step", heads, rows)


def _after_each(title: str, group: Sequence[FunnelRow], base: str) -> list[list[str]]:
    done = [name for name in STEPS if any(step.name == name for row in group for step in row.steps)]
    rows: list[list[str]] = []
    whole = 0
    for name in done:
        left = [_at(row, name) for row in group]
        size = sum(step.bytes for step in left)
        whole = whole or size
        documents = sum(step.documents for step in left)
        tokens = _tokens(group, [step.bytes for step in left], base)
        rows.append(["" if rows else title, STEPS[name], f"{documents:,}", _mb(size), f"{size / max(1, whole):.1%}", tokens])
    return rows


def _at(row: FunnelRow, name: str) -> FunnelStep:
    """What was left of a source after a step, or after the last one before that, if it was not done there."""
    order = list(STEPS)
    return [step for step in row.steps if order.index(step.name) <= order.index(name)][-1]


def _cuts(funnel: Sequence[FunnelRow]) -> None:
    rows: list[list[str]] = []
    for row in funnel:
        if cut := row.cut:
            given = " (given)" if cut.rule == "threshold" else ""
            said = f"{'/'.join(cut.labels)} >= {cut.score:.2f}{given}"
            rows.append([row.source, said, f"{cut.right_frac:.1%}", f"{cut.kept_frac:.1%}"])
            rows += [["", f"runner-up {label} x {margin:g}", "", ""] for label, margin in cut.margins.items()]
    if rows:
        console.table("demanded of the language", ["source", "probability", "right of the sample", "kept of that"], rows)


def _reasons(row: FunnelRow) -> Iterable[list[str]]:
    """Reason, number, what is counted, and its share of all that was judged, where that is known."""
    read = row.documents_read - row.dropped.get("broken", 0)
    parts = "parts" if row.judged > read else "documents"
    for reason, number in sorted(row.dropped.items(), key=lambda one: -one[1]):
        what, whole = "documents", row.documents_read
        if reason == "broken":
            what = "entries"
        elif BY_LANGUAGE.fullmatch(reason):
            what, whole = parts, row.judged
        elif LAST.fullmatch(reason) and row.divided:
            what, whole = "passages", 0
        if number:
            yield [reason, f"{number:,}", what, f"{number / whole:.1%}" if whole else ""]


def _within(row: FunnelRow) -> Iterable[list[str]]:
    """What was taken out of documents, or changed in them, and how often."""
    found = {f"lines, by C4's rules: {reason}": number for reason, number in row.lines_dropped.items()}
    found |= {
        "parts that benchmarks have": row.benchmark_parts, "paragraphs and lines held out elsewhere": row.heldout_parts,
        "documents with wrongly decoded letters": row.repaired, "documents with broken Unicode": row.mended,
        "documents in another Unicode form": row.composed, "byte order marks": row.marks,
    }  # fmt: skip
    yield from ([what, f"{number:,}"] for what, number in found.items() if number)


def _table(
    title: str, heads: Sequence[str], funnel: Sequence[FunnelRow], of: Callable[[FunnelRow], Iterable[list[str]]]
) -> None:
    """Print a table of several rows for each source, if there are any."""
    rows: list[list[str]] = []
    for row in funnel:
        rows += [["" if number else row.source, *cells] for number, cells in enumerate(of(row))]
    if rows:
        console.table(title, heads, rows)


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.2f}"


def _tokens(rows: Sequence[FunnelRow], sizes: Sequence[int], base: str) -> str:
    """About how many tokens so many bytes of each source are; empty when that is not known of all."""
    found = [row.tokens(size, base) for row, size in zip(rows, sizes, strict=True)]
    known = [number for number in found if number is not None]
    return f"{sum(known):,}" if len(known) == len(found) else ""
