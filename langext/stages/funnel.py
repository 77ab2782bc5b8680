"""The funnel of stage filter: what became of the text of each source. The one rule: every document that was read is counted."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langext import languages
from langext.artifacts import BASE, Model, read_as, read_base, read_json
from langext.console import say, warn
from langext.data import documents
from langext.data.plain_text import encode_text
from langext.data.sources import Source
from langext.errors import ConfigError, one_line
from langext.text_summaries import Cut, FunnelRow, FunnelStep, SourceRecord

CUT = "cut.json"
"""File, among the logs of a source, of how sure the language-identification model must be of its text."""
SAMPLE = 1 << 18
"""Bytes of the text of a source from which its tokens are estimated, and at most one document more."""
STEPS = ("read", "language", "quality", "duplicates", "contamination")
"""Steps after which it is counted what is left, in their order."""


def totals(log: Path) -> Counter[str]:
    """The counts of all steps of a source, added up over all its passes and tasks."""
    total: Counter[str] = Counter()
    for path in sorted(log.glob("stats/*.json")) + sorted(log.glob("*/stats/*.json")):
        for step in read_json(path):
            for key, stat in step["stats"].items():
                total[key] += int(stat["total"] if isinstance(stat, dict) else stat)
    return total


def steps_of(log: Path) -> list[FunnelStep]:
    """What was left of a source after every step that has been done."""
    from langext.data.working import AFTER

    total = totals(log)
    counts = {name: (f"{AFTER}{name}/documents", f"{AFTER}{name}/bytes") for name in STEPS}
    return [
        FunnelStep(name=name, documents=total[count], bytes=total[size])
        for name, (count, size) in counts.items()
        if count in total
    ]


def count(source: Source, record: SourceRecord, log: Path) -> FunnelRow:
    """The counts of all steps for one source, added up over all tasks."""
    from langext.data.filters.web import LINES

    total = totals(log)
    names = ("judged", "bytes_read", "train_documents", "train_bytes", "valid_documents", "valid_bytes",
             "mended", "composed", "undivided", "right_bytes", "right_kept_bytes", "repaired", "heldout_parts",
             "benchmark_parts", "marks", "lost_files", "lost_bytes")  # fmt: skip
    counts: dict[str, Any] = {name: total[name] for name in names}
    revision = record.commit or source.revision
    return FunnelRow(
        language=source.language,
        domain=source.domain,
        origin=f"{source.origin} @ {revision}" if revision else source.origin,
        documents_read=(total["documents_read"] or total["judged"]) + total["dropped_broken"],
        dropped={k.removeprefix("dropped_"): n for k, n in total.most_common() if k.startswith("dropped_")},
        unread=record.unread,
        commit=record.commit,
        role=source.role,
        cut=read_as(log / CUT, Cut) if (log / CUT).exists() else None,
        steps=steps_of(log),
        lines_dropped={k.removeprefix(LINES): n for k, n in total.most_common() if k.startswith(LINES)},
        divided=bool(total["divided"]),
        **counts,
    )


def with_tokens(rows: list[FunnelRow], out: Path) -> list[FunnelRow]:
    """The rows with an estimate of their tokens, if the base is at hand, as it is in a run; `out` is the stage's folder."""
    base = Model(out.parent / BASE)
    record = read_base(out.parent)
    if record is None:
        return rows
    from langext.models import loading

    tokenizer = loading.load_tokenizer(loading.tokenizer_folder(base))
    kept = [sorted((out / "documents").glob(f"*/{row.source}.*.jsonl.gz")) for row in rows]
    rates = [_tokens_per_byte(files, tokenizer) for files in kept]
    return [
        row.model_copy(update={"tokens_per_byte": rate, "tokens_of": record.content})
        for row, rate in zip(rows, rates, strict=True)
    ]


def _tokens_per_byte(files: Sequence[Path], tokenizer: Any) -> float | None:
    """Tokens of a byte of the text in these files, in the first SAMPLE bytes; None when there is no text."""
    texts, size = list[str](), 0
    for document in (document for path in files for document in documents.read(path)):
        if size >= SAMPLE:
            break
        texts.append(document["text"][: SAMPLE - size])
        size += len(texts[-1].encode())
    return sum(map(len, encode_text(tokenizer, texts))) / size if size else None


def tell(row: FunnelRow) -> None:
    """Print what became of a source, and warn when other text of its language has all of it too."""
    if not row.train_documents + row.valid_documents:
        warn(f"source {row.domain}: {_nothing_left([row])}; the run goes on without it")
    say(f"  {row.domain} ({row.language}): {row.documents_read} documents read, {row.kept} kept; {row.used}")
    if row.mended:
        say(f"  {row.domain} ({row.language}): broken Unicode in {row.mended} document(s), mended with U+FFFD")
    if row.composed:
        say(f"  {row.domain} ({row.language}): {row.composed} document(s) brought into the Unicode form NFC")
    if row.marks:
        say(f"  {row.domain} ({row.language}): {row.marks} byte order mark(s) removed")
    if row.benchmark_parts:
        say(f"  {row.domain} ({row.language}): {row.benchmark_parts} part(s) cut out, which benchmarks have too")
    if row.heldout_parts:
        parts = f"{row.heldout_parts} paragraph(s) or line(s)"
        say(f"  {row.domain} ({row.language}): {parts} left out of training, because they are held out")
    if row.repaired:
        say(f"  {row.domain} ({row.language}): wrongly decoded letters in {row.repaired} document(s), mended")


def demand_text(row: FunnelRow, left: int) -> None:
    """Raise ConfigError when nothing of a source is left."""
    if not left:
        raise ConfigError(f"source {row.domain}: {_nothing_left([row])}")


def _nothing_left(rows: Sequence[FunnelRow]) -> str:
    """What is said of sources of one language when nothing of them is left, with the reasons."""
    dropped = sum((Counter(row.dropped) for row in rows), Counter[str]())
    reasons = ", ".join(f"{n} {reason}" for reason, n in dropped.most_common()) or "the source is empty"
    return f"nothing of {rows[0].language} is left ({reasons})"


def demand(code: str, rows: Sequence[FunnelRow], needed: bool) -> None:
    """Raise ConfigError when a language has no held-out document, or none to train or calibrate on, if these are `needed`.

    Warn when it has no source at all.
    """
    from langext.data.split import SURELY_DIVIDED

    if not rows:
        warn(f"no source for the original language {code}: nothing replays it and nothing measures it")
        return
    left = sum(row.train_documents + row.valid_documents for row in rows)
    if not left:
        raise ConfigError(_nothing_left(rows))
    single = left == 1
    if single and (needed or not any(row.valid_documents for row in rows)):
        what = f"what is left of the text of {code} is too short to be divided into text to train on and text to measure on"
        advice = f"give at least {SURELY_DIVIDED:,} characters"
        if code == languages.ZXX:
            what, advice = "there is a single file of code, and files of code are not divided", "give at least two files"
    elif not any(row.valid_documents for row in rows):
        what, advice = f"no document of {code} fell into the held-out part", "raise heldout_frac or give more text"
    elif needed and not any(row.train_documents for row in rows):
        purpose = "calibrate gates" if any(row.role == "protect" for row in rows) else "train"
        what, advice = f"no document of {code} is left to {purpose} on", "lower heldout_frac or give more text"
    else:
        return
    if whole := [f"{row.undivided} in {one_line(row.origin)}" for row in rows if row.undivided]:
        what += f". A .txt file without a blank line is one single document ({', '.join(whole)})"
        advice = "if every line is a document, give its source txt_documents: lines"
    raise ConfigError(f"{what}; {advice}")
