"""One self-contained HTML file about a run. It reads what stages wrote; stages never call it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from langext import changes, languages
from langext.artifacts import JOB, MANIFEST, Scores, read_json
from langext.changes import Change
from langext.console import duration
from langext.report import plots
from langext.scores import ScoresFile, read
from langext.spec import ConfigError

PAGE = "report.html"


def finished(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Folder and manifest of every finished stage of a run, in order. Raises ConfigError when `root` is no run folder."""
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder")
    found = [(p.parent, read_json(p)) for p in sorted(root.glob(f"[0-9][0-9]-*/{MANIFEST}"))]
    if not found:
        raise ConfigError(f"{root}: no finished stage here, so there is nothing to report")
    return found


@dataclass(frozen=True)
class Run:
    """All that the report says, gathered."""

    root: Path
    new: languages.Language
    originals: list[languages.Language]
    stages: list[tuple[Path, dict[str, Any]]]
    funnel: list[dict[str, Any]]
    bits: list[Change]
    tasks: list[Change]
    before: ScoresFile | None
    after: ScoresFile | None
    vocabulary: dict[str, Any]
    samples: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    training: dict[str, Any]
    export: dict[str, Any]
    checkpoint: Path | None

    def title(self, row: Change) -> str:
        """A bits-per-byte row in words: learned: French, handbook."""
        code, domain = row.name.split("/", 1)
        if code == self.new.code:
            verb = "learned" if row.verdict == "better" else "not learned"
        else:
            verb = "forgotten" if row.verdict == "worse" else "kept"
        return f"{verb}: {languages.find(code).name}, {domain}"


def gather(root: Path) -> Run:
    """Read a run folder."""
    stages = finished(root)
    job = read_json(stages[0][0] / JOB)
    by_use = {manifest["stage"]["uses"]: (path, manifest) for path, manifest in stages}
    scores = [(manifest, read(Scores(path))) for path, manifest in stages if manifest["kind"] == "Scores"]
    before = next((s for m, s in scores if m["inputs"]["model"]["stage"] == "base"), None)
    after = next((s for m, s in reversed(scores) if m["inputs"]["model"]["stage"] != "base"), None)
    train, filtered, exported = (by_use.get(use) for use in ("train", "filter", "export"))
    return Run(
        root=root,
        new=languages.find(job["language"]),
        originals=[languages.find(code) for code in job["original_languages"]],
        stages=stages,
        funnel=filtered[1]["summary"]["funnel"] if filtered else [],
        bits=sorted(changes.bits(before, after), key=lambda row: not row.name.startswith(job["language"])),
        tasks=list(changes.tasks(before, after)),
        before=before,
        after=after,
        vocabulary=by_use["extend_tokenizer"][1]["summary"] if "extend_tokenizer" in by_use else {},
        samples=_samples(before, after),
        metrics=_metrics(train[0] / "metrics.jsonl") if train else [],
        training=train[1]["summary"] if train else {},
        export=exported[1]["summary"] if exported else {},
        checkpoint=exported[0] / "checkpoint" if exported else None,
    )


def _samples(before: ScoresFile | None, after: ScoresFile | None) -> list[dict[str, Any]]:
    if not (before and after):
        return []
    then = {row.prompt: row.text for row in before.samples}
    return [
        {**row.model_dump(), "before": then[row.prompt], "direction": languages.find(row.language).direction}
        for row in after.samples
        if row.prompt in then
    ]


def _metrics(path: Path) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def build(root: Path) -> Path:
    """Write <run>/report.html and return its path."""
    run = gather(root)
    env = Environment(
        loader=PackageLoader("langext", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["duration"] = duration
    curves = Markup(plots.curves(run.metrics, run.new.code)) if run.metrics else ""  # our own SVG, its texts escaped
    gates = Markup(plots.gates(_opened(run)))
    page = env.get_template("report.html.j2").render(run=run, curves=curves, gates=gates)
    beside = root / (PAGE + ".tmp")
    beside.write_text(page, encoding="utf-8")
    beside.replace(root / PAGE)
    return root / PAGE


def _opened(run: Run) -> dict[str, list[float]]:
    """Share of open tokens in each layer by set: of the evaluation after training, or else of the training's last one."""
    if run.after:
        found = {name: bits.open for name, bits in run.after.bits_per_byte.items() if bits.open is not None}
        if found:
            return found
    last = next((row["figures"] for row in reversed(run.metrics) if row["kind"] == "eval"), {})
    return {name: figures["open"] for name, figures in last.items() if "open" in figures}


def _lines(run: Run) -> list[tuple[str, str]]:
    """The headline: what was learned, what was forgotten."""
    lines = []
    for row in run.bits:
        change = "no change beyond noise" if row.in_noise else f"{row.relative:+.1%}"
        low, high = (x / row.before for x in (row.difference.low, row.difference.high))
        text = f"{row.before:.3f} -> {row.after:.3f} bits per byte ({change}; 95 % between {low:+.1%} and {high:+.1%})"
        lines.append((run.title(row), text))
    return lines


def headline(root: Path, page: Path) -> str:
    """The last lines of `langext run`."""
    run = gather(root)
    lines = [f"{name + ' ':.<44} {text}" for name, text in _lines(run)]
    if run.checkpoint:
        lines.append(f"{'checkpoint ':.<44} {_shown(run.checkpoint)} ({run.export['class']})")
    lines.append(f"{'report ':.<44} {_shown(page)}")
    return "\n".join(lines)


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
