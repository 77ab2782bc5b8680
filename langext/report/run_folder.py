"""What the stages of a run left in its folder, gathered for those who read it: the report, `evaluate`, `compare`."""

from dataclasses import dataclass
from functools import cached_property
from math import hypot, isfinite, sqrt
from pathlib import Path
from statistics import median
from typing import Any

from langext import languages
from langext.artifacts import BASE, JOB, MANIFEST, METRICS, Scores, finished, read_json, read_metrics
from langext.evaluation import significance
from langext.evaluation.scores import ScoresFile, read
from langext.evaluation.significance import Change, Mean

MEASURING = ("num_fewshot", "limit", "precision", "include_path")
"""Keys of an evaluate stage that decide what its task figures mean."""
SHARES = ("acc_norm", "acc", "exact_match", "f1")
"""Figures of tasks between 0 and 1, more being better, the preferred one first."""
REAL_GAP = 4
"""Standard errors that the gap between two languages must be wide to be called one."""
WATCHING = {"eval_every", "eval_bytes", "log_every", "save_every", "keep_checkpoints"}
"""Keys of a train stage that change nothing of what is learned, as a rule."""


@dataclass(frozen=True)
class Run:
    """All that is there of a run."""

    root: Path
    new: languages.Language
    originals: list[languages.Language]
    stages: list[tuple[Path, dict[str, Any]]]
    base: dict[str, Any]
    """The manifest of the base; {} where there is none."""
    before: ScoresFile | None
    """What the evaluations of the base have found."""
    after: ScoresFile | None
    """What those of the last model that was evaluated have found."""
    measuring: dict[str, list[str]]
    """What the evaluations of that model were set to, of MEASURING."""
    measured_differently: list[str]
    """Keys of MEASURING that differ between the two, so that they do not compare."""

    def _last(self, use: str) -> tuple[Path, dict[str, Any]] | None:
        found = [(path, manifest) for path, manifest in self.stages if manifest["stage"]["uses"] == use]
        return found[-1] if found else None

    def summary(self, use: str) -> dict[str, Any]:
        """What the last finished stage of this kind has put into its manifest; {} where there is none."""
        found = self._last(use)
        return found[1]["summary"] if found else {}

    @cached_property
    def bits(self) -> list[Change]:
        """Changes in bits per byte, the new language first."""
        return sorted(significance.bits(self.before, self.after), key=lambda row: not self.is_new(row))

    @cached_property
    def tasks(self) -> list[Change]:
        """Changes in the figures of tasks."""
        return list(significance.tasks(self.before, self.after))

    def is_new(self, row: Change) -> bool:
        """Is this row of bits per byte of the new language?"""
        return row.name.split("/")[0] == self.new.code

    def task_changes(self) -> dict[bool, list[Change]]:
        """One figure of each task whose language is known, by whether that is the new one: the first of SHARES that it has.
        Figures of other units do not add up.
        """
        known = self.after.task_languages if self.after else {}
        by_task: dict[str, dict[str, Change]] = {}
        for row in self.tasks:
            task, metric = row.name.split(", ")
            by_task.setdefault(task, {}).setdefault(metric.split("/")[0], row)  # of several filters, the first
        found: dict[bool, list[Change]] = {}
        for task, metrics in by_task.items():
            if task in known:
                shares = [metrics[name] for name in SHARES if name in metrics]
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
        names = [manifest["stage"]["method"]["name"] for _, manifest in self.stages if "method" in manifest["stage"]]
        trained = self._last("train")
        penalties = [penalty["name"] for penalty in trained[1]["stage"].get("penalties", [])] if trained else []
        later = [use for use in ("extend_tokenizer", "rescale", "regate", "merge") if self._last(use)]
        return ", ".join([" + ".join([*names, *penalties]), *later] if names else [*penalties, *later]) or "base"

    @cached_property
    def extension(self) -> str:
        """The method's name alone; an empty text of a merged model."""
        return next((m["stage"]["method"]["name"] for _, m in self.stages if "method" in m["stage"]), "")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that was chosen and decides what is learned, by `stage.key`, and `stage.key.0.key` in lists."""
        found: dict[str, Any] = {"base_model": self.base.get("root") or self.base.get("identity", {}).get("base_model")}
        for _, manifest in self.stages:
            stage = manifest["stage"]
            if stage["uses"] in ("evaluate", "export"):
                continue
            name = stage.get("name") or stage["uses"]
            for key, value in stage.items():
                if stage["uses"] == "train" and key in WATCHING:
                    continue
                if key in ("method", "penalties"):  # the names are in `method`
                    parts = {"method": value} if key == "method" else {f"penalties.{part['name']}": part for part in value}
                    for place, part in parts.items():
                        found |= {k: v for k, v in _flat(f"{name}.{place}", part).items() if k != f"{name}.{place}.name"}
                elif key not in ("uses", "name", "inputs", "runtime"):
                    found |= _flat(f"{name}.{key}", value)
            found["seed"] = manifest.get("seed")
        return found

    @cached_property
    def rate(self) -> tuple[str, float] | None:
        """The learning rate of the last training, and its name among the settings."""
        trained = self._last("train")
        if trained is None or "lr" not in trained[1]["stage"]:
            return None
        stage = trained[1]["stage"]
        return f"{stage.get('name') or 'train'}.lr", stage["lr"]

    @cached_property
    def cost(self) -> dict[str, Any]:
        """What it took: parameters, tokens, time and memory of training, and how fast the result writes beside the base."""
        trained, extended = self._last("train"), self.summary("extend")
        training = trained[1]["summary"] if trained else {}
        writing = self.after.writing if self.after else None
        return {
            "trainable_parameters": extended.get("trainable_parameters"),
            "tokens": training.get("tokens"),
            "train_seconds": training.get("seconds"),
            "train_memory_bytes": self._train_memory(trained[1]) if trained else None,
            "all_seconds": sum(manifest["seconds"] for _, manifest in self.stages),
            "writing_speed_of_base": median(writing.of_base) if writing and writing.of_base else None,
        }

    def _train_memory(self, manifest: dict[str, Any]) -> int:
        """The most that training held: of a GPU's memory where it used one, else of the process."""
        held = [row["peak_memory_bytes"] for row in self.metrics if "peak_memory_bytes" in row]
        return max([*held, *([] if held else [manifest["peak_memory_bytes"]])])

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Texts that the models wrote, side by side; None for one that was not asked."""
        then, now = ({row.prompt: row for row in found.samples} if found else {} for found in (self.before, self.after))
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
        trained = self._last("train")
        return read_metrics(trained[0] / METRICS) if trained else []

    @property
    def checkpoint(self) -> Path | None:
        """The exported model."""
        exported = self._last("export")
        return exported[0] / "checkpoint" if exported else None

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
    """Read a run folder."""
    root = root.resolve()
    stages = finished(root)
    job = read_json(stages[0][0] / JOB)
    measured = [(path, manifest) for path, manifest in stages if manifest["kind"] == "Scores"]
    of_base = [entry for entry in measured if entry[1]["inputs"]["model"]["stage"] == BASE]
    others = [entry for entry in measured if entry not in of_base]
    model = others[-1][1]["inputs"]["model"]["fingerprint"] if others else None
    last = [entry for entry in others if entry[1]["inputs"]["model"]["fingerprint"] == model]
    return Run(
        root=root,
        new=languages.find(job["language"]),
        originals=[languages.find(code) for code in job["original_languages"]],
        stages=stages,
        base=read_json(root / BASE / MANIFEST) if (root / BASE / MANIFEST).exists() else {},
        before=_together([path for path, _ in of_base]),
        after=_together([path for path, _ in last]),
        measuring=_measuring(last),
        measured_differently=[
            key for key, values in _measuring(last).items() if of_base and _measuring(of_base)[key] != values
        ],
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
            elif isinstance(value, dict) and key != "writing":
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


def _measuring(evaluations: list[tuple[Path, dict[str, Any]]]) -> dict[str, list[str]]:
    return {key: sorted({str(manifest["stage"].get(key)) for _, manifest in evaluations}) for key in MEASURING}
