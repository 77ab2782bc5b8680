"""Makes the runs of an experiment by `langext sweep`, with three seeds of the best run of each method, and compares them.

    python benchmarks/paper_table/run.py small --data DATA --base runs/english-8m/model --gpu --jobs 8
    python benchmarks/paper_table/run.py real --data DATA --gpu --jobs 4 --seeds 1

DATA has text/, valid/ and bench/ with files <language>.<kind>.jsonl.gz (see docs/results.md). The runs lie in OUT/<experiment>;
the same command goes on after an interruption, and no finished run is made again. Several runs share one GPU.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import experiments
from collect import method_of, summary
from experiments import Run
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
OTHERS = {"german": "deu_Latn", "swahili": "swh_Latn"}
"""Experiment -> language, for the recipe of `real` in other languages."""
FORMATS = {"blimp": "_pairs", "scala-pairs": "_pairs"}


def main() -> None:
    """Write the pipelines, run them, run the best ones with more seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["small", "ablations", "vocabulary", "chain", "merged", "real", *OTHERS])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="the model of pretrain.py, for all but real, german and swahili")
    parser.add_argument("--out", type=Path, default=Path("runs/paper_table"))
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the best run of each method")
    parser.add_argument("--only", nargs="*", help="beginnings of names of runs")
    parser.add_argument("--steps", type=int, help="of each training, where there is no GPU")
    parser.add_argument("--items", type=int, help="of each benchmark of real, german and swahili; 0 leaves them out")
    asked = parser.parse_args()
    data, out = asked.data.resolve(), asked.out.resolve() / asked.experiment
    if asked.base is None and asked.experiment not in ("real", *OTHERS):
        parser.error(f"{asked.experiment} needs --base")
    if asked.experiment in ("chain", "merged"):
        for step in getattr(experiments, asked.experiment)(data, str(asked.base.resolve()), out):
            if not sweep(chosen(step, asked), out, asked):
                sys.exit(1)
        return
    if asked.experiment in ("small", "ablations", "vocabulary"):
        runs = list(getattr(experiments, asked.experiment)(data, str(asked.base.resolve())))
    elif asked.experiment in OTHERS:
        runs = list(experiments.untouched(data, tasks(data, out / "tasks"), OTHERS[asked.experiment]))
    else:
        runs = list(experiments.real(data, tasks(data, out / "tasks")))
    runs = chosen(runs, asked)
    made = sweep(runs, out, asked)
    best = best_of(runs, out) if asked.experiment in ("small", "real") else []
    for seed in range(18, 17 + asked.seeds):
        made = sweep([experiments.with_seed(run, seed) for run in best], out, asked) and made
    sys.exit(0 if made else 1)


def chosen(runs: list[Run], asked: argparse.Namespace) -> list[Run]:
    """The runs that are asked for, as light as is asked for."""
    return [lighter(run, asked) for run in runs if not asked.only or run["name"].startswith(tuple(asked.only))]


def lighter(run: Run, asked: argparse.Namespace) -> Run:
    """The same with as many steps and items of benchmarks as are asked for."""
    for stage in run["stages"]:
        if stage["uses"] == "train" and (steps := asked.steps):
            warmup = min(stage["warmup_steps"], steps // 4)
            stage |= {"steps": steps, "warmup_steps": warmup, "save_every": -(-steps // 6), "eval_every": -(-steps // 3)}
        if "tasks" in stage and asked.items is not None:
            stage |= {"limit": asked.items} if asked.items else {"tasks": {}}
    return run


def sweep(runs: list[Run], out: Path, asked: argparse.Namespace) -> bool:
    """Make these runs, side by side where asked to; whether all of them are there."""
    folder = out / "pipelines"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for run in runs:
        files.append(folder / f"{run['name']}.yaml")
        YAML(typ="safe", pure=True).dump(experiments.on_gpu(run, asked.micro_batch) if asked.gpu else run, files[-1])
    command = [sys.executable, "-m", "langext.cli", "sweep", *map(str, files), "--out", str(out), "--jobs", str(asked.jobs)]
    if failed := subprocess.run(command, cwd=ROOT).returncode != 0:
        print("some runs failed; the same command tries them again", file=sys.stderr)
    return not failed


def best_of(runs: list[Run], out: Path) -> list[Run]:
    """The run of each method that learned most of the new language in kinds of text that it was not trained on."""
    best: dict[str, tuple[float, Run]] = {}
    for run in runs:
        if found := summary(out / run["name"]):
            method, learned = method_of(run["name"]), found["learned_unseen"]
            if method not in best or learned > best[method][0]:
                best[method] = (learned, run)
    return [run for _, run in best.values()]


def tasks(data: Path, folder: Path) -> Path:
    """A folder of lm-eval task files for the benchmarks in DATA/bench."""
    if not folder.exists():
        subprocess.run([sys.executable, "-m", "langext.cli", "formats", str(folder)], check=True, cwd=ROOT)
    for name in (name for names in experiments.TASKS.values() for name in names):
        kind = FORMATS.get(name.split(".", 1)[1], "_multiple_choice")
        file = folder / f"{name.replace('.', '_')}.yaml"
        file.write_text(
            f"include: {kind}.yaml\ntask: {name.replace('.', '_')}\n"
            f"dataset_kwargs: {{data_files: {{test: {data}/bench/{name}.jsonl.gz}}}}\n"
        )
    return folder


if __name__ == "__main__":
    main()
