"""Stage evaluate: measures bits per byte, multiple-choice tasks and text samples of one model.

The one rule: it measures in every language of the run, so that learning and forgetting are seen together, and on all other text
that was given to be kept or watched.
"""

import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import quote

from pydantic import Field, TypeAdapter, field_validator

from langext import languages
from langext.architectures import families
from langext.artifacts import CHECKPOINTS, Corpus, Manifest, Model, Scores, read_json, sha256_file, write_json
from langext.console import duration, say
from langext.context import Context
from langext.errors import ConfigError, user_path
from langext.evaluation import benchmarks, heldout, scores
from langext.models import bases
from langext.spec import Benchmarks
from langext.stages.base import Stage
from langext.summaries import EvaluateSummary, TaskFile
from langext.text_summaries import FilterSummary, Role

if TYPE_CHECKING:
    from langext.evaluation.harness import Harness
    from langext.methods.base import Method
    from langext.methods.extended import LiveModel


KEPT = TypeAdapter(dict[str, dict[str, scores.Metric]])
"""Type of the metrics that are kept between attempts, by task and metric."""


class Evaluate(Stage):
    """Measure a model. Give it `inputs: {model: base}` to measure the untouched base."""

    salvages: ClassVar[bool] = True
    uses: Literal["evaluate"]
    bpb_bytes: int = Field(200_000, ge=1000)
    """Held-out bytes per language and domain for bits per byte. More give a smaller error and take longer."""
    kl_bytes: int = Field(20_000, ge=0)
    """Held-out bytes of each original language, in equal parts of its domains, and of each domain of other languages, for
    KL(base || model), which needs the base in memory as well; 0 skips it."""
    continuation_items: int = Field(200, ge=0)
    """Items per language of the continuation task (which of four second halves belongs to a paragraph); 0 skips it. More items
    give a smaller error and take longer."""
    tasks: list[str] | dict[str, list[str]] | Literal["auto"] = []
    """lm-eval tasks by name, or by language (`{fra_Latn: [...], eng_Latn: [...]}`). The language says whether a task measures
    learning or forgetting; for the public tasks that `langext tasks` lists it is known. auto: ARC-Challenge, HellaSwag, MMLU,
    CommonsenseQA and Belebele, or their translations, as far as they exist in the languages of the run. Data comes from the
    hub; for your own tasks from where their files say."""
    include_path: Path | None = None
    """Folder with your own lm-eval task files."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples before each item of `tasks`; the default of each task when not given. A task that sets 0 itself keeps 0."""
    limit: int | None = Field(None, ge=1)
    """Number of items to measure of each of `tasks`, a random choice that is always the same; all when not given."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 8
    """Sequences in one forward pass of lm-eval; auto takes as many as fit into the memory of a GPU. More need more memory: for
    each token the probabilities of all tokens in float32."""
    samples: int = Field(2, ge=0)
    """Texts to generate per language, each from the start of a paragraph of a different held-out document. The base generates
    them too, so that the speeds can be compared."""
    sample_tokens: int = Field(60, ge=1)
    """Length of each generated text, in tokens."""
    prompts: dict[str, list[str]] = {}
    """Prompts to continue, by language, in place of the paragraphs."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the weights during the measurement. auto: bf16 on GPUs and on CPUs that compute in it, else fp32."""

    @field_validator("tasks", "prompts")
    @classmethod
    def _entries(cls, value: Any) -> Any:
        if value == "auto":
            return value
        by_code = {languages.find(code).code: texts for code, texts in value.items()} if isinstance(value, dict) else value
        if len(by_code) < len(value):
            raise ValueError(f"a language is named twice: {', '.join(value)}")
        every = [entry for texts in by_code.values() for entry in texts] if isinstance(by_code, dict) else by_code
        if isinstance(by_code, dict) and (twice := next((entry for entry in every if every.count(entry) > 1), None)):
            raise ValueError(f"{twice!r} is there twice")
        for entry in every:
            if not entry.strip():
                raise ValueError("an entry is empty")
            try:
                entry.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{entry!r} has half a character (a surrogate without its other half)") from None
        return by_code

    @field_validator("include_path")
    @classmethod
    def _folder(cls, value: Path | None) -> Path | None:
        return value if value is None else user_path(value, "include_path")

    def check(self, ctx: Context) -> None:
        """Raise ConfigError for a wrong language, or a task that lm-eval does not know or cannot load. Say what auto means."""
        from langext.evaluation.harness import check_folder, check_tasks

        if self.include_path and not self.include_path.is_dir():
            raise ConfigError(f"include_path: {self.include_path}: no such folder", at=("include_path",))
        if self.include_path:
            try:
                check_folder(self.include_path)
            except ConfigError as error:
                raise ConfigError(f"include_path: {error}", at=("include_path",)) from None
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

    def check_model(self, given: "tuple[Method, ...]", config: Any) -> None:
        """Raise ConfigError for texts that are longer than the base has positions."""
        positions = families.positions(config) if config else None
        if positions and self.sample_tokens >= positions and "sample_tokens" in self.model_fields_set:
            said = f"sample_tokens is {self.sample_tokens}, and the base has {positions} positions for a prompt and its text"
            raise ConfigError(said, at=("sample_tokens",))

    def choices(self) -> dict[str, Any]:
        """Empty: measuring does not change what a model learns."""
        return {}

    def outdated(self, manifest: Manifest) -> str:
        """Why the scores are out of date: another version of langext, or a task file that changed or is gone; else empty."""
        try:
            summary = manifest.summary_as(EvaluateSummary)
        except ConfigError:  # it has other keys, so another version wrote it
            summary = None
        if summary is None or summary.scores != scores.FORMAT:
            return "another version of langext measured this"
        if self._with_lm_eval and "lm_eval" not in summary.measured_with:
            return "another version of langext measured this"
        for file in summary.task_files:
            path = Path(file.path)
            if not path.is_file():
                return f"task file {path} is gone since it was measured with"
            if sha256_file(path) != file.sha256:
                return f"task file {path} has changed since it was measured with"
        return ""

    def same_sources(self, manifest: Manifest, measured: Callable[[], Collection[str]] = tuple) -> bool:
        """True when the user's own task files are the same as in the finished stage."""
        from langext.evaluation import harness

        if self.outdated(manifest):
            return False
        summary = manifest.summary_as(EvaluateSummary)
        if summary is None or (self.include_path and self.tasks == "auto"):
            return False
        every = [name for names in self.tasks.values() for name in names] if isinstance(self.tasks, dict) else list(self.tasks)
        return self.tasks == "auto" or summary.task_files == _hashes(harness.files(every, self.include_path))

    def benchmarks(self, ctx: Context) -> Benchmarks:
        """The lm-eval tasks that this stage measures."""
        return Benchmarks(tasks=list(self._names(ctx)), include_path=self.include_path)

    def _names(self, ctx: Context) -> dict[str, str | None]:
        """Name of each lm-eval task -> the language that it measures; None where that is not known."""
        from langext.evaluation.harness import auto_tasks

        if isinstance(self.tasks, dict):
            return {name: code for code, names in self.tasks.items() for name in names}
        names = auto_tasks(ctx.languages, self.include_path) if self.tasks == "auto" else self.tasks
        return {name: benchmarks.of_task(name, ctx.languages) for name in names}

    def _task_languages(self, measures: dict[str, str | None], tasks: Mapping[str, Any]) -> dict[str, str]:
        """Task in the results -> its language. A tag, or a group without a score of its own, is replaced by its tasks."""
        from langext.evaluation.harness import members

        of_task: dict[str, str] = {}
        for name, code in measures.items():
            if code is not None:
                standing = [name] if tasks.get(name) else members(name, self.include_path)
                of_task |= {task: code for task in standing if task in tasks}
        return of_task

    def run(self, ctx: Context, model: Model, corpus: Corpus) -> Scores:
        """Write scores.json; for its format see `langext.evaluation.scores`.

        The scores of each finished task are kept in checkpoints/, so that an interrupted stage does not measure them again.
        """
        import torch

        from langext.architectures import precision
        from langext.data import documents
        from langext.evaluation import continuation, generation, harness
        from langext.models import loading

        torch.manual_seed(ctx.seed)
        dtype = precision.DTYPES[precision.chosen(self.precision, self.runtime.gpus)]
        live = loading.load(model, dtype, "cuda" if self.runtime.gpus else "cpu")
        generation.refuse_long(live.net, live.tokenizer, self.prompts)
        # loaded where it is needed, and dropped again
        base = None if live.method is None else partial(loading.reference, model, live)
        ours = documents.heldout(corpus, ctx.languages)
        others = documents.heldout(corpus, [code for code in corpus.languages("valid") if code not in ctx.languages])
        by_language = {c: [t for name, ts in ours.items() if name.startswith(f"{c}/") for t in ts] for c in ctx.languages}
        sets = {code: {n: ts for n, ts in ours.items() if n.startswith(f"{code}/")} for code in ctx.original_languages}
        kept = {code: of for code, of in sets.items() if of} | {name: {name: ts} for name, ts in others.items()}
        kl, kl_by_set = heldout.distances(base(), live, kept, self.kl_bytes) if base and self.kl_bytes else ({}, {})
        bits = heldout.bits(live, ours | others, self.bpb_bytes)
        names = self._names(ctx)
        tasks = self._tasks(ctx, live, bases.content(model) if names else "", list(names), by_language)
        fits = partial(generation.fits, live.net, live.tokenizer)
        starts = {c: filter(fits, continuation.starts(texts)) for c, texts in by_language.items()}
        prompts = {c: self.prompts[c] if c in self.prompts else list(islice(starts[c], self.samples)) for c in starts}
        samples, speed = generation.write_samples(live, base, prompts, self.sample_tokens)
        items = {f"continuation_{code}": code for code in ctx.languages if f"continuation_{code}" in tasks}
        written = scores.ScoresFile(
            bits_per_byte={name: bits[name] for name in ours if name in bits}, tasks=tasks, samples=samples, generation=speed,
            task_languages=self._task_languages(names | items, tasks),
            kl_to_base={code: kl[code] for code in ctx.original_languages if code in kl},
            kl_by_set={name: found for name, found in kl_by_set.items() if name in ours},
            others=_others(corpus, [name for name in others if name in bits], bits, kl),
        )  # fmt: skip
        write_json(ctx.out / scores.FILE, written.model_dump(mode="json", exclude_none=True))
        files = harness.files(list(names), self.include_path)
        ctx.report(
            EvaluateSummary(
                bits_per_byte={name: row.value for name, row in written.bits_per_byte.items()},
                scores=scores.FORMAT,
                task_files=_hashes(files),
                measured_with={key: str(value) for key, value in self._measuring().items()},
            )
        )
        return Scores(ctx.out)

    @property
    def _with_lm_eval(self) -> bool:
        """Whether anything is measured by lm-eval."""
        return bool(self.tasks or self.continuation_items)

    def _measuring(self) -> dict[str, Any]:
        """What changes how tasks are measured; scores can be compared only when all of it is equal."""
        from langext.architectures import precision

        shown = self.include_path and str(self.include_path)
        by = {"lm_eval": version("lm_eval")} if self._with_lm_eval else {}
        return by | {
            "num_fewshot": self.num_fewshot, "limit": self.limit, "include_path": shown,
            "precision": precision.chosen(self.precision, self.runtime.gpus),
        }  # fmt: skip

    def tidy(self, out: Path) -> None:
        """Delete the kept scores of single tasks."""
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)

    def _tasks(
        self, ctx: Context, live: "LiveModel", model: str, names: Sequence[str], texts: Mapping[str, list[str]]
    ) -> dict[str, dict[str, scores.Metric]]:
        """Metrics by task: the continuation task in every language, and the tasks in `names`. `model` says which one it is."""
        from langext.evaluation import continuation, harness

        found: dict[str, dict[str, scores.Metric]] = {}
        if not (names or self.continuation_items):
            return found
        measure = harness.Harness(live, self.batch_size)
        for code, of_code in texts.items():
            # A token is at least a byte, and two are left for what tokenizers put before a text.
            items = continuation.items(of_code, self.continuation_items, ctx.seed, measure.length - 2)
            if items:
                found[f"continuation_{code}"] = measure.items(f"continuation_{code}", items)
                _tell(f"continuation_{code}", found[f"continuation_{code}"])
            elif self.continuation_items:
                say(f"  continuation_{code}: too little held-out text for an item; left out")
        started = time.monotonic()
        for number, name in enumerate(names, 1):
            # quoted: the name of a task may contain a slash
            of_task = self._task(name, measure, model, ctx.out / CHECKPOINTS / f"{quote(name, safe='')}.json")
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
        """Metrics of a task and its subtasks: those in the file `kept` if they were measured in the same way, else new ones."""
        from langext.evaluation import harness

        files = [file.model_dump() for file in _hashes(harness.files([name], self.include_path))]
        by = {"files": files, "model": model, **self._measuring()}
        earlier = read_json(kept) if kept.is_file() else {}
        if earlier.get("by") == by and earlier["format"] == scores.FORMAT:
            say(f"  {name}: measured already")
            return KEPT.validate_python(earlier["metrics"])
        metrics = measure.task(name, num_fewshot=self.num_fewshot, limit=self.limit, include=self.include_path)
        kept.parent.mkdir(exist_ok=True)
        write_json(kept, {"format": scores.FORMAT, "by": by, "metrics": KEPT.dump_python(metrics, mode="json")})
        return metrics


def _others(
    corpus: Corpus, names: Sequence[str], bits: Mapping[str, scores.BpbScore], kl: Mapping[str, scores.KL]
) -> dict[str, scores.OtherScore]:
    """The figures of the sets `names`, which are not of the run, with what each of them is there for."""
    text = corpus.manifest.summary_as(FilterSummary)
    roles: dict[str, Role] = {row.source: row.role for row in text.funnel} if text else {}
    return {name: scores.OtherScore(role=roles[name], bits_per_byte=bits[name], kl_to_base=kl.get(name)) for name in names}


def _hashes(files: Sequence[Path]) -> list[TaskFile]:
    return [TaskFile(path=str(path), sha256=sha256_file(path)) for path in files]


def _tell(task: str, metrics: Mapping[str, scores.Metric]) -> None:
    say(f"  {task}: " + ", ".join(f"{name} {heldout.shown(m.value, m.stderr, 3)}" for name, m in metrics.items()))
