"""How long the tasks of stage evaluate take beside lm-eval's own command line, and whether both find the same.

    python benchmarks/evaluation_speed.py runs/quickstart/base/model                # tasks made of the quickstart's texts
    python benchmarks/evaluation_speed.py runs/quickstart/base/model --include my_tasks --tasks fra_arc eng_arc

Both are whole processes on the same model folder, in bf16 with the same batch size, one after the other in every round; the
ratio is that of the medians. `langext fetch quickstart` brings the texts.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
OURS = """
import json, sys
import torch
from langext.evaluation import harness
from langext.methods.extended import LiveModel
from langext.models import loading
folder, include, tasks, batch, device, out = json.loads(sys.argv[1])
from pathlib import Path
net = loading.load_base(Path(folder), torch.bfloat16).to(device)
live = LiveModel(net, loading.load_tokenizer(Path(folder)), ())
measure = harness.Harness(live, batch)
found = {}
for task in tasks:
    found |= measure.task(task, include=Path(include))
Path(out).write_text(json.dumps({t: {m: f.value for m, f in metrics.items()} for t, metrics in found.items()}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a Hugging Face folder")
    parser.add_argument("--include", type=Path, help="folder of lm-eval task files")
    parser.add_argument("--tasks", nargs="+", default=[])
    parser.add_argument("--limit", type=int, default=100, help="items of each task that is made; tasks of yours are run whole")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        include, tasks = asked.include, asked.tasks
        if include is None:
            include = Path(scratch) / "tasks"
            tasks = make_tasks(include, asked.limit)
        times: dict[str, list[float]] = {"langext": [], "lm-eval": []}
        found: dict[str, dict[str, dict[str, float]]] = {}
        for number in range(asked.rounds):
            for name in times if number % 2 == 0 else reversed(times):
                out = Path(scratch) / f"{name}-{number}"
                started = time.monotonic()
                run(name, asked, include, tasks, out)
                times[name].append(time.monotonic() - started)
                found[name] = read(name, out)
        report(times, found)


def make_tasks(include: Path, limit: int) -> list[str]:
    """Continuation items of the quickstart's texts as task files of their own."""
    from langext.data import assets
    from langext.evaluation import continuation

    include.mkdir()
    for name in ("text-fr", "text-en"):
        place = assets.resolve(f"asset:{name}")
        path = place if place.is_file() else next(place.glob("*.jsonl.gz"))
        with gzip.open(path, "rt", encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
        items = continuation.items(texts, limit, seed=17, most_bytes=4094)
        data = include / f"{name}.jsonl"
        data.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        task = {"include": str(ROOT / "configs" / "lm_eval" / "_multiple_choice.yaml"), "task": f"continuation_{name}"}
        (include / f"{name}.yaml").write_text(json.dumps(task | {"dataset_kwargs": {"data_files": {"test": str(data)}}}))
    return ["continuation_text-fr", "continuation_text-en"]


def run(name: str, asked: argparse.Namespace, include: Path, tasks: list[str], out: Path) -> None:
    if name == "langext":
        given = [str(asked.model), str(include), tasks, asked.batch_size, asked.device, str(out)]
        command = [sys.executable, "-c", OURS, json.dumps(given)]
    else:
        command = [
            sys.executable,
            "-m",
            "lm_eval",
            "run",
            "--model",
            "hf",
            "--model_args",
            f"pretrained={asked.model},dtype=bfloat16,softmax_dtype=float32",
        ]
        command += ["--tasks", *tasks, "--include_path", str(include), "--device", asked.device]
        command += ["--batch_size", str(asked.batch_size), "--output_path", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TOKENIZERS_PARALLELISM": "true"})
    if done.returncode:
        sys.exit(done.stderr)


def read(name: str, out: Path) -> dict[str, dict[str, float]]:
    if name == "langext":
        return json.loads(out.read_text())
    (path,) = out.glob("**/results_*.json")
    results = json.loads(path.read_text())["results"]
    return {
        task: {key.split(",")[0]: value for key, value in figures.items() if isinstance(value, float) and "stderr" not in key}
        for task, figures in results.items()
    }


def report(times: dict[str, list[float]], found: dict[str, dict[str, dict[str, float]]]) -> None:
    ours, theirs = (statistics.median(times[name]) for name in ("langext", "lm-eval"))
    for name, seconds in times.items():
        print(f"{name}: {', '.join(f'{s:.1f}' for s in seconds)} s")
    print(f"ratio of the medians: {ours / theirs:.2f}")
    for task, metrics in found["langext"].items():
        for metric, value in metrics.items():
            print(f"{task}, {metric}: langext {value:.4f}, lm-eval {found['lm-eval'][task][metric]:.4f}")


if __name__ == "__main__":
    main()
