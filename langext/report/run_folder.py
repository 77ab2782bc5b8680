"""Read a run folder: everything that its stages wrote, for the report, `langext scores` and `langext compare`.

The one rule: this file only reads. What was not written or measured is None or empty here, never a guess.
"""

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
from langext.export_summary import ExportSummary
from langext.spec import Summary
from langext.summaries import (
    EvaluateSummary,
    ExtendSummary,
    RecalibrateSummary,
    TokenizerSummary,
    TrainSummary,
    TransplantSummary,
)
from langext.text_summaries import ROLES
from langext.weight_summaries import MergeSummary, RegateSummary, RescaleSummary

FRACTIONS = ("acc_norm", "acc", "exact_match", "f1")
"""Metrics of tasks that lie between 0 and 1 and are better when higher; the preferred one first."""
REAL_GAP = 4
"""The gap between two languages counts only if it is wider than this many standard errors."""
MODEL_CHANGES = (TokenizerSummary, RescaleSummary, RegateSummary, RecalibrateSummary, MergeSummary, TransplantSummary)
"""Summaries of the stages that change a model, apart from extending and training it."""

S = TypeVar("S", bound=Summary)


@dataclass(frozen=True)
class Run:
    """All that a run folder holds."""

    root: Path
    new: languages.Language
    originals: list[languages.Language]
    stages: list[tuple[Path, Manifest]]
    base: BaseManifest | None
    base_scores: ScoresFile | None
    """Results of all evaluations of the base together."""
    model_scores: ScoresFile | None
    """Results of all evaluations of the last model that was evaluated."""
    measuring: dict[str, list[str]]
    """The settings with which that model was evaluated: key -> its values."""
    measured_differently: list[str]
    """Keys in `measuring` whose values differ for the base; task figures of base and model then cannot be compared."""

    def _last(self, cls: type[S]) -> tuple[Path, Manifest, S] | None:
        """Folder, manifest and summary of the last finished stage whose summary is of this type."""
        typed = ((path, manifest, manifest.summary_as(cls)) for path, manifest in reversed(self.stages))
        return next(((path, manifest, summary) for path, manifest, summary in typed if summary), None)

    def summary(self, cls: type[S]) -> S | None:
        """The summary of the last finished stage whose summary is of this type; None where there is none."""
        last = self._last(cls)
        return last[2] if last else None

    @cached_property
    def bits(self) -> list[Change]:
        """Changes in bits per byte from base to model, one for each set `<language>/<domain>`, the new language first."""
        return sorted(significance.bits(self.base_scores, self.model_scores), key=lambda row: not self.is_new(row))

    @cached_property
    def others(self) -> list[Change]:
        """The same for sets that are not of the run's languages: those that are protected, and those that are only measured."""
        return list(significance.others(self.base_scores, self.model_scores))

    def role(self, name: str) -> str:
        """What a set of `others` is, in words: protected, or not."""
        assert self.model_scores is not None, "it was measured"
        return ROLES[self.model_scores.others[name].role]

    @cached_property
    def tasks(self) -> list[Change]:
        """Changes in task figures from base to model, named `<task>, <metric>`."""
        return list(significance.tasks(self.base_scores, self.model_scores))

    def is_new(self, row: Change) -> bool:
        """True if this row of `bits` is about the new language."""
        return row.name.split("/")[0] == self.new.code

    def tasks_by_language(self) -> dict[str, list[Change]]:
        """Code of a language -> one change for each of its tasks, for the tasks whose language is known.

        The figure of a task is the first of FRACTIONS that it has. Tasks without one are left out, because a mean over figures
        of different units means nothing.
        """
        known = self.model_scores.task_languages if self.model_scores else {}
        by_task: dict[str, dict[str, Change]] = {}
        for row in self.tasks:
            task, _, metric = row.name.rpartition(", ")
            by_task.setdefault(task, {}).setdefault(metric.split("/")[0], row)  # of several filters, the first
        changes: dict[str, list[Change]] = {}
        for task, metrics in by_task.items():
            if task in known:
                shares = [metrics[name] for name in FRACTIONS if name in metrics]
                if shares and isfinite(shares[0].difference.value):
                    changes.setdefault(known[task], []).append(shares[0])
        return changes

    def task_changes(self) -> dict[bool, list[Change]]:
        """The same together: True -> tasks of the new language, False -> those of the others."""
        changes: dict[bool, list[Change]] = {}
        for code, rows in self.tasks_by_language().items():
            changes.setdefault(code == self.new.code, []).extend(rows)
        return changes

    @cached_property
    def gap_closed(self) -> Mean | None:
        """The share of the gap that the model has closed (1 is all of it), with its 95 % interval.

        The gap is how many more bits per byte the base needs for the new language than for the original ones, as means over
        the domains that both have, or over all domains if they share none. The interval assumes that gain and gap are
        independent. None where the gap is not wider than REAL_GAP standard errors, and where the languages have different
        scripts, because their characters take different numbers of bytes.
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
        # Error of a ratio of independent values (delta method): https://en.wikipedia.org/wiki/Propagation_of_uncertainty
        half = hypot((gain.high - gain.low) / 2, 1.96 * closed * error) / gap
        return Mean(closed, closed - half, closed + half)

    @cached_property
    def unmeasured(self) -> list[languages.Language]:
        """Original languages without any held-out text that was measured of both base and model."""
        measured = {row.name.split("/")[0] for row in self.bits}
        return [language for language in self.originals if language.code not in measured]

    @property
    def kept(self) -> str:
        """The names of the original languages that were measured."""
        return ", ".join(language.name for language in self.originals if language not in self.unmeasured)

    @cached_property
    def pair(self) -> tuple[str, frozenset[str]]:
        """The code of the new language and the codes of the original ones. Only runs with equal pairs are compared."""
        return self.new.code, frozenset(language.code for language in self.originals)

    @cached_property
    def method(self) -> str:
        """What was done to the base, in a few words, like "full + ldifs, rescale": method + penalties, later stages."""
        made = [manifest.summary_as(ExtendSummary) or manifest.summary_as(TransplantSummary) for _, manifest in self.stages]
        names = [summary.method for summary in made if summary]
        training = self.summary(TrainSummary)
        penalties = training.penalties if training else []
        later = [cls.model_fields["of"].default for cls in MODEL_CHANGES if self._last(cls)]
        return ", ".join([" + ".join([*names, *penalties]), *later] if names else [*penalties, *later]) or "base"

    @cached_property
    def extension(self) -> str:
        """The name of the method alone; empty for a merged model."""
        summary = self.summary(ExtendSummary) or self.summary(TransplantSummary)
        return summary.method if summary else ""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting that was chosen and decides what is learned. Keys are `stage.key`, and `stage.key.0.key` in lists."""
        settings: dict[str, Any] = {"base_model": self.base.root if self.base else None}
        for _, manifest in self.stages:
            for key, value in manifest.choices.items():
                # Penalties are listed by name, so that runs with different lists of them still compare. The names themselves
                # are left out: the property `method` has them.
                if key in ("method", "penalties"):
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
        """The key of the last training's learning rate in `settings`, and its value; None without training."""
        last = self._last(TrainSummary)
        return (f"{last[1].name}.lr", last[2].lr) if last else None

    @cached_property
    def cost(self) -> dict[str, Any]:
        """What the run cost; None for what is not known. Names say the units.

        Training: parameters, tokens, time and memory. All stages: time. The result: how fast it writes, as a multiple of the
        base's speed.
        """
        last, extended = self._last(TrainSummary), self.summary(ExtendSummary)
        speed = self.model_scores.generation if self.model_scores else None
        return {
            "trainable_parameters": extended.trainable_parameters if extended else None,
            "tokens": last[2].tokens if last else None,
            "train_seconds": last[2].seconds if last else None,
            "train_memory_bytes": peak_memory(*last[:2]) if last else None,
            "all_seconds": sum(manifest.seconds for _, manifest in self.stages),
            "generation_speed_of_base": median(speed.of_base) if speed and speed.of_base else None,
        }

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The texts that base and model wrote, one row for each prompt; None for a model that did not get the prompt."""
        then, now = (
            {row.prompt: row for row in scores.samples} if scores else {} for scores in (self.base_scores, self.model_scores)
        )
        rows = []
        for prompt, row in {**then, **now}.items():
            language = languages.find(row.language)
            base, extended = (written[prompt].text if prompt in written else None for written in (then, now))
            rows.append(
                {"prompt": prompt, "before": base, "text": extended, "tag": language.tag, "direction": language.direction}
            )
        return rows

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics that the last training wrote, which may still go on; [] without training."""
        written = sorted(self.root.glob(f"[0-9][0-9]-*/{METRICS}"))
        return read_metrics(written[-1]) if written else []

    @property
    def checkpoint(self) -> Path | None:
        """The folder of the last exported model; None without an export."""
        last = self._last(ExportSummary)
        return last[0] / "checkpoint" if last else None


