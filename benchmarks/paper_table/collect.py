"""Reduces finished runs to small JSON files that tables and pictures are made of, without training again.

    python benchmarks/paper_table/collect.py runs/paper_table/small benchmarks/paper_table/results/small_cpu.json

A run's record has its method and settings, what was learned and forgotten by set, tasks, gates, the curve of its training, and
its cost.
"""

import argparse
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from langext.artifacts import METRICS, Scores, read_json, read_metrics, write_json
from langext.evaluation import scores, significance

UNSEEN = "unseen-"


def main() -> None:
    """Write the records of all finished runs of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    found = {folder.name: record for folder in sorted(asked.runs.iterdir()) if (record := summary(folder))}
    if not found:
        parser.error(f"{asked.runs} has no finished run")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(asked.out, found)
    print(f"{asked.out}: {len(found)} runs")


def summary(run: Path) -> dict[str, Any] | None:
    """The record of one run; None while its last evaluation is not there."""
    folders = [path.parent for path in sorted(run.glob("[0-9][0-9]-*/scores.json"))]
    if len(folders) < 2 or not all((folder / "manifest.json").exists() for folder in folders):
        return None
    before, after = (read_json(folder / "scores.json") for folder in (folders[0], folders[-1]))
    trained = one(run, "train")
    bits = {name: [row["value"], after["bits_per_byte"][name]["value"]] for name, row in before["bits_per_byte"].items()}
    manifests = [read_json(path) for path in sorted(run.glob("[0-9][0-9]-*/manifest.json"))]
    new = manifests[0]["identity"]["language"]
    kl = {name: [row["value"], row.get("stderr"), row["tokens"]] for name, row in after.get("kl_by_set", {}).items()}
    gates = {name: {"closed": row["closed"], "as_base": row.get("as_base")} for name, row in after["bits_per_byte"].items()
             if "closed" in row}  # fmt: skip
    return {
        "bits_per_byte": bits, "kl": kl, "kl_by_language": {code: row["value"] for code, row in after["kl_to_base"].items()},
        "gates": gates,
        "learned": fall(bits, new, False), "learned_unseen": fall(bits, new, True),
        "forgot_unseen": None if (lost := fall(bits, "eng_Latn", True)) is None else -lost,
        "kl_unseen": mean([value for value, *_ in of_unseen(kl)]),
        "kl_unseen_error": error_of_mean([error for _, error, _ in of_unseen(kl)]),
        "closed_unseen": mean([of["closed"] for of in of_unseen(gates)]),
        "as_base_unseen": mean([of["as_base"] for of in of_unseen(gates) if of["as_base"] is not None]),
        "tasks": tasks(folders[0], folders[-1]), "seconds": {folder_of(m): m["seconds"] for m in manifests},
        "seed": manifests[0]["seed"], "device": manifests[-1]["device"], "versions": manifests[-1]["versions"],
        "base": read_json(run / "base" / "manifest.json").get("files"), "text": text(manifests[0]),
        **(training(run, trained) if trained else {}),
    }  # fmt: skip


def training(run: Path, trained: dict[str, Any]) -> dict[str, Any]:
    """What only runs that train have; merges do not."""
    extended, rescaled = one(run, "extend"), one(run, "rescale")
    return {
        "method": extended["choices"]["method"], "train": trained["choices"], "curve": curve(run),
        "alpha": rescaled["summary"]["alpha"] if rescaled else None, "weights": trained["summary"].get("weights", {}),
        "trainable_parameters": extended["summary"]["trainable_parameters"],
        "base_parameters": extended["summary"]["base_parameters"], "tokens_per_second": trained["summary"]["tokens_per_second"],
    }  # fmt: skip


def text(manifest: dict[str, Any]) -> str:
    """The SHA-256 of what `sha256sum FILE... | sort` prints of the files of text of a run, inside their folder."""
    files = {(file["sha256"], Path(file["name"]).name) for file in manifest["summary"]["source_files"]}
    return sha256("".join(f"{digest}  {name}\n" for digest, name in sorted(files)).encode()).hexdigest()


def folder_of(manifest: dict[str, Any]) -> str:
    """Name of the stage of a manifest."""
    return manifest["stage"]["name"] or manifest["stage"]["uses"]


def one(run: Path, name: str) -> dict[str, Any]:
    """The manifest of the stage of this name; {} where there is none."""
    found = next(run.glob(f"[0-9][0-9]-{name}/manifest.json"), None)
    return read_json(found) if found else {}


def method_of(name: str) -> str:
    """What a run is called, without its seed and the number, mostly a learning rate, that its name ends with."""
    return re.sub(r"-\d[\d.e-]*$", "", name.split("-seed")[0])


def of_unseen(sets: dict[str, Any]) -> list[Any]:
    """What is known of each unseen kind of English."""
    return [value for name, value in sets.items() if name.startswith(f"eng_Latn/{UNSEEN}")]


def mean(values: list[float]) -> float | None:
    """The mean; None of nothing."""
    return sum(values) / len(values) if values else None


def fall(bits: dict[str, list[float]], code: str, unseen: bool) -> float | None:
    """By how much bits per byte of a language fell, as a share: the mean over its sets that are of unseen kinds, or not."""
    return mean([1 - after / before for name, (before, after) in bits.items()
                 if name.startswith(f"{code}/") and (f"/{UNSEEN}" in name) == unseen])  # fmt: skip


def error_of_mean(errors: list[float | None]) -> float | None:
    """Standard error of the mean of independent values; None when one of theirs is not known."""
    known = [error for error in errors if error is not None]
    return sum(error**2 for error in known) ** 0.5 / len(known) if known and len(known) == len(errors) else None


def tasks(before: Path, after: Path) -> dict[str, dict[str, float]]:
    """Accuracy of each task, before and after, and the p-value of the change, item by item."""
    rows = significance.tasks(*(scores.read(Scores(folder)) for folder in (before, after)))
    named = {row.name.removesuffix(", acc"): row for row in rows if row.name.endswith(", acc")}
    return {name: {"before": row.before, "after": row.after, "p": row.difference.p} for name, row in named.items()}


def curve(run: Path) -> list[dict[str, Any]]:
    """Tokens, bits per byte and KL at each evaluation of the training."""
    rows = read_metrics(next(run.glob(f"[0-9][0-9]-train/{METRICS}")))
    return [
        {"tokens": row["tokens"], "bits_per_byte": {name: of["bits_per_byte"] for name, of in row["sets"].items()},
         "kl": row.get("kl_to_base")}
        for row in rows if row["kind"] == "eval"
    ]  # fmt: skip


if __name__ == "__main__":
    main()
