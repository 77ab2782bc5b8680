"""Stage evaluate: bits per byte, multiple-choice tasks and text samples of one model, in every language of the run."""

from collections.abc import Mapping
from contextlib import nullcontext
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from langext import languages, scores
from langext.artifacts import Corpus, Model, Scores, sha256_file, write_json
from langext.console import say
from langext.spec import ConfigError
from langext.stage import Context, Stage

if TYPE_CHECKING:
    from langext.modeling import LiveModel


class Evaluate(Stage):
    """Measure a model. Give it `inputs: {model: base}` to measure the untouched base."""

    uses: Literal["evaluate"]
    bpb_bytes: int = Field(200_000, ge=1000)
    """Held-out bytes per language and domain for bits per byte."""
    drift_bytes: int = Field(20_000, ge=0)
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
    """Examples before each item of `tasks`; the task's own default when not given."""
    limit: int | None = Field(None, ge=1)
    """Items of each of `tasks`; all when not given."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 8
    """Sequences in one forward pass of lm-eval; auto is as many as fit into a GPU's memory."""
    samples: int = Field(2, ge=0)
    """Texts to write per language, each from the start of a paragraph of another held-out document."""
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
        from langext.harness import check_tasks

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

    def drift(self, manifest: dict[str, Any]) -> str:
        """Names the first file of one's own tasks that has changed since they were measured."""
        for file in manifest["summary"].get("task_files", []):
            path = Path(file["path"])
            if path.is_file() and sha256_file(path) != file["sha256"]:
                return f"task file {path} has changed since it was measured with"
        return ""

    def _names(self, ctx: Context) -> dict[str, str | None]:
        """The lm-eval tasks and the language that each of them measures, where that is known."""
        from langext.harness import public

        if isinstance(self.tasks, dict):
            return {name: code for code, names in self.tasks.items() for name in names}
        names = public(ctx.languages, self.include_path) if self.tasks == "auto" else self.tasks
        return {name: languages.of_task(name, ctx.languages) for name in names}

    def _task_languages(self, measures: dict[str, str | None], tasks: Mapping[str, Any]) -> dict[str, str]:
        """The language of each task that counts for one. For a tag, or a group without figures of its own, its tasks do."""
        from langext.harness import members

        found: dict[str, str] = {}
        for name, code in measures.items():
            if code is not None:
                standing = [name] if tasks.get(name) else members(name, self.include_path)
                found |= {task: code for task in standing if task in tasks}
        return found

    def run(self, ctx: Context, model: Model, corpus: Corpus) -> Scores:
        """Write scores.json; see `langext.scores`."""
        import torch

        from langext import documents, harness, modeling

        torch.manual_seed(ctx.seed)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        live = modeling.load(model, dtype, "cuda" if self.runtime.gpus else "cpu")
        heldout = documents.heldout(corpus, ctx.languages)
        drift = self._drift(ctx, model, live, heldout, dtype)
        bits = {name: self._bits(live, name, texts) for name, texts in heldout.items()}
        by_language = {c: [t for name, ts in heldout.items() if name.startswith(c) for t in ts] for c in ctx.languages}
        own = {f"continuation_{c}": harness.continuation_items(ts, self.continuation_items, ctx.seed)
               for c, ts in by_language.items() if self.continuation_items}  # fmt: skip
        empty = [name for name, items in own.items() if not items]
        if empty:
            say(f"  {', '.join(empty)}: too little held-out text for an item; left out")
        own = {name: items for name, items in own.items() if items}
        names = self._names(ctx)
        if own or names:
            say(f"  lm-eval: {', '.join([*own, *names])}")
        tasks = harness.evaluate(
            live, list(names), own, num_fewshot=self.num_fewshot, limit=self.limit, batch_size=self.batch_size,
            include=self.include_path,
        )  # fmt: skip
        for name, metrics in tasks.items():
            say(f"  {name}: " + ", ".join(f"{m} {f.value:.3f} ± {f.stderr:.3f}" for m, f in metrics.items()))
        prompts = {c: _starts(texts)[: self.samples] for c, texts in by_language.items()} | self.prompts
        samples, speed = self._write(live, prompts)
        measures = names | {f"continuation_{code}": code for code in ctx.languages}
        found = scores.ScoresFile(
            bits_per_byte=bits, tasks=tasks, task_languages=self._task_languages(measures, tasks), drift=drift, samples=samples,
            writing=speed,
        )  # fmt: skip
        write_json(ctx.out / scores.FILE, found.model_dump(mode="json", exclude_none=True))
        files = [{"path": str(path), "sha256": sha256_file(path)} for path in harness.files(list(names), self.include_path)]
        ctx.summary.update(bits_per_byte={name: row.value for name, row in bits.items()}, own_items=bool(own), task_files=files)
        return Scores(ctx.out)

    def _drift(
        self, ctx: Context, model: Model, live: "LiveModel", heldout: dict[str, list[str]], dtype: Any
    ) -> dict[str, scores.Drift]:
        """How far the model is from what it was before its newest extension, by original language."""
        import numpy as np

        from langext import bpb, modeling
        from langext.drift import Drift

        found: dict[str, scores.Drift] = {}
        record, method = modeling.read_record(model), live.method
        if record.method is None or method is None or not self.drift_bytes:
            return found
        base = None if method.reversible else modeling.load(model, dtype, str(live.net.device), trained=False).net
        tokenizer = modeling.load_tokenizer(record.base)
        for code in ctx.original_languages:
            texts = [text for name, texts in heldout.items() if name.startswith(f"{code}/") for text in texts]
            passages = bpb.passages(texts, 1000, self.drift_bytes)
            if not passages:
                continue
            with nullcontext() if base is not None else method.off(live.net):
                drift = Drift(base or live.net, tokenizer, passages)
            spread = bpb.Bits(np.array(drift.each(live.net)), np.array([len(row) for row in drift.rows]))
            _finite(f"{code}: KL to the base", spread.per_byte)
            found[code] = scores.Drift(kl=spread.per_byte, stderr=spread.stderr(), tokens=int(spread.num_bytes.sum()))
            say(f"  {code}: KL to the base {spread.per_byte:.4f} ± {spread.stderr():.4f} nats per token")
        return found

    def _bits(self, live: "LiveModel", name: str, texts: list[str]) -> scores.Bits:
        from langext import bpb
        from langext.diagnostics import Observer

        passages = bpb.passages(texts, 1000, self.bpb_bytes)
        seen = Observer(live)
        measured = bpb.measure(live.net, live.tokenizer, passages, observe=seen)
        _finite(f"{name}: bits per byte", measured.per_byte)
        say(f"  {name}: {measured.per_byte:.4f} ± {measured.stderr():.4f} bits per byte on {measured.num_bytes.sum():,} bytes")
        return scores.Bits(
            value=measured.per_byte,
            stderr=measured.stderr(),
            bytes=int(measured.num_bytes.sum()),
            passages=len(passages),
            bits_each=[round(b, 3) for b in measured.bits.tolist()],
            bytes_each=measured.num_bytes.tolist(),
            **seen.layers(),
        )

    def _write(self, live: "LiveModel", prompts: dict[str, list[str]]) -> tuple[list[scores.Sample], scores.Writing | None]:
        """Greedy continuations of the prompts of each language, and how fast they came."""
        import time

        import torch

        from langext import documents, writing

        samples: list[scores.Sample] = []
        tokens, seconds = 0, 0.0
        for language, prompt in ((code, prompt) for code, found in prompts.items() for prompt in found):
            ids_1T = torch.tensor(documents.encode(live.tokenizer, [prompt]), device=live.net.device)
            if not samples:
                writing.go_on(live.net, live.tokenizer, ids_1T, 2)  # the first call sets things up
            started = time.monotonic()
            out = writing.go_on(live.net, live.tokenizer, ids_1T, self.sample_tokens)
            tokens, seconds = tokens + len(out), seconds + time.monotonic() - started
            text = live.tokenizer.decode(out, skip_special_tokens=True).strip()
            samples.append(scores.Sample(language=language, prompt=prompt, text=text))
        if not samples:
            return samples, None
        memory = sum(p.numel() * p.element_size() for p in live.net.parameters())
        speed = tokens / seconds
        return samples, scores.Writing(
            tokens_per_second=speed, tokens=tokens, memory_bytes=memory, device=str(live.net.device.type)
        )


def _finite(what: str, value: float) -> None:
    if not isfinite(value):
        raise ConfigError(f"{what} is {value}: the weights of this model overflow; with precision fp32 they may not")


def _starts(texts: list[str]) -> list[str]:
    """The first twelve words of the first real paragraph of each document that has one."""
    paragraphs = (next((p for p in text.split("\n\n") if len(p.split()) >= 24), "") for text in texts)
    return [" ".join(p.split()[:12]) for p in paragraphs if p]