def gather(root: Path) -> Run:
    """Read a run folder. Raises ConfigError when it is not one, or when another version of langext wrote it."""
    root = root.resolve()
    stages = finished(root)
    job = read_as(stages[0][0] / JOB, Job)
    measured = [entry for entry in stages if entry[1].kind == Scores.__name__]
    of_base = [entry for entry in measured if entry[1].inputs["model"].stage == BASE]
    others = [entry for entry in measured if entry not in of_base]
    # A run may evaluate several models, and one model in several stages: the last model counts, with all its evaluations.
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
        measured_differently=[key for key, values in measuring.items() if base_measuring.get(key, values) != values],
    )


def _together(evaluations: list[Path]) -> ScoresFile | None:
    """The results of several evaluations of one model together; the later result counts where a thing was measured twice."""
    results = [read(Scores(path)) for path in evaluations]
    if not results:
        return None
    merged = results[0].model_dump()
    for scores in results[1:]:
        for key, value in scores.model_dump(exclude_none=True).items():
            if key == "samples":
                merged[key] = list({(row["language"], row["prompt"]): row for row in [*merged[key], *value]}.values())
            elif isinstance(value, dict) and key != "generation":  # the speed of one generation is not a mix of two
                merged[key] = {**merged[key], **value}
            elif value:
                merged[key] = value
    return ScoresFile.model_validate(merged)


def peak_memory(folder: Path, manifest: Manifest) -> int:
    """The most memory that a training held, in bytes: of the GPU if it used one, otherwise of the process."""
    on_gpu = [row["peak_memory_bytes"] for row in read_metrics(folder / METRICS) if "peak_memory_bytes" in row]
    return max(on_gpu, default=manifest.peak_memory_bytes)


def _flat(key: str, value: Any) -> dict[str, Any]:
    """A setting as key -> value. Nested settings get keys of their own, so that a comparison shows only what differs."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    parts = list(parts)
    if not parts or (isinstance(value, list) and not any(isinstance(part, dict) for part in value)):
        return {key: value}
    return {name: leaf for k, part in parts for name, leaf in _flat(f"{key}.{k}", part).items()}


def _measuring(evaluations: list[tuple[Path, Manifest]]) -> dict[str, list[str]]:
    """Setting of an evaluation -> its different values in these evaluations, sorted."""
    summaries = [summary for _, manifest in evaluations if (summary := manifest.summary_as(EvaluateSummary))]
    keys = dict.fromkeys(key for summary in summaries for key in summary.measured_with)
    return {key: sorted({s.measured_with[key] for s in summaries if key in s.measured_with}) for key in keys}
