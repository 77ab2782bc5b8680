"""Run folders made by hand, for what only reads them."""

import json
from pathlib import Path
from typing import Any

from langext.artifacts import BASE, MANIFEST, BaseManifest, FileRecord, InputRecord, Job, Manifest, read_json, write_json
from langext.evaluation.certificate import Certificate
from langext.evaluation.scores import FORMAT
from langext.pipeline.plan import Step
from langext.summaries import EvaluateSummary, ExtendSummary, TrainSummary
from langext.text_summaries import FilterSummary


def bits(value: float, count: int = 50) -> dict[str, Any]:
    return {
        "value": value, "stderr": 0.05, "bytes": 100 * count, "passages": count,
        "bits_each": [value * 100 + (i % 7) for i in range(count)], "bytes_each": [100] * count,
    }  # fmt: skip


def stage(
    root: Path, number: int, name: str, kind: str, inputs: dict[str, str] | None = None, summary: Any = None, **recipe: Any
) -> Path:
    """A finished stage. `inputs` are names of stages; `recipe` is what the pipeline file would say of it."""
    folder = root / f"{number:02d}-{name}"
    folder.mkdir(parents=True)
    read = {k: InputRecord(stage=v, fingerprint=f"of {v}", path=f"{root}/{v}") for k, v in (inputs or {}).items()}
    common = {"stage": {"uses": name, **recipe}, "inputs": read, "fingerprint": f"of {name}", "identity": recipe, "seed": 1}
    write_json(folder / "job.json", Job(**common, language="fra_Latn", original_languages=["eng_Latn"], tokens=str(root)))
    manifest = Manifest(
        **common, kind=kind, choices=recipe, summary=summary.model_dump() if summary else {}, seconds=3.0,
        peak_memory_bytes=10**9, device="CPU", started=1.7e9, versions={"torch": "2"}, files=[],
    )  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    return folder


def base_of(root: Path, sha256: str) -> BaseManifest:
    """The record of a prepared base, whose tokenizer has this hash."""
    file = FileRecord(name="tokenizer.json", bytes=1, sha256=sha256)
    manifest = BaseManifest(identity={"base_model": "pico"}, commit=None, root="pico", folder="", local=None, files=[file])
    (root / BASE).mkdir(parents=True, exist_ok=True)
    write_json(root / BASE / MANIFEST, manifest)
    return manifest


def evaluation(
    root: Path,
    number: int,
    name: str,
    model: str,
    french: float,
    english: float,
    measured_with: Any = None,
    **more: Any,
) -> Path:
    """A finished evaluation of one set of each language."""
    with_ = {"num_fewshot": "None", "limit": "None", "precision": "bf16", "include_path": "None"} | (measured_with or {})
    summary = EvaluateSummary(bits_per_byte={}, scores=FORMAT, task_files=[], measured_with=with_)
    folder = stage(root, number, name, "Scores", {"model": model}, summary)
    found = {"fra_Latn/book": bits(french), "eng_Latn/news": bits(english)}
    found["eng_Latn/news"]["bits_each"] = [
        b + (i % 2 * 2 - 1) * number for i, b in enumerate(found["eng_Latn/news"]["bits_each"])
    ]
    tasks = {"continuation_fra_Latn": {"acc": {"value": 0.5, "stderr": 0.06, "items": 60}}}
    scores = {"format": FORMAT, "bits_per_byte": found, "tasks": tasks}
    write_json(folder / "scores.json", scores | {"task_languages": {"continuation_fra_Latn": "fra_Latn"}} | more)
    return folder


