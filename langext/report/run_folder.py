"""What the stages of a run left in its folder, gathered for those who read it: the report, `evaluate`, `compare`."""

from dataclasses import dataclass
from functools import cached_property
from math import hypot, isfinite, sqrt
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from langext import languages
from langext.artifacts import (
    BASE,
    JOB,
    METRICS,
    BaseManifest,
    Job,
    Manifest,
    Scores,
    finished,
    read_as,
    read_base,
    read_metrics,
)
from langext.evaluation import significance
from langext.evaluation.scores import ScoresFile, read
from langext.evaluation.significance import Change, Mean
from langext.summaries import (
    EvaluateSummary,
    ExportSummary,
    ExtendSummary,
    MergeSummary,
    RegateSummary,
    RescaleSummary,
    Summary,
    TokenizerSummary,
    TrainSummary,
)  # fmt: skip

FRACTIONS = ("acc_norm", "acc", "exact_match", "f1")
"""Metrics of tasks between 0 and 1, more being better, the preferred one first."""
REAL_GAP = 4
"""Standard errors that the gap between two languages must be wide to be called one."""
LATER = (TokenizerSummary, RescaleSummary, RegateSummary, MergeSummary)
"""What can be done to a model besides extending and training it."""

S = TypeVar("S", bound=Summary)


