"""The report of a run: one HTML file, and the last lines that `langext run` prints.

The one rule: the file needs nothing else, no network and no scripts. It reads what stages wrote; no stage calls it.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from langext.artifacts import write_text
from langext.console import duration
from langext.evaluation import significance
from langext.evaluation.significance import Mean
from langext.export_summary import ExportSummary
from langext.report import calibrated, plots, standing
from langext.report.run_folder import Run, gather
from langext.summaries import ExtendSummary, TokenizerSummary, TrainSummary
from langext.text_summaries import FilterSummary

PAGE = "report.html"
SECTIONS = {
    "curves": "Learning curves", "changes": "Before and after", "distance": "Distance to the base",
    "neutrality": "Neutrality", "gates": "Gates", "dial": "The dial",
    "samples": "Samples", "text": "Text", "vocabulary": "Vocabulary", "mixture": "What was trained on", "cost": "Cost",
    "export": "Export", "provenance": "Provenance", "configuration": "Configuration",
}  # fmt: skip


def build(root: Path) -> Path:
    """Write report.html into the run folder `root`; return its path. Raises ConfigError when `root` is no run folder."""
    run = gather(root)
    gates, close = _gates(run)
    layers = _layers(run, gates)
    rows, dial = calibrated.table(run), calibrated.dial(run)
    found: dict[str, Any] = {
        "curves": Markup(plots.curves(run.metrics, run.new.code)) if run.metrics else "",  # our own SVG, its texts escaped
        "evals": [row for row in run.metrics if row["kind"] == "eval"],
        "gates": Markup(plots.gates(gates, close, layers)),
        "gates_close": close,
        "gate_rows": gates,
        "gate_layers": layers,
        "calibration": calibrated.record(run),
        "calibrated": rows,
        "calibrated_plot": Markup(_calibrated_plot(run, rows)),
        "left_out": calibrated.left_out(run),
        "dial": dial,
        "dial_plot": Markup(_dial_plot(dial)) if dial else "",
        "funnel": text.funnel if (text := run.summary(FilterSummary)) else [],
        "text_summary": text,
        "funnel_plot": Markup(_funnel_plot(text)) if text else "",
        "cuts": [row for row in text.funnel if row.cut] if text else [],
        "vocabulary": run.summary(TokenizerSummary),
        "training": run.summary(TrainSummary),
        "export": run.summary(ExportSummary),
        "neutrality": standing.certified(run),
    }
    # A section without content is left out, and so is its link at the top of the page.
    contents = {
        "changes": run.bits or run.others or run.tasks, "samples": run.samples,
        "distance": run.model_scores and run.model_scores.kl_to_base,
        "text": found["funnel"], "mixture": found["training"], "cost": True, "provenance": True, "configuration": True, **found,
        "gates": gates or rows,
    }  # fmt: skip
    sections = [(key, title) for key, title in SECTIONS.items() if contents.get(key)]
    titles = {row.name: standing.title(run, row) for row in run.bits}
    page = render("report.html.j2", run=run, titles=titles, sections=sections, tiles=list(_tiles(run)), costs=list(_costs(run)),
                  provenance=list(_provenance(run)), **found)  # fmt: skip
    write_text(root / PAGE, page)
    return root / PAGE


def _funnel_plot(text: FilterSummary) -> str:
    """What became of the text; empty for runs of earlier versions, which did not count it after every step."""
    return plots.funnel({row.source: [(step.name, step.bytes) for step in row.steps] for row in text.funnel if row.steps})


def render(template: str, **values: Any) -> str:
    """Fill in a template of this folder; return the text of the page. All values are escaped, except those of type Markup.

    Raises jinja2's UndefinedError for a variable of the template that is not in `values`.
    """
    env = Environment(
        loader=PackageLoader("langext", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["duration"] = duration
    env.filters["json"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    env.filters["moment"] = lambda seconds: datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    return env.get_template(template).render(**values)


def _tiles(run: Run) -> Iterator[dict[str, Any]]:
    """The boxes at the top of the page: what was learned, what was forgotten, and which languages were not measured."""
    by_language = run.task_changes()
    learned = significance.mean([row for row in run.bits if run.is_new(row)])
    if learned:
        lines = [f"bits per byte {percent(learned)}"]
        figure = f"{-100 * learned.value:.1f} % fewer bits" if learned.value < 0 else f"{100 * learned.value:.1f} % more bits"
        if gap := run.gap_closed:
            figure = f"{100 * gap.value:.0f} % of the gap closed"
            low, high = (f"{100 * bound:.0f}" for bound in (gap.low, gap.high))
            lines.insert(0, f"the base's gap to {run.kept} in bits per byte (95 %: {low} to {high} %)")
        tone = "" if not learned.sure else "good" if learned.value < 0 else "bad"
        lines += _task_line(by_language, True)
        yield {"title": f"{run.new.name}: learned", "figure": figure, "tone": tone, "lines": lines}
    kept = [row for row in run.bits if not run.is_new(row)]
    worst, mean = significance.worst(kept), significance.mean(kept)
    if worst and mean:
        figure, tone = _forgot(run, kept)
        lines = [f"bits per byte {percent(mean)}" + (" over all sets" if len(kept) > 1 else "")]
        if len(kept) > 1:
            chance = f" (p {worst.difference.p:.3f})" if isfinite(worst.difference.p) else ""
            lines.append(f"most in {worst.name}: {100 * worst.relative:+.1f} %{chance}")
        several = len(run.originals) > 1
        lines += [f"{language.name}: " * several + standing.distance(run, language.code) for language in run.originals]
        yield {
            "title": f"{run.kept}: forgot",
            "figure": figure,
            "tone": tone,
            "lines": [*lines, *_task_line(by_language, False)],
        }
    if run.bits and run.unmeasured:
        missing = ", ".join(language.name for language in run.unmeasured)
        yield {"title": f"{missing}: forgot", "figure": "not measured", "tone": "bad", "lines": ["no held-out text"]}


def _forgot(run: Run, kept: Sequence[significance.Change]) -> tuple[str, str]:
    """How much the original languages lost, in words, and the tone of it ("good", "bad" or "").

    The figure is that of the set that lost most, among those whose loss is certain although several sets were tested. "Nothing"
    is only said of languages that are `standing.KEPT`, or, with these words, `standing.NO_TASKS` or `standing.UNSURE`.
    """
    sure = significance.worst(significance.surely_worse(kept))
    if sure:
        return f"{100 * sure.relative:.1f} %", "bad"
    perhaps = significance.worst([row for row in kept if row.verdict == "worse"])
    if perhaps:
        return f"perhaps {100 * perhaps.relative:.1f} %: one of {len(kept)} sets can be so by chance", "bad"
    # Missing errors, values or KL are no proof that nothing was lost.
    measured = {language.code: language.name for language in run.originals if language not in run.unmeasured}
    verdicts = {name: standing.of(run, code) for code, name in measured.items()}
    lost = {name: found for name, found in verdicts.items() if found not in standing.NOTHING_LOST}
    if lost:
        return "; ".join(f"{name} {found}" if len(measured) > 1 else found for name, found in lost.items()), "bad"
    if standing.UNSURE in verdicts.values():
        return "nothing beyond noise; KL not for certain", ""
    if standing.NO_TASKS in verdicts.values():
        return "nothing beyond noise; tasks not measured", ""
    return ("nothing", "good") if all(row.verdict == "better" for row in kept) else ("nothing beyond noise", "")


def _task_line(by_language: dict[bool, list[significance.Change]], new: bool) -> list[str]:
    """Lines about the tasks of the new language (`new`) or of the original ones: the mean change, and which tasks are certainly
    worse, because the mean would hide them.
    """
    rows = by_language.get(new, [])
    gain = significance.gain(rows)
    worse = [row.name for row in significance.surely_worse(rows)]
    lines = [f"tasks {points(gain)} ({len(rows)} of them)"] if gain else []
    return [*lines, *([f"worse: {'; '.join(worse)}"] if worse else [])]


def percent(mean: Mean) -> str:
    """Format a mean share and its 95 % interval in percent: -20.5 % (95 %: -21.7 to -19.4)."""
    return f"{100 * mean.value:+.1f} %" + _interval(mean)


def points(mean: Mean) -> str:
    """Format a mean change and its 95 % interval in percentage points: +3.1 points (95 %: -1.0 to +7.2)."""
    return f"{100 * mean.value:+.1f} points" + _interval(mean)


def _interval(mean: Mean) -> str:
    return f" (95 %: {100 * mean.low:+.1f} to {100 * mean.high:+.1f})" if isfinite(mean.low + mean.high) else ""


def _costs(run: Run) -> Iterator[tuple[str, str]]:
    cost, training, extended = run.cost, run.summary(TrainSummary), run.summary(ExtendSummary)
    if training:
        yield "training", f"{training.tokens:,} tokens in {training.steps} steps and {duration(training.seconds)}"
    if cost["train_memory_bytes"]:
        yield "memory of training, each process", f"{cost['train_memory_bytes'] / 1e9:.2f} GB"
    if training and training.tokens_per_second:
        yield "speed of training", f"{training.tokens_per_second:,.0f} tokens/s"
    if extended:
        added, base = extended.trainable_parameters, extended.base_parameters
        yield "parameters that learn", f"{added / 1e6:,.1f} M beside {base / 1e6:,.1f} M of the base"
    yield "all stages", duration(cost["all_seconds"])
    then, now = (scores.generation if scores else None for scores in (run.base_scores, run.model_scores))
    if then and now:
        yield f"writing one text ({now.device})", f"{now.tokens_per_second:.1f} tokens/s"
        if now.of_base:
            low, high = min(now.of_base), max(now.of_base)
            yield (
                "the same, compared with the base",
                f"{median(now.of_base):.2f} × its speed ({low:.2f} to {high:.2f} over the prompts)",
            )
        yield "memory of the weights", f"{now.weights_bytes / 1e9:.2f} GB, the base {then.weights_bytes / 1e9:.2f} GB"
        if now.peak_bytes is not None and then.peak_bytes is not None:
            yield "memory while writing", f"{now.peak_bytes / 1e9:.2f} GB, the base {then.peak_bytes / 1e9:.2f} GB"


def _provenance(run: Run) -> Iterator[tuple[str, str]]:
    """Where everything came from, as (name, value): base, text sources, seed and versions of the software."""
    if run.base:
        yield "base", run.base.root
        if run.base.commit:
            yield "commit of the base", run.base.commit
        for file in run.base.files:
            if file.name.endswith(".safetensors"):
                yield f"sha256 of {file.name}", file.sha256
    text = run.summary(FilterSummary)
    for row in text.funnel if text else []:
        yield f"source {row.source}", row.origin
    last = run.stages[-1][1]
    yield "seed", str(last.seed)
    yield from last.versions.items()


def _gates(run: Run) -> tuple[dict[str, list[float]], bool]:
    """Set of held-out text -> one value for each layer, and whether these gates can close.

    For gates that close, the value is the share of tokens whose gate is open; for others, the mean of the gate. The values come
    from the evaluation after training, or if there is none, from the last evaluation during training.
    """
    sets = run.model_scores.sets if run.model_scores else {}
    if any(bits.open is not None for bits in sets.values()):
        return {name: bits.open for name, bits in sets.items() if bits.open is not None}, True
    if any(bits.gate is not None for bits in sets.values()):
        return {name: bits.gate for name, bits in sets.items() if bits.gate is not None}, False
    last = next((row["sets"] for row in reversed(run.metrics) if row["kind"] == "eval"), {})
    close = any("open" in values for values in last.values())
    key = "open" if close else "gate"
    return {name: values[key] for name, values in last.items() if key in values}, close


def _layers(run: Run, gates: dict[str, list[float]]) -> list[int]:
    """The number of the layer of each value in `gates`; without a record of it, every layer is taken to have a block."""
    count, found = len(next(iter(gates.values()), [])), calibrated.record(run)
    return found.layers if found and len(found.layers) == count else list(range(count))


def _calibrated_plot(run: Run, rows: Sequence[calibrated.Row]) -> str:
    """The open share by layer, as calibrated; "" when the gates were not calibrated."""
    found = calibrated.record(run)
    new, kept = ({row.name: row.shares.open for row in rows if (row.role == calibrated.NEW) == new} for new in (True, False))
    return plots.open_shares(found.layers, new, kept, calibrated.left_out(run)) if found else ""


def _dial_plot(dial: calibrated.Dial) -> str:
    points = [(point.drift, point.gain, f"{point.closed:g}") for point in dial.points]
    return plots.dial(points, dial.points.index(dial.kept), dial.summary.max_kl)


def _lines(run: Run) -> list[tuple[str, str]]:
    """What was learned and forgotten in each set of held-out text, as (title, values in words)."""
    lines = []
    for row in run.bits:
        change = "no change beyond noise" if row.in_noise else f"{row.relative:+.1%}"
        low, high = (x / row.before for x in (row.difference.low, row.difference.high))
        interval = f"95 % between {low:+.1%} and {high:+.1%}" if isfinite(low + high) else "error unknown"
        text = f"{row.before:.3f} -> {row.after:.3f} bits per byte ({change}; {interval})"
        lines.append((standing.title(run, row), text))
    for language in run.originals:
        if run.bits or standing.kl(run, language.code) is not None:
            lines.append((f"distance: {language.name}", standing.distance(run, language.code)))
    return [*lines, *((f"not measured: {language.name}", "no held-out text") for language in run.unmeasured if run.bits)]


def _other_lines(run: Run) -> Iterator[tuple[str, str]]:
    """The same for sets that are not of the run's languages."""
    for row in run.others:
        kl = run.model_scores.others[row.name].kl_to_base if run.model_scores else None
        distance = f"; KL to the base {kl.value:.4f} nats per token" if kl else ""
        yield f"{run.role(row.name)}: {row.name}", f"{row.before:.3f} -> {row.after:.3f} bits per byte{distance}"


def headline(root: Path, page: Path) -> str:
    """The last lines that `langext run` prints: what was learned and forgotten, and the paths of checkpoint and report."""
    run = gather(root)
    lines = [f"{name + ' ':.<44} {text}" for name, text in [*_lines(run), *_other_lines(run)]]
    if gates := calibrated.line(run):
        lines.append(f"{'gates ':.<44} {gates}")
    if run.checkpoint and (export := run.summary(ExportSummary)):
        lines.append(f"{'checkpoint ':.<44} {shown(run.checkpoint)} ({export.loads_as})")
    lines.append(f"{'report ':.<44} {shown(page)}")
    return "\n".join(lines)


def shown(path: Path) -> str:
    """A path as text: relative to the current folder if it is inside it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
