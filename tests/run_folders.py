"""Run folders made by hand, for what only reads them."""

import json
from pathlib import Path
from typing import Any

from langext.artifacts import write_json
from langext.evaluation.scores import FORMAT


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
    write_json(folder / "job.json", {"language": "fra_Latn", "original_languages": ["eng_Latn"]})
    manifest = {
        "stage": {"uses": name, **recipe}, "kind": kind,
        "inputs": {k: {"stage": v, "fingerprint": f"of {v}", "path": f"{root}/{v}"} for k, v in (inputs or {}).items()},
        "summary": summary or {}, "seconds": 3.0, "peak_memory_bytes": 10**9, "device": "CPU", "fingerprint": "abc",
        "started": 1.7e9, "seed": 1, "versions": {"torch": "2"},
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    return folder


def evaluation(root: Path, number: int, name: str, model: str, french: float, english: float, **more: Any) -> Path:
    """A finished evaluation of one set of each language."""
    folder = stage(root, number, name, "Scores", {"model": model}, uses="evaluate")
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
    stage(root, 1, "filter", "Corpus", summary={"funnel": []}, threshold=0.5)
    evaluation(root, 2, "evaluate_base", "base", 2.0, 1.0)
    sizes = {"base_parameters": 100, "trainable_parameters": 10}
    stage(root, 3, "extend", "Model", summary=sizes, method={"name": method, **extend})
    seen = {"tokens": 100, "steps": 2, "seconds": 3.0, "shares": {"fra_Latn/book": 1.0}, "epochs": {"fra_Latn/book": 1.0}}
    folder = stage(root, 4, "train", "Model", {"model": "extend"}, seen, lr=lr, steps=2)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "kind": "train", "figures": {"loss/fra_Latn": 3.0}}) + "\n")
    drift = {"eng_Latn": {"kl": 0.1, "stderr": 0.01, "tokens": 9}}
    evaluation(root, 5, "evaluate", "train", french, english, drift=drift)
    return root