@dataclass(frozen=True)
class Run:
    """All that is there of a run."""

    root: Path
    new: languages.Language
    originals: list[languages.Language]
    stages: list[tuple[Path, Manifest]]
    base: BaseManifest | None
    base_scores: ScoresFile | None
    """What the evaluations of the base have found."""
    model_scores: ScoresFile | None
    """What those of the last model that was evaluated have found."""
    measuring: dict[str, list[str]]
    """What the evaluations of that model were set to, by key."""
    measured_differently: list[str]
    """Keys that differ between the two, so that their tasks do not compare."""

    def _last(self, cls: type[S]) -> tuple[Path, Manifest, S] | None:
        """Folder, manifest and summary of the last finished stage that reports this type."""
        typed = ((path, manifest, manifest.summary_as(cls)) for path, manifest in reversed(self.stages))
        return next(((path, manifest, summary) for path, manifest, summary in typed if summary), None)

    def summary(self, cls: type[S]) -> S | None:
        """The summary of the last finished stage that reports this type; None where there is none."""
        last = self._last(cls)
        return last[2] if last else None

    @cached_property
    def bits(self) -> list[Change]:
        """Changes in bits per byte, the new language first."""
        return sorted(significance.bits(self.base_scores, self.model_scores), key=lambda row: not self.is_new(row))

    @cached_property
    def tasks(self) -> list[Change]:
        """Changes in the figures of tasks."""
        return list(significance.tasks(self.base_scores, self.model_scores))

    def is_new(self, row: Change) -> bool:
        """Is this row of bits per byte of the new language?"""
        return row.name.split("/")[0] == self.new.code

    def task_changes(self) -> dict[bool, list[Change]]:
        """One figure of each task whose language is known, by whether that is the new one: the first of FRACTIONS that it has.
        Figures of other units do not add up.
        """
        known = self.model_scores.task_languages if self.model_scores else {}
        by_task: dict[str, dict[str, Change]] = {}
        for row in self.tasks:
            task, metric = row.name.split(", ")
            by_task.setdefault(task, {}).setdefault(metric.split("/")[0], row)  # of several filters, the first
        found: dict[bool, list[Change]] = {}
        for task, metrics in by_task.items():
            if task in known:
                shares = [metrics[name] for name in FRACTIONS if name in metrics]
                if shares and isfinite(shares[0].difference.value):
                    found.setdefault(known[task] == self.new.code, []).append(shares[0])
        return found

    @cached_property
    def gap_closed(self) -> Mean | None:
        """How much of the gap has been closed between what the new language cost the base and what the original languages cost
        it, in bits per byte, over the domains that both have, or over all. The interval takes the learning and the gap for
        independent. None where the gap was within REAL_GAP errors, or of another script: its characters take another number of
        bytes.
        """
        if any(language.code[4:] != self.new.code[4:] for language in self.originals):
            return None
        new = [row for row in self.bits if self.is_new(row)]
        kept = [row for row in self.bits if not self.is_new(row)]
        both = {row.name.split("/", 1)[1] for row in new} & {row.name.split("/", 1)[1] for row in kept}
        if both:
            new, kept = ([row for row in rows if row.name.split("/", 1)[1] in both] for rows in (new, kept))
        if not (new and kept):
            return None
        start, goal = (sum(row.before for row in rows) / len(rows) for rows in (new, kept))
        gap, gain = start - goal, significance.gain(new)
        error = sqrt(sum((row.before_stderr / len(rows)) ** 2 for rows in (new, kept) for row in rows))
        if gain is None or not gap > REAL_GAP * error:
            return None
        closed = gain.value / gap
        half = hypot((gain.high - gain.low) / 2, 1.96 * closed * error) / gap
        return Mean(closed, closed - half, closed + half)

    @cached_property
    def unmeasured(self) -> list[languages.Language]:
        """Original languages that no held-out text was measured of, before and after."""
        measured = {row.name.split("/")[0] for row in self.bits}
        return [language for language in self.originals if language.code not in measured]

    @property
    def kept(self) -> str:
        """The names of the original languages that were measured."""
        return ", ".join(language.name for language in self.originals if language not in self.unmeasured)

    @cached_property
    def pair(self) -> tuple[str, frozenset[str]]:
        """What is learned and what is kept."""
        return self.new.code, frozenset(language.code for language in self.originals)

    @cached_property
    def method(self) -> str:
        """What was done, in a few words: full + ldifs, rescale."""
        names = [summary.method for _, manifest in self.stages if (summary := manifest.summary_as(ExtendSummary))]
        training = self.summary(TrainSummary)
        penalties = training.penalties if training else []
        later = [cls.model_fields["of"].default for cls in LATER if self._last(cls)]
        return ", ".join([" + ".join([*names, *penalties]), *later] if names else [*penalties, *later]) or "base"

    @cached_property
    def extension(self) -> str:
        """The method's name alone; an empty text of a merged model."""
        summary = self.summary(ExtendSummary)
        return summary.method if summary else ""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that was chosen and decides what is learned, by `stage.key`, and `stage.key.0.key` in lists."""
        settings: dict[str, Any] = {"base_model": self.base.root if self.base else None}
        for _, manifest in self.stages:
            for key, value in manifest.choices.items():
                if key in ("method", "penalties"):  # the names are in `method`
                    parts = {"method": value} if key == "method" else {f"penalties.{part['name']}": part for part in value}
                    for name, part in parts.items():
                        inner = _flat(f"{manifest.name}.{name}", part)
                        settings |= {k: v for k, v in inner.items() if k != f"{manifest.name}.{name}.name"}
                else:
                    settings |= _flat(f"{manifest.name}.{key}", value)
            settings["seed"] = manifest.seed
        return settings

    @cached_property
    def rate(self) -> tuple[str, float] | None:
        """The learning rate of the last training, and its name among the settings."""
        last = self._last(TrainSummary)
        return (f"{last[1].name}.lr", last[2].lr) if last else None

    @cached_property
    def cost(self) -> dict[str, Any]:
        """What it took: parameters, tokens, time and memory of training, and how fast the result writes beside the base."""
        last, extended = self._last(TrainSummary), self.summary(ExtendSummary)
        speed = self.model_scores.generation if self.model_scores else None
        return {
            "trainable_parameters": extended.trainable_parameters if extended else None,
            "tokens": last[2].tokens if last else None,
            "train_seconds": last[2].seconds if last else None,
            "train_memory_bytes": self._train_memory(last[1]) if last else None,
            "all_seconds": sum(manifest.seconds for _, manifest in self.stages),
            "generation_speed_of_base": median(speed.of_base) if speed and speed.of_base else None,
        }

    def _train_memory(self, manifest: Manifest) -> int:
        """The most that training held: of a GPU's memory where it used one, else of the process."""
        held = [row["peak_memory_bytes"] for row in self.metrics if "peak_memory_bytes" in row]
        return max([*held, *([] if held else [manifest.peak_memory_bytes])])

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Texts that the models wrote, side by side; None for one that was not asked."""
        then, now = (
            {row.prompt: row for row in found.samples} if found else {} for found in (self.base_scores, self.model_scores)
        )
        rows = []
        for prompt, row in {**then, **now}.items():
            language = languages.find(row.language)
            base, extended = (found[prompt].text if prompt in found else None for found in (then, now))
            rows.append(
                {"prompt": prompt, "before": base, "text": extended, "tag": language.tag, "direction": language.direction}
            )
        return rows

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines that training wrote."""
        last = self._last(TrainSummary)
        return read_metrics(last[0] / METRICS) if last else []

    @property
    def checkpoint(self) -> Path | None:
        """The exported model."""
        last = self._last(ExportSummary)
        return last[0] / "checkpoint" if last else None

    def title(self, row: Change) -> str:
        """A bits-per-byte row in words: learned: French, handbook."""
        code, domain = row.name.split("/", 1)
        if row.verdict in ("unknown", "unmeasured"):
            verb = row.verdict
        elif code == self.new.code:
            verb = "learned" if row.verdict == "better" else "not learned"
        else:
            verb = "forgotten" if row.verdict == "worse" else "kept"
        return f"{verb}: {languages.find(code).name}, {domain}"


