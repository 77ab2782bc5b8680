"""A bench to run small pipelines on, through the command line, with four toy languages and a pico model."""

import json
from pathlib import Path
from typing import Any

import pytest
from forks import langext
from ruamel.yaml import YAML
from toy import ENGLISH, FRENCH, GERMAN, SWAHILI, documents, write_fasttext, write_jsonl

from langext.errors import ConfigError
from langext.pipeline import plan
from langext.spec import load, located

ROOT = Path(__file__).parent.parent
WORDS = {"eng_Latn": ENGLISH, "fra_Latn": FRENCH, "swh_Latn": SWAHILI, "deu_Latn": GERMAN}


class Bench:
    """Runs small pipelines through the command line."""

    def __init__(self, root: Path, pico: Path):
        self.root, self.pico = root, pico
        labels = {"en": ENGLISH, "fr": FRENCH, "sw": SWAHILI, "de": GERMAN}
        taken: set[str] = set()
        for name, words in labels.items():
            labels[name] = [w for w in dict.fromkeys(words) if w not in taken]
            taken |= set(words)
        self.lid = write_fasttext(root / "lid.bin", labels)
        for i, (code, words) in enumerate(WORDS.items()):
            write_jsonl(root / f"{code}.jsonl.gz", documents(words, 120, 10 + i))

    def file(self, name: str, language: str, kept: list[str], stages: list[dict[str, Any]], base: Any = None) -> Path:
        sources = [{"language": c, "path": str(self.root / f"{c}.jsonl.gz"), "name": "book"} for c in (language, *kept)]
        first = {"uses": "filter", "lid_model": str(self.lid), "sources": sources, "heldout_frac": 0.2, "threshold": 0.3}
        path = self.root / f"{name}.yaml"
        spec = {"name": name, "language": language, "original_languages": kept, "base_model": str(base or self.pico)}
        YAML(typ="safe", pure=True).dump(spec | {"stages": [first, *stages]}, path)
        return path

    def run(self, name: str, *given: Any, **more: Any) -> Path:
        command = ["run", str(self.file(name, *given, **more)), "--out", str(self.root / name)]
        for other in sorted(self.root.glob("*/base/manifest.json")):  # what an earlier run has filtered is not filtered again
            command += ["--reuse", str(other.parent.parent)]
        done = langext(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.root / name

    def refused(self, *given: Any, **more: Any) -> str:
        """What `langext plan` says is wrong."""
        path = self.file("refused", *given, **more)
        spec = load(path, plan.Pipeline)
        with pytest.raises(ConfigError) as caught:
            steps = plan.plan(spec, self.root / "refused")
            plan.check(spec, steps, steps)
        return located(caught.value, path)


def train(**more: Any) -> dict[str, Any]:
    return {
        "uses": "train", "steps": 24, "sequence_length": 64, "batch_sequences": 8, "lr": 1e-2, "warmup_steps": 2,
        "original_frac": 0.25, "eval_every": 24, "eval_bytes": 3000, "save_every": 24, "log_every": 8,
        "precision": "fp32", **more,  # products of small matrices take fifteen times as long in bf16 on a CPU
    }  # fmt: skip


def extend(**method: Any) -> dict[str, Any]:
    return {"uses": "extend", "method": method}


def evals(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (next(run.glob("*-train")) / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "eval"]


def bits(row: dict[str, Any], code: str) -> float:
    return row["sets"][f"{code}/book"]["bits_per_byte"]