def compared(root: Path, method: str, lr: float, french: float, english: float, **extend: Any) -> Path:
    """A whole run that took French from 2 and English from 1 to these bits per byte."""
    stage(root, 1, "filter", "Corpus", summary=FilterSummary(funnel=[], source_files=[], lid_sha256=""), threshold=0.5)
    evaluation(root, 2, "evaluate_base", "base", 2.0, 1.0)
    sizes = ExtendSummary(method=method, base_parameters=100, trainable_parameters=10, new_tokens=0)
    stage(root, 3, "extend", "Model", summary=sizes, method={"name": method, **extend})
    seen = TrainSummary(
        precision="bf16",
        lr=lr, penalties=[], tokens=100, steps=2, result_step=2, seconds=3.0, tokens_per_second=None, bits_per_byte={},
        kl_to_base=None, dead_layers=None, weights={}, shares={"fra_Latn/book": 1.0}, epochs={"fra_Latn/book": 1.0},
    )  # fmt: skip
    folder = stage(root, 4, "train", "Model", {"model": "extend"}, seen, lr=lr, steps=2)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "kind": "train", "losses": {"loss/fra_Latn": 3.0}}) + "\n")
    kl = {"eng_Latn": {"value": abs(english - 1), "stderr": 0.01, "tokens": 9}}
    evaluation(root, 5, "evaluate", "train", french, english, kl_to_base=kl)
    return root


def certificate(kl: float, text: str = "", closed: float | None = 0.99, compared: int = 30, **more: Any) -> Certificate:
    """A certificate of one set of English that has this KL everywhere."""
    row = {
        "passages": 200, "bytes": 100, "tokens": 30, "compared": compared, "same_ids": 1.0, "closed": closed, "as_base": closed,
        "hidden_identical": 0.9, "logits_identical": 0.9, "as_base_logit_difference": 0.0, "kl": kl, "kl_error": kl / 4,
        "kl_p99": kl, "worst_kl": kl, "worst_text": text, "bits_per_byte_of_base": 1.0, "bits_per_byte": 1.0,
        "continuations": 2, "continuations_identical": 0.5,
    }  # fmt: skip
    common = {
        "model": {"name": "mine", "architecture": "Llama", "files": []},
        "base": {"name": "pico", "architecture": "Llama", "files": []},
        "text": [], "passages_sha256": "", "passage_bytes": {}, "settings": {"batch": 4, "continuations": 2, "new_tokens": 8},
        "machine": {}, "langext": "0", "seconds": 1.0,
    }  # fmt: skip
    rows = {"sets": {"eng_Latn/news": row | {"role": "original"}}, "languages": {"eng_Latn": row}, "total": row}
    return Certificate.model_validate(common | rows | more)


def begun(step: Step, **changes: Any) -> None:
    """Leave a planned step as one that was started."""
    step.out.mkdir(parents=True, exist_ok=True)
    job = Job(
        stage={"uses": step.stage.uses}, inputs={}, language="fra_Latn", original_languages=["eng_Latn"], seed=1,
        fingerprint=step.fingerprint, identity=step.identity, tokens=str(step.out.parent),
    )  # fmt: skip
    write_json(step.out / "job.json", job.model_copy(update=changes))


def manifest_of(summary: Any = None, **more: Any) -> Manifest:
    """A manifest with this summary, and nothing else that matters."""
    common = {"kind": "Corpus", "stage": {}, "inputs": {}, "fingerprint": "abc", "identity": {}, "seed": 1, "files": []}
    spent = {"started": 0.0, "seconds": 1.0, "peak_memory_bytes": 1, "device": "CPU", "versions": {}}
    return Manifest(**{**common, **spent, "summary": summary.model_dump() if summary else {}, **more})


def done(step: Step, summary: Any = None) -> None:
    """Leave a planned step as one that is finished."""
    step.out.mkdir(parents=True, exist_ok=True)
    made = {"stage": {"uses": step.stage.uses}, "fingerprint": step.fingerprint, "identity": step.identity}
    write_json(step.out / "manifest.json", manifest_of(summary, **made))


def change(path: Path, **changes: Any) -> None:
    """Give keys of a JSON file, and of the objects in it, other values."""
    value = read_json(path)
    for key, new in changes.items():
        value[key] = value[key] | new if isinstance(new, dict) else new
    write_json(path, value)


def chosen(run: Path, penalties: Any = (), **choices: Any) -> None:
    """Change what the training of a run was told."""
    more = {"penalties": list(penalties)} if penalties else {}
    names = {"penalties": [penalty["name"] for penalty in penalties]}
    change(run / "04-train" / "manifest.json", choices=choices | more, summary=names)