def gather(root: Path) -> Run:
    """Read a run folder. Raises ConfigError when it is none, or when another version of langext wrote it."""
    root = root.resolve()
    stages = finished(root)
    job = read_as(stages[0][0] / JOB, Job)
    measured = [entry for entry in stages if entry[1].kind == Scores.__name__]
    of_base = [entry for entry in measured if entry[1].inputs["model"].stage == BASE]
    others = [entry for entry in measured if entry not in of_base]
    model = others[-1][1].inputs["model"].fingerprint if others else None
    last = [entry for entry in others if entry[1].inputs["model"].fingerprint == model]
    measuring, base_measuring = _measuring(last), _measuring(of_base)
    return Run(
        root=root,
        new=languages.find(job.language),
        originals=[languages.find(code) for code in job.original_languages],
        stages=stages,
        base=read_base(root),
        base_scores=_together([path for path, _ in of_base]),
        model_scores=_together([path for path, _ in last]),
        measuring=measuring,
        measured_differently=[key for key, values in measuring.items() if of_base and base_measuring[key] != values],
    )


def _together(evaluations: list[Path]) -> ScoresFile | None:
    """All that several evaluations of one model have found; of what was measured twice, the later."""
    found = [read(Scores(path)) for path in evaluations]
    if not found:
        return None
    merged = found[0].model_dump()
    for scores in found[1:]:
        for key, value in scores.model_dump(exclude_none=True).items():
            if key == "samples":
                merged[key] = list({(row["language"], row["prompt"]): row for row in [*merged[key], *value]}.values())
            elif isinstance(value, dict) and key != "generation":
                merged[key] = {**merged[key], **value}
            elif value:
                merged[key] = value
    return ScoresFile.model_validate(merged)


def _flat(key: str, value: Any) -> dict[str, Any]:
    """A setting, and settings within it by names of their own, so that what differs is seen alone."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    parts = list(parts)
    if not parts or (isinstance(value, list) and not any(isinstance(part, dict) for part in value)):
        return {key: value}
    return {name: leaf for k, part in parts for name, leaf in _flat(f"{key}.{k}", part).items()}


def _measuring(evaluations: list[tuple[Path, Manifest]]) -> dict[str, list[str]]:
    """Key -> its values in all evaluations."""
    summaries = [summary for _, manifest in evaluations if (summary := manifest.summary_as(EvaluateSummary))]
    keys = summaries[0].measured_with if summaries else {}
    return {key: sorted({summary.measured_with[key] for summary in summaries}) for key in keys}
