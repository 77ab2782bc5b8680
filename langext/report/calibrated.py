"""Gates with thresholds: what they do as they were calibrated, and the curve of the dial, ready for the report."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from langext import languages
from langext.report.run_folder import Run
from langext.summaries import CalibrationRecord, DialPoint, ExtendSummary, GateShares, RecalibrateSummary
from langext.text_summaries import FilterSummary

NEW, ORIGINAL, PROTECTED, NOT_PROTECTED = ROLES = ("new", "original", "protected", "not protected")
"""What held-out text is, in the order of the table."""


@dataclass(frozen=True)
class Row:
    """What the gates do on one held-out source."""

    name: str
    """`<language>/<domain>`."""
    role: str
    """One of `ROLES`."""
    shares: GateShares

    @property
    def open(self) -> float:
        """Share of tokens whose gate is open, as a mean over the layers."""
        return sum(self.shares.open) / len(self.shares.open)


def record(run: Run) -> CalibrationRecord | None:
    """The calibration of the thresholds that the model has in the end; None when its gates were not calibrated in this run."""
    for _, manifest in reversed(run.stages):
        summary = manifest.summary_as(RecalibrateSummary) or manifest.summary_as(ExtendSummary)
        if summary:
            return summary.gates
    return None


def table(run: Run) -> list[Row]:
    """A row for each held-out source, by role; [] when the gates were not calibrated."""
    found, text = record(run), run.summary(FilterSummary)
    protected = {row.source for row in text.funnel if row.role == "protect"} if text else set()
    originals = {language.code for language in run.originals}

    def role(name: str) -> str:
        code = name.split("/")[0]
        if code in originals:
            return ORIGINAL
        return NEW if code == run.new.code else PROTECTED if name in protected else NOT_PROTECTED

    rows = [Row(name, role(name), shares) for name, shares in found.heldout.items()] if found else []
    return sorted(rows, key=lambda row: (ROLES.index(row.role), row.name))


def left_out(run: Run) -> dict[int, float]:
    """Layers without a block -> share of the new language that would have opened the gate. Only stage extend decides it."""
    extended = run.summary(ExtendSummary)
    return extended.gates.left_out if extended and extended.gates else {}


def line(run: Run) -> str:
    """What the gates do, for the end of a run: "all closed for 99.3% of English tokens, open for 90.1% of French"; else ""."""
    rows = table(run)
    closed = [f"{_over_tokens(own, 'closed'):.1%} of {name}" for name, own in _by_language(rows, ORIGINAL)]
    opened = [f"open for {_over_tokens(own, 'open'):.1%} of {name}" for name, own in _by_language(rows, NEW)]
    return ", ".join([*([f"all closed for {' and '.join(closed)} tokens"] if closed else []), *opened])


def _by_language(rows: Sequence[Row], role: str) -> Iterator[tuple[str, list[Row]]]:
    """Name of each language with this role, and its rows."""
    codes = dict.fromkeys(row.name.split("/")[0] for row in rows if row.role == role)
    for code in codes:
        yield languages.find(code).name, [row for row in rows if row.name.startswith(f"{code}/")]


def _over_tokens(rows: Iterable[Row], what: str) -> float:
    """The mean over the tokens of several sources: "closed", the share with every gate closed, or "open", a gate open."""
    weighted = [(row.shares.tokens, row.shares.all_closed if what == "closed" else row.open) for row in rows]
    return sum(tokens * share for tokens, share in weighted) / sum(tokens for tokens, _ in weighted)


@dataclass(frozen=True)
class Dial:
    """The settings that the last stage recalibrate has measured."""

    summary: RecalibrateSummary
    new: str
    """Name of the new language."""

    @property
    def points(self) -> list[DialPoint]:
        """The settings, from cautious to eager."""
        return self.summary.curve

    @property
    def kept(self) -> DialPoint:
        """The setting that the model has."""
        return next(point for point in self.points if point.closed == self.summary.gates.closed)

    @property
    def sets(self) -> list[str]:
        """Held-out sources that were measured, `<language>/<domain>`."""
        return list(self.summary.base)

    @property
    def words(self) -> str:
        """Which setting is kept, and why, in one sentence."""
        kept, most = self.kept, self.summary.max_kl
        figures = f"({self.new} {100 * kept.gain:+.1f} %, drift {kept.drift:.4f} nats per token)"
        if most is None:
            return f"Kept is closed {kept.closed:g}, which gains most {figures}."
        if kept.drift <= most:
            return f"Kept is closed {kept.closed:g}, which gains most within the budget of {most:g} nats per token {figures}."
        least = f"kept is closed {kept.closed:g}, which drifts least {figures}"
        return f"No setting is within the budget of {most:g} nats per token; {least}."


def dial(run: Run) -> Dial | None:
    """The dial of the run; None where no stage recalibrate has turned it."""
    summary = run.summary(RecalibrateSummary)
    return Dial(summary, run.new.name) if summary else None
