"""Kill a training again and again, and compare what it ends with to an undisturbed one, byte by byte.

    python benchmarks/kill_test.py --kills 100

A pico model is trained with a checkpoint after every step, so that many kills land while one is written. Each time all worker
processes get SIGKILL after a random delay, and the same `langext run` command is given again. It takes about ten seconds a
kill, most of it the start of Python. `--processes 2` trains under the DeepSpeed launcher.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from bench import Bench, extend, train
from processes import running, start
from toy import make_llama, make_tokenizer

STEPS_PER_KILL = 20
WINDOW_S = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    random.seed(asked.seed)
    with tempfile.TemporaryDirectory(prefix="langext-kill-") as folder:
        sys.exit(0 if compare(asked, Path(folder)) else 1)


def compare(asked: Any, root: Path) -> bool:
    tokenizer = make_tokenizer()
    make_llama(len(tokenizer)).save_pretrained(root / "pico")
    tokenizer.save_pretrained(root / "pico")
    bench = Bench(root, root / "pico")
    steps = max(60, asked.kills * STEPS_PER_KILL)
    stage = train(steps=steps, save_every=1, eval_every=50, eval_bytes=1000, log_every=10, ema=0.9)
    stage["runtime"] = {"cpu_processes": asked.processes, "micro_batch": 4}
    stages = [extend(name="neutral_residues", gate="hard_sigmoid", init="lecun", width=32), stage]
    print(f"the undisturbed run: {steps} steps", flush=True)
    whole = bench.run("whole", "fra_Latn", ["eng_Latn"], stages)
    file, run = bench.file("killed", "fra_Latn", ["eng_Latn"], stages), root / "killed"
    arguments = ["run", str(file), "--out", str(run)]
    kills, in_checkpoint, reached = 0, 0, []
    while kills < asked.kills:
        half_written = kill_once(arguments, run)
        if half_written is None:
            break
        kills, in_checkpoint = kills + 1, in_checkpoint + half_written
        reached.append(newest(run))
        print(f"  kill {kills}: checkpoint of step {reached[-1]}{', another half written' if half_written else ''}", flush=True)
    last = start(*arguments, stderr=subprocess.STDOUT)
    printed = last.communicate()[0]
    if last.returncode:
        print(printed)
        return False
    one, two = (next(folder.glob("*-train")) for folder in (whole, run))
    same = (one / "delta.safetensors").read_bytes() == (two / "delta.safetensors").read_bytes()
    figures = [[(row["step"], row["kind"], row.get("losses") or row["sets"]) for row in rows(folder)] for folder in (one, two)]
    print(f"{kills} kills at checkpoints of steps {min(reached)} to {max(reached)}; {in_checkpoint} while one was written")
    print(f"weights byte-identical: {same}; every line and figure of the log the same, once: {figures[0] == figures[1]}")
    return same and figures[0] == figures[1] and kills == asked.kills


def kill_once(arguments: list[str], run: Path) -> bool | None:
    """Start, wait until training goes on, kill it at a random moment. Says if a checkpoint was being written; None when the
    training was over before.
    """
    process = start(*arguments, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    for line in process.stdout:
        if "resuming at step" in line or " tokens/s" in line:
            break
    else:
        process.wait()
        return None
    time.sleep(random.uniform(0, WINDOW_S))
    found = running(run)
    for pid in found:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            return None
    process.stdout.read()
    process.wait()
    if not found or (next(run.glob("*-train")) / "manifest.json").exists():
        return None
    return any(next(run.glob("*-train")).glob("checkpoints/*.tmp"))


def newest(run: Path) -> int:
    folder = next(run.glob("*-train")) / "checkpoints"
    return max((int(p.name[5:]) for p in folder.glob("step-*") if p.name[5:].isdigit()), default=0)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
