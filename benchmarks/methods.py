"""Every file of pipelines/methods for a few steps on the real model: does it learn, what does it cost, does it load again?

    langext fetch quickstart
    python benchmarks/methods.py --steps 20

Prints a Markdown table and writes it to runs/benchmark-methods/table.md. Every pipeline runs alone, through `langext run`,
up to the end of its training; before and after are measured by the training stage on the same held-out passages. On a
machine where nothing else runs, tokens/s can be compared between the rows, not with other machines.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from langext.artifacts import Corpus, Model
from langext.data import documents
from langext.evaluation import bpb
from langext.models import loading

ROOT = Path(__file__).parent.parent
COLUMNS = (
    "pipeline", "learns", "tokens/s", "peak memory", "new loss", "new bits/byte", "original, replayed domain",
    "original, another domain", "KL to base", "reloads",
)  # fmt: skip


def main() -> None:
    """Run what has not run yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=[], help="names of files in pipelines/methods, without .yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-methods"))
    asked = parser.parse_args()
    asked.out = asked.out.resolve()
    known = {path.stem for path in (ROOT / "pipelines" / "methods").glob("*.yaml")}
    if odd := set(asked.only) - known:
        parser.error(f"--only: no pipeline called {', '.join(sorted(odd))}; there are {', '.join(sorted(known))}")
    asked.out.mkdir(parents=True, exist_ok=True)
    lines = ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
    for path in sorted((ROOT / "pipelines" / "methods").glob("*.yaml")):
        if asked.only and path.stem not in asked.only:
            continue
        row = measure(train(path, asked.steps, asked.out))
        lines.append("| " + " | ".join([path.stem, *row]) + " |")
        print(lines[-1], flush=True)
    (asked.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def train(path: Path, steps: int, out: Path) -> Path:
    """Run a pipeline's stages up to the last that makes a model; returns the run folder."""
    yaml = YAML(typ="safe", pure=True)
    pipeline = yaml.load(path)
    pipeline["stages"] = [s for s in pipeline["stages"] if s["uses"] in ("filter", "extend", "train", "rescale")]
    for stage in pipeline["stages"]:
        if stage["uses"] == "train":
            stage.update(steps=steps, warmup_steps=min(stage["warmup_steps"], steps // 4), eval_every=steps)
    file = out / path.name
    yaml.dump(pipeline, file)
    subprocess.run([sys.executable, "-m", "langext.cli", "run", str(file), "--out", str(out / path.stem)], check=True, cwd=ROOT)
    return out / path.stem


def measure(run: Path) -> list[str]:
    """The cells of one row."""
    folder = next(run.glob("[0-9][0-9]-train"))
    manifest = json.loads((folder / "manifest.json").read_text())
    extended = json.loads((next(run.glob("[0-9][0-9]-extend")) / "manifest.json").read_text())["summary"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["losses"]["loss/fra_Latn"] for row in rows if row["kind"] == "train"]
    evals = [row for row in rows if row["kind"] == "eval"]
    names = ("fra_Latn/handbook", "eng_Latn/handbook", "eng_Latn/python")
    changes = [f"{evals[0]['sets'][n]['bits_per_byte']:.3f} -> {evals[-1]['sets'][n]['bits_per_byte']:.3f}" for n in names]
    rescaled = next(run.glob("[0-9][0-9]-rescale"), None)
    if rescaled:
        alpha = json.loads((rescaled / "manifest.json").read_text())["summary"]["alpha"]
        how, again = "reverted" if alpha is None else f"rescaled by {alpha:g}", bits(run, rescaled)
        changes = [f"{c}, {how}: {again[n]:.3f}" for c, n in zip(changes, names, strict=True)]
    return [
        f"{extended['trainable_parameters'] / 1e6:.1f} M",
        f"{manifest['summary']['tokens_per_second']:.0f}",
        f"{manifest['peak_memory_bytes'] / 2**30:.2f} GiB",
        f"{losses[0]:.2f} -> {losses[-1]:.2f}",
        *changes,
        f"{evals[-1]['kl_to_base']:.3f}",
        reloads(run, folder, evals[-1]["sets"]),
    ]


def reloads(run: Path, folder: Path, figures: dict[str, Any]) -> str:
    """Does the delta from the disk measure what the model in memory measured at the end of its training?"""
    worst = max(abs(value / figures[name]["bits_per_byte"] - 1) for name, value in bits(run, folder).items())
    return f"yes ({worst:.0e})" if worst < 1e-3 else f"NO ({worst:.1e})"


def bits(run: Path, folder: Path) -> dict[str, float]:
    """Bits per byte of a model of the run, by set, on the held-out passages that its training watched."""
    live = loading.load(Model(folder.resolve()), torch.bfloat16)
    corpus = Corpus(next(run.glob("[0-9][0-9]-filter")).resolve())
    return {
        name: bpb.measure(live.net, live.tokenizer, bpb.passages(texts, 1000, 10_000)).per_byte
        for name, texts in documents.heldout(corpus, ["fra_Latn", "eng_Latn"]).items()
    }


if __name__ == "__main__":
    main()
