"""Makes two machines of this one and trains on both: every ZeRO stage, stops, kills, a machine that is lost.

    python benchmarks/two_nodes.py work

Needs root on a Debian machine: it installs openssh-server and pdsh if they are not there. Each machine is a set of namespaces:
its own network, host name, processes and home, joined by cables and a switch. They share the disk, as machines of a cluster
share the run folder. `langext run` is called on the first one; ssh, pdsh and DeepSpeed's launcher start a process on each,
which meet over gloo. Everything that is run is printed. Exit code 1 when anything is not as it must be.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from namespaces import ROOT, Node, command_of, connect, disconnect, prepare

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: processes of both machines share the cores of this one
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

if TYPE_CHECKING:
    from bench import Bench

STEPS = {"steps": 200, "eval_every": 100, "save_every": 10, "log_every": 5}
METHOD = {"name": "neutral_residues", "gate": "hard_sigmoid", "init": "lecun", "width": 32}
ENV = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
COMMIT = "0" * 40
LAUNCHERS_SECONDS = 5.0
"""How long what DeepSpeed has started on other machines may last when `langext run` has ended."""


class Trial:
    """Runs of one pipeline on the two machines."""

    def __init__(self, nodes: list[Node], bench: "Bench", one: Path):
        self.nodes, self.bench, self.one = nodes, bench, one

    def start(self, name: str, deepspeed: str, base: str | None = None, **env: str) -> "subprocess.Popen[str]":
        """Start a run on both machines; what it reads is finished already."""
        from bench import extend, train

        from langext.pipeline import reuse

        runtime = {
            "nodes": 2, "cpu_processes": 1, "hostfile": str(self.bench.root / "hostfile"), "micro_batch": 4,
            "deepspeed": deepspeed,
        }  # fmt: skip
        stages = [extend(**METHOD), train(**STEPS, runtime=runtime)]
        file = self.bench.file(name, "fra_Latn", ["eng_Latn"], stages, base=base)
        out = self.bench.root / name
        if not out.exists() and base is None:
            reuse.whole(self.one, ["01-filter", "02-extend"], out)
        return self.langext("run", str(file), "--out", str(out), **env)

    def langext(self, *arguments: str, **env: str) -> "subprocess.Popen[str]":
        """Start a command of langext on the first machine."""
        variables = [f"{key}={value}" for key, value in (ENV | env | {"PYTHONPATH": str(ROOT)}).items()]
        command = ["langext", *arguments]
        print(f"{self.nodes[0].name}$", " ".join(command), flush=True)
        real = self.nodes[0].inside("env", *variables, sys.executable, "-m", "langext.cli", *command[1:])
        return subprocess.Popen(real, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def until(self, run: "subprocess.Popen[str]", text: str) -> None:
        """Print what a run prints, as far as `text`."""
        assert run.stdout is not None
        for line in run.stdout:
            _show(line)
            if text in line:
                return
        sys.exit(f"{text!r} was never printed")

    def end(self, run: "subprocess.Popen[str]", code: int, most_seconds: float = 900) -> str:
        """Wait for the end of a run; it must have this exit code and leave no process on any machine.

        DeepSpeed's launchers look once a second whether their process has ended, so those elsewhere may last a little longer.
        """
        began = time.monotonic()
        printed, _ = run.communicate(timeout=most_seconds)
        for line in printed.splitlines():
            _show(line)
        ended = time.monotonic()
        while any((left := self.left()).values()) and time.monotonic() < ended + LAUNCHERS_SECONDS:
            time.sleep(0.1)
        took, later = ended - began, time.monotonic() - ended
        print(f"  exit code {run.returncode} after {took:.1f} s; {later:.1f} s later processes left: {left}", flush=True)
        if run.returncode != code or any(left.values()):
            sys.exit(f"expected exit code {code} and no process")
        return printed

    def left(self) -> dict[str, int]:
        """Number of processes on each machine that runs."""
        return {node.name: len(node.processes()) for node in self.nodes if node.init.is_running()}

    def signal(self, run: "subprocess.Popen[str]", number: signal.Signals) -> None:
        """Send a signal to `langext run` alone, as a terminal does."""
        print(f"  kill -{number.name} langext", flush=True)
        psutil.Process(run.pid).children()[0].send_signal(number)

    def same(self, name: str, bytes_of: str = "") -> None:
        """Compare losses with those of one process, and the weights with those of another run, to the byte."""
        here, there = (losses(folder) for folder in (self.bench.root / name, self.one))
        worst = max(abs(value - there[key]) for key, value in here.items())
        said = f"  {len(here)} losses, the largest difference to one process: {worst:.1e}"
        if bytes_of:
            equal = weights(self.bench.root / name) == weights(self.bench.root / bytes_of)
            said += f"; weights of {name} and {bytes_of} are the same bytes: {equal}"
            if not equal:
                sys.exit(said)
        print(said, flush=True)
        if here.keys() != there.keys() or worst > 1e-3:
            sys.exit("not what one process learns")


def _show(line: str) -> None:
    if not re.search(r"\[(INFO|WARNING)\]|^\S+: $", line):
        print(f"  {line.rstrip()}", flush=True)


def losses(run: Path) -> dict[tuple[int, str], float]:
    """Step and name -> each loss that a run has logged."""
    rows = [json.loads(line) for line in next(run.glob("*-train/metrics.jsonl")).read_text().splitlines()]
    return {(row["step"], name): value for row in rows if row["kind"] == "train" for name, value in row["losses"].items()}


def weights(run: Path) -> bytes:
    """The file of what a run has learned."""
    return next(run.glob("*-train/delta.safetensors")).read_bytes()


def doctor(trial: Trial) -> None:
    """`langext doctor --cluster` finds nothing wrong."""
    root = trial.bench.root
    run = trial.langext("doctor", "--cluster", str(root / "hostfile"), "--shared", str(root))
    if not re.search("^ok +all-reduce: 2 processes, gloo", trial.end(run, 0), re.MULTILINE):
        sys.exit("no all-reduce")


def zero(stage: int, file: str) -> Callable[[Trial], None]:
    """A trial of one ZeRO stage: Ctrl-C, and the same command again; losses are those of one process."""

    def run(trial: Trial) -> None:
        name = f"zero{stage}"
        begun = trial.start(name, file)
        trial.until(begun, "step 15/")
        trial.signal(begun, signal.SIGINT)
        if "everything is saved" not in trial.end(begun, 130):
            sys.exit("not saved")
        trial.end(trial.start(name, file), 0)
        trial.same(name)

    return run


def hard(trial: Trial) -> None:
    """ZeRO 2. Ctrl-C twice, a machine lost, a worker killed, langext killed; in the end the weights of an undisturbed run."""
    trial.end(trial.start("undisturbed", "zero2"), 0)
    trial.same("undisturbed")
    run = trial.start("hard", "zero2")
    trial.until(run, "step 15/")
    trial.signal(run, signal.SIGINT)
    trial.signal(run, signal.SIGINT)
    trial.end(run, 130)
    run = trial.start("hard", "zero2")
    trial.until(run, "step 25/")
    print("  (node-2 is killed)", flush=True)
    trial.nodes[1].kill()
    trial.end(run, 4)
    trial.nodes[1].start()
    connect(trial.nodes)
    run = trial.start("hard", "zero2")
    trial.until(run, "step 35/")
    workers = [p for p in trial.nodes[1].processes() if "worker" in command_of(p) and "launch" not in command_of(p)]
    print(f"  (kill -9 {len(workers)} worker of node-2)", flush=True)
    for worker in workers:
        worker.kill()
    trial.end(run, 4)
    run = trial.start("hard", "zero2")
    trial.until(run, "step 45/")
    trial.signal(run, signal.SIGKILL)
    run.wait()
    until = time.monotonic() + 60
    while any(node.processes() for node in trial.nodes) and time.monotonic() < until:
        time.sleep(0.1)
    trial.end(run, run.returncode)
    trial.end(trial.start("hard", "zero2"), 0)
    trial.same("hard", bytes_of="undisturbed")


def no_shared_home(trial: Trial) -> None:
    """A base from the hub that lies in the home of the first machine alone is told of; on the shared disk it is used."""
    root = trial.bench.root
    for home in (trial.nodes[0].home / ".cache" / "huggingface", root / "hub"):
        repo = home / "hub" / "models--pico--base"
        shutil.copytree(trial.bench.pico, repo / "snapshots" / COMMIT)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(COMMIT)
    printed = trial.end(trial.start("hub", "cpu", base="pico/base"), 2)
    if "not on node-2" not in printed:
        sys.exit("not told")
    trial.end(trial.start("hub-shared", "cpu", base="pico/base", HF_HOME=str(root / "hub")), 0)
    trial.same("hub-shared")


TRIALS: dict[str, Callable[[Trial], None]] = {
    "doctor": doctor, "zero1": zero(1, "cpu"), "hard": hard, "zero3": zero(3, "zero3"), "home": no_shared_home,
}  # fmt: skip


def make(work: Path, settings: dict[str, int]) -> "tuple[Bench, Path]":
    """A pico base and text in `work`, and a training of one process with these settings."""
    from bench import Bench, extend, train
    from toy import make_llama, make_tokenizer

    tokenizer = make_tokenizer()
    for part in (tokenizer, make_llama(len(tokenizer))):
        part.save_pretrained(work / "pico")
    bench = Bench(work, work / "pico")
    stages: list[Any] = [extend(**METHOD), train(**settings, runtime={"micro_batch": 4})]
    return bench, bench.run("one", "fra_Latn", ["eng_Latn"], stages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="a new folder to work in")
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--only", nargs=argparse.REMAINDER, help="a command to run on the first machine, in place of trials")
    asked = parser.parse_args()
    work = asked.work.resolve()
    work.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the machines would stay
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background
    prepare(work)
    nodes = [Node(number, work) for number in (1, 2)]
    try:
        for node in nodes:
            node.start()
        connect(nodes)
        if asked.only:
            sys.exit(subprocess.run(nodes[0].inside(*asked.only)).returncode)
        print("== one process, to compare with", flush=True)
        trial = Trial(nodes, *make(work, STEPS))
        for name in asked.trials:
            print(f"== {name}", flush=True)
            TRIALS[name](trial)
    finally:
        for node in nodes:
            if hasattr(node, "init") and node.init.is_running():
                node.kill()
        disconnect()


if __name__ == "__main__":
    main()
