"""One self-contained HTML file about a run. It reads what stages wrote; stages never call it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from langext import languages
from langext.artifacts import JOB, MANIFEST, read_json
from langext.console import duration
from langext.report import plots
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
class Change:
    """A figure before and after, with standard errors."""

    name: str
    before: float
    before_stderr: float
    after: float
    after_stderr: float
    difference_stderr: float
    """Of after - before; paired over passages where both measured the same ones."""

    @property
    def relative(self) -> float:
        """Change as a share of the value before."""
        return (self.after - self.before) / self.before

    @property
    def in_noise(self) -> bool:
        """Is the change smaller than two standard errors?"""
        return not abs(self.after - self.before) > 2 * self.difference_stderr


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
    samples: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    training: dict[str, Any]
    export: dict[str, Any]
    checkpoint: Path | None

    def title(self, row: Change) -> str:
        """A bits-per-byte row in words: learned: French, handbook."""
        code, domain = row.name.split("/", 1)
        if code == self.new.code:
            verb = "learned" if row.after < row.before and not row.in_noise else "not learned"
        else:
            verb = "kept" if row.in_noise or row.after < row.before else "forgotten"
        return f"{verb}: {languages.find(code).name}, {domain}"


def gather(root: Path) -> Run:
    """Read a run folder."""
    stages = finished(root)
    job = read_json(stages[0][0] / JOB)
    by_use = {manifest["stage"]["uses"]: (path, manifest) for path, manifest in stages}
    scores = [(manifest, read_json(path / "scores.json")) for path, manifest in stages if manifest["kind"] == "Scores"]
    before = next((s for m, s in scores if m["inputs"]["model"]["stage"] == "base"), None)
    after = next((s for m, s in reversed(scores) if m["inputs"]["model"]["stage"] != "base"), None)
    train, filtered, exported = (by_use.get(use) for use in ("train", "filter", "export"))
    return Run(
        root=root,
        new=languages.find(job["language"]),
        originals=[languages.find(code) for code in job["original_languages"]],
        stages=stages,
        funnel=filtered[1]["summary"]["funnel"] if filtered else [],
        bits=sorted(_bits(before, after), key=lambda row: not row.name.startswith(job["language"])),
        tasks=_tasks(before, after),
        samples=_samples(before, after),
        metrics=_metrics(train[0] / "metrics.jsonl") if train else [],
        training=train[1]["summary"] if train else {},
        export=exported[1]["summary"] if exported else {},
        checkpoint=exported[0] / "checkpoint" if exported else None,
    )


def _bits(before: Any, after: Any) -> list[Change]:
    if not (before and after):
        return []
    rows = []
    for name, now in after["bits_per_byte"].items():
        then = before["bits_per_byte"].get(name)
        if then:
            stderr = _paired(then, now) if then["bytes_each"] == now["bytes_each"] else _root(then, now)
            rows.append(Change(name, then["value"], then["stderr"], now["value"], now["stderr"], stderr))
    return rows


def _paired(then: dict[str, Any], now: dict[str, Any]) -> float:
    """Bootstrap over the passages that both measured: passages vary far more than the change does."""
    import numpy as np

    from langext.bpb import Bits

    return Bits(np.subtract(now["bits_each"], then["bits_each"]), np.array(now["bytes_each"])).stderr()


def _root(then: dict[str, float], now: dict[str, float]) -> float:
    return (then["stderr"] ** 2 + now["stderr"] ** 2) ** 0.5


def _tasks(before: Any, after: Any) -> list[Change]:
    if not (before and after):
        return []
    return [
        Change(f"{task}, {metric}", then["value"], then["stderr"], now["value"], now["stderr"], _root(then, now))
        for task, metrics in after["tasks"].items()
        for metric, now in metrics.items()
        if (then := before["tasks"].get(task, {}).get(metric))
    ]


def _samples(before: Any, after: Any) -> list[dict[str, Any]]:
    if not (before and after):
        return []
    then = {row["prompt"]: row["text"] for row in before["samples"]}
    return [
        {**row, "before": then[row["prompt"]], "direction": languages.find(row["language"]).direction}
        for row in after["samples"]
        if row["prompt"] in then
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
    gates = Markup(plots.gates(run.metrics)) if run.metrics else ""
    page = env.get_template("report.html.j2").render(run=run, curves=curves, gates=gates)
    beside = root / (PAGE + ".tmp")
    beside.write_text(page, encoding="utf-8")
    beside.replace(root / PAGE)
    return root / PAGE


def _lines(run: Run) -> list[tuple[str, str]]:
    """The headline: what was learned, what was forgotten."""
    lines = []
    for row in run.bits:
        change = "no change beyond noise" if row.in_noise else f"{row.relative:+.1%}"
        text = f"{row.before:.3f} -> {row.after:.3f} bits per byte ({change}; standard error {row.difference_stderr:.3f})"
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
