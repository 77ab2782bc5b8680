"""Stage evaluate: bits per byte, multiple-choice tasks and text samples of one model, in every language of the run."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, field_validator

from langext import languages
from langext.artifacts import CHECKPOINTS, Corpus, Manifest, Model, Scores, read_json, sha256_file, write_json
from langext.console import duration, say
from langext.context import Context
from langext.evaluation import benchmarks, scores
from langext.spec import ConfigError, RunFailed
from langext.stages.base import Stage
from langext.summaries import EvaluateSummary, TaskFile

if TYPE_CHECKING:
    from langext.evaluation.harness import Harness
    from langext.methods.extended import LiveModel
    from langext.models.loading import Reference


KEPT = TypeAdapter(dict[str, dict[str, scores.Metric]])
"""What has been measured already, by task and metric."""
MEASURING = ("num_fewshot", "limit", "precision", "include_path")
"""Keys that decide what the figures of tasks mean."""


class Evaluate(Stage):
    """Measure a model. Give it `inputs: {model: base}` to measure the untouched base."""

    salvages: ClassVar[bool] = True
    uses: Literal["evaluate"]
    bpb_bytes: int = Field(200_000, ge=1000)
    """Held-out bytes per language and domain for bits per byte."""
    kl_bytes: int = Field(20_000, ge=0)
    """Held-out bytes of each original language for KL(base || model), which needs the base as well; 0 leaves it out."""
    continuation_items: int = Field(200, ge=0)
    """Items per language of the continuation task (which second half of a paragraph is right, out of four); 0 leaves it out."""
    tasks: list[str] | dict[str, list[str]] | Literal["auto"] = []
    """lm-eval tasks by name, or by language (`{fra_Latn: [...], eng_Latn: [...]}`), so that it is known which ones tell of
    learning and which of forgetting; public ones that `langext tasks` lists are known anyway. auto: ARC-Challenge, HellaSwag,
    MMLU, CommonsenseQA and Belebele or their translations, as far as there are some in the languages of the run. Data comes
    from the hub; that of your own tasks from where they say."""
    include_path: Path | None = None
    """Folder of further lm-eval task files."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples before each item of `tasks`; the task's own default when not given. A task whose own setting is 0 keeps it."""
    limit: int | None = Field(None, ge=1)
    """Items of each of `tasks`; all when not given."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 8
    """Sequences in one forward pass of lm-eval; auto is as many as fit into a GPU's memory."""
    samples: int = Field(2, ge=0)
    """Texts to write per language, each from the start of a paragraph of another held-out document. The base writes them as
    well, for the speed beside it."""
    sample_tokens: int = Field(60, ge=1)
    """Length of each written text."""
    prompts: dict[str, list[str]] = {}
    """Texts to go on from instead, by language."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the weights."""

    @field_validator("tasks", "prompts")
    @classmethod
    def _by_language(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        found = {languages.find(code).code: entries for code, entries in value.items()}
        if len(found) < len(value):
            raise ValueError(f"a language is named twice: {', '.join(value)}")
        every = [entry for entries in found.values() for entry in entries]
        if twice := next((entry for entry in every if every.count(entry) > 1), None):
            raise ValueError(f"{twice!r} is there twice")
        if not all(entry.strip() for entry in every):
            raise ValueError("an entry is empty")
        return found

    def check(self, ctx: Context) -> None:
        """Every task is known to lm-eval and its data can be loaded. Says what auto stands for."""
        from langext.evaluation.harness import check_tasks

        if self.include_path and not self.include_path.is_dir():
            raise ConfigError(f"include_path: {self.include_path}: no such folder", at=("include_path",))
        for key, value in (("tasks", self.tasks), ("prompts", self.prompts)):
            odd = sorted(set(value) - set(ctx.languages)) if isinstance(value, dict) else []
            if odd:
                allowed = ", ".join(ctx.languages)
                raise ConfigError(f"{key}: {odd[0]} is no language of this run; there are: {allowed}", at=(key,))
        names = self._names(ctx)
        if self.tasks == "auto":
            say(f"{self.name or self.uses}: tasks auto is {', '.join(names) or 'none'}")
        try:
            check_tasks(list(names), self.include_path)
        except ConfigError as error:
            raise ConfigError(str(error), at=("tasks",)) from None

    def choices(self) -> dict[str, Any]:
        """None: measuring decides nothing of what a model learns."""
        return {}

    def outdated(self, manifest: Manifest) -> str:
        """Names the first file of one's own tasks that has changed since they were measured, or the format of older scores."""
        summary = manifest.summary_as(EvaluateSummary)
        if summary is None or summary.scores != scores.FORMAT:
            return "another version of langext measured this"
        for file in summary.task_files:
            path = Path(file.path)
            if path.is_file() and sha256_file(path) != file.sha256:
                return f"task file {path} has changed since it was measured with"
        return ""

    def same_sources(self, manifest: Manifest) -> bool:
        """Are the files of one's own tasks the ones that were measured with?"""
        from langext.evaluation import harness

        summary = manifest.summary_as(EvaluateSummary)
        if summary is None or self.outdated(manifest) or (self.include_path and self.tasks == "auto"):
            return False
        every = [name for names in self.tasks.values() for name in names] if isinstance(self.tasks, dict) else list(self.tasks)
        return self.tasks == "auto" or summary.task_files == _hashes(harness.files(every, self.include_path))

    def _names(self, ctx: Context) -> dict[str, str | None]:
        """The lm-eval tasks and the language that each of them measures, where that is known."""
        from langext.evaluation.harness import public

        if isinstance(self.tasks, dict):
            return {name: code for code, names in self.tasks.items() for name in names}
        names = public(ctx.languages, self.include_path) if self.tasks == "auto" else self.tasks
        return {name: benchmarks.of_task(name, ctx.languages) for name in names}

    def _task_languages(self, measures: dict[str, str | None], tasks: Mapping[str, Any]) -> dict[str, str]:
        """The language of each task that counts for one. For a tag, or a group without figures of its own, its tasks do."""
        from langext.evaluation.harness import members

        found: dict[str, str] = {}
        for name, code in measures.items():
            if code is not None:
                standing = [name] if tasks.get(name) else members(name, self.include_path)
                found |= {task: code for task in standing if task in tasks}
        return found

    def run(self, ctx: Context, model: Model, corpus: Corpus) -> Scores:
        """Write scores.json; see `langext.scores`. What a task has found is kept in checkpoints/ until then."""
        import torch

        from langext.data import documents
        from langext.evaluation import harness
        from langext.models import loading

        torch.manual_seed(ctx.seed)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        live = loading.load(model, dtype, "cuda" if self.runtime.gpus else "cpu")
        base = (
            None if live.method is None else partial(loading.reference, model, live)
        )  # loaded where it is needed, and dropped again
        heldout = documents.heldout(corpus, ctx.languages)
        kl = self._kl(ctx, base(), live, heldout) if base and self.kl_bytes else {}
        bits = {name: self._bits(live, name, texts) for name, texts in heldout.items()}
        by_language = {c: [t for name, ts in heldout.items() if name.startswith(c) for t in ts] for c in ctx.languages}
        names = self._names(ctx)
        tasks = self._tasks(ctx, live, model.path.name, list(names), by_language)
        prompts = {c: _starts(texts)[: self.samples] for c, texts in by_language.items()} | self.prompts
        samples, speed = self._write(live, base, prompts)
        measures = names | {f"continuation_{code}": code for code in ctx.languages}
        found = scores.ScoresFile(
            bits_per_byte=bits, tasks=tasks, task_languages=self._task_languages(measures, tasks), kl_to_base=kl,
            samples=samples, generation=speed,
        )  # fmt: skip
        write_json(ctx.out / scores.FILE, found.model_dump(mode="json", exclude_none=True))
        files = harness.files(list(names), self.include_path)
        ctx.report(
            EvaluateSummary(
                bits_per_byte={name: row.value for name, row in bits.items()},
                scores=scores.FORMAT,
                task_files=_hashes(files),
                measured_with={key: str(getattr(self, key)) for key in MEASURING},
            )
        )
        return Scores(ctx.out)

    def tidy(self, out: Path) -> None:
        """Drop what was kept of single tasks."""
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)

    def _tasks(
        self, ctx: Context, live: "LiveModel", model: str, names: Sequence[str], texts: Mapping[str, list[str]]
    ) -> dict[str, dict[str, scores.Metric]]:
        """The continuation task in every language, and the tasks of these names. `model` is the name of its folder."""
        from langext.evaluation import harness

        found: dict[str, dict[str, scores.Metric]] = {}
        if not (names or self.continuation_items):
            return found
        measure = harness.Harness(live, self.batch_size)
        for code, of_code in texts.items():
            items = harness.continuation_items(of_code, self.continuation_items, ctx.seed)
            if items:
                found[f"continuation_{code}"] = measure.items(f"continuation_{code}", items)
                _tell(f"continuation_{code}", found[f"continuation_{code}"])
            elif self.continuation_items:
                say(f"  continuation_{code}: too little held-out text for an item; left out")
        started = time.monotonic()
        for number, name in enumerate(names, 1):
            of_task = self._task(name, measure, model, ctx.out / CHECKPOINTS / f"{name}.json")
            for task, metrics in of_task.items():
                _tell(task, metrics)
                shots = {f.shots for f in metrics.values() if f.shots is not None} - {self.num_fewshot}
                if self.num_fewshot and shots:
                    say(f"  {task}: with {', '.join(map(str, sorted(shots)))} examples, which the task itself sets")
            left = (time.monotonic() - started) / number * (len(names) - number)
            if left:
                say(f"  {number} of {len(names)} tasks, ETA {duration(left)}")
            found |= of_task
        return found

    def _task(self, name: str, measure: "Harness", model: str, kept: Path) -> dict[str, dict[str, scores.Metric]]:
        """The figures of a task and of all that is in it: those in the file `kept` if they were measured in the same way."""
        from langext.evaluation import harness

        files = [file.model_dump() for file in _hashes(harness.files([name], self.include_path))]
        by = {"files": files, "model": model, **{key: getattr(self, key) for key in ("num_fewshot", "limit", "precision")}}
        earlier = read_json(kept) if kept.is_file() else {}
        if earlier.get("by") == by and earlier["format"] == scores.FORMAT:
            say(f"  {name}: measured already")
            return KEPT.validate_python(earlier["metrics"])
        found = measure.task(name, num_fewshot=self.num_fewshot, limit=self.limit, include=self.include_path)
        kept.parent.mkdir(exist_ok=True)
        write_json(kept, {"format": scores.FORMAT, "by": by, "metrics": KEPT.dump_python(found, mode="json")})
        return found

    def _kl(self, ctx: Context, base: "Reference", live: "LiveModel", heldout: dict[str, list[str]]) -> dict[str, scores.KL]:
        """How far the model is from what it was before its newest extension, by original language."""
        import numpy as np

        from langext.evaluation import bpb
        from langext.evaluation.kl import BaseKL

        found: dict[str, scores.KL] = {}
        for code in ctx.original_languages:
            texts = [text for name, texts in heldout.items() if name.startswith(f"{code}/") for text in texts]
            passages = bpb.passages(texts, 1000, self.kl_bytes)
            if not passages:
                continue
            with base.as_itself():
                kl = BaseKL(base.net, base.tokenizer, passages)
            spread = bpb.PassageBits(np.array(kl.each(live.net)), np.array([len(row) for row in kl.rows]))
            _finite(f"{code}: KL to the base", spread.per_byte)
            found[code] = scores.KL(value=spread.per_byte, stderr=_known(spread.stderr()), tokens=int(spread.num_bytes.sum()))
            say(f"  {code}: KL to the base {_pm(spread.per_byte, spread.stderr())} nats per token")
        return found

    def _bits(self, live: "LiveModel", name: str, texts: list[str]) -> scores.BpbScore:
        from langext.evaluation import bpb
        from langext.evaluation.gate_stats import Observer

        passages = bpb.passages(texts, 1000, self.bpb_bytes)
        seen = Observer(live)
        measured = bpb.measure(live.net, live.tokenizer, passages, observe=seen)
        _finite(f"{name}: bits per byte", measured.per_byte)
        spread = _pm(measured.per_byte, measured.stderr())
        say(f"  {name}: {spread} bits per byte on {measured.num_bytes.sum():,} bytes")
        return scores.BpbScore(
            value=measured.per_byte,
            stderr=_known(measured.stderr()),
            bytes=int(measured.num_bytes.sum()),
            passages=len(passages),
            bits_each=[round(b, 3) for b in measured.bits.tolist()],
            bytes_each=measured.num_bytes.tolist(),
            **seen.layers(),
        )

    def _write(
        self, live: "LiveModel", find_base: "Callable[[], Reference] | None", prompts: dict[str, list[str]]
    ) -> tuple[list[scores.Sample], scores.GenerationSpeed | None]:
        """Greedy continuations of the prompts of each language, and how fast they came, beside the base where there is one."""
        from langext.evaluation import generation

        every = [(code, prompt) for code, found in prompts.items() for prompt in found]
        if not every:
            return [], None
        base = find_base() if find_base else None

        def of_base(prompt: str, most: int) -> generation.Generated | None:
            if base is None:
                return None
            with base.as_itself():
                return generation.generate(base.net, base.tokenizer, prompt, most)

        generation.generate(live.net, live.tokenizer, every[0][1], 2)  # the first call sets things up
        of_base(every[0][1], 2)
        samples, ours, ratios = [], [], []
        for number, (code, prompt) in enumerate(every):
            then = of_base(prompt, self.sample_tokens) if number % 2 else None  # they take turns in being the first
            now = generation.generate(live.net, live.tokenizer, prompt, self.sample_tokens)
            then = then or of_base(prompt, self.sample_tokens)
            samples.append(scores.Sample(language=code, prompt=prompt, text=now.text))
            ours.append(now)
            if then and then.tokens == now.tokens:  # so that the prompt weighs the same
                ratios.append(then.seconds / now.seconds)
        weights = sum(p.numel() * p.element_size() for p in live.net.parameters())
        peaks = [row.peak_bytes for row in ours if row.peak_bytes is not None]
        return samples, scores.GenerationSpeed(
            tokens_per_second=median(row.tokens / row.seconds for row in ours), tokens=sum(row.tokens for row in ours),
            weights_bytes=weights, peak_bytes=weights + max(peaks) if peaks else None, device=live.net.device.type,
            of_base=ratios,
        )  # fmt: skip


def _hashes(files: Sequence[Path]) -> list[TaskFile]:
    return [TaskFile(path=str(path), sha256=sha256_file(path)) for path in files]


def _tell(task: str, metrics: Mapping[str, scores.Metric]) -> None:
    say(f"  {task}: " + ", ".join(f"{name} {_pm(m.value, m.stderr, 3)}" for name, m in metrics.items()))


def _pm(value: float, stderr: float | None, digits: int = 4) -> str:
    return f"{value:.{digits}f}" + ("" if stderr is None or not isfinite(stderr) else f" ± {stderr:.{digits}f}")


def _known(stderr: float) -> float | None:
    return stderr if isfinite(stderr) else None


def _finite(what: str, value: float) -> None:
    if not isfinite(value):
        raise RunFailed(f"{what} is {value}: the weights of this model overflow; with precision fp32 they may not")


def _starts(texts: list[str]) -> list[str]:
    """The first twelve words of the first real paragraph of each document that has one."""
    paragraphs = (next((p for p in text.split("\n\n") if len(p.split()) >= 24), "") for text in texts)
    return [" ".join(p.split()[:12]) for p in paragraphs if p]
