"""Training through the command line that is killed or asked to stop, with one process and with two, and goes on."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from bench import Bench, extend, train
from processes import kill_worker, running, start, wait_for

from langext.pipeline import reuse

METHOD = extend(name="neutral_residues", gate="hard_sigmoid", init="lecun", width=32)
STEPS = {"steps": 60, "eval_every": 30, "save_every": 12, "log_every": 5}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, pico: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("interrupted"), pico)


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Path:
    return bench.run("undisturbed", "fra_Latn", ["eng_Latn"], [METHOD, train(**STEPS)]) / "03-train"


def begun(bench: Bench, undisturbed: Path, name: str) -> Path:
    """A run folder in which all but the training is done already."""
    reuse.whole(undisturbed.parent, ["01-filter", "02-extend"], bench.root / name)
    return bench.root / name


def log(stage: Path) -> list[dict]:
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]


def test_killed_training_ends_with_the_same_weights(bench: Bench, undisturbed: Path):
    stages = [METHOD, train(**STEPS)]
    run = begun(bench, undisturbed, "killed")
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = start("run", str(bench.file("killed", "fra_Latn", ["eng_Latn"], stages)), "--out", str(run))
        wait_for(process, "step 15/60" if number == signal.SIGKILL else "step 45/60")
        kill_worker(run, number)
        process.wait(timeout=120)
        assert process.returncode != 0
        assert not (run / "03-train" / "manifest.json").exists()
        time.sleep(0.2)
    assert (bench.run("killed", "fra_Latn", ["eng_Latn"], stages) / "03-train" / "manifest.json").exists()
    one, two = (folder / "delta.safetensors" for folder in (undisturbed, run / "03-train"))
    assert one.read_bytes() == two.read_bytes()
    assert [row["step"] for row in log(run / "03-train")] == [row["step"] for row in log(undisturbed)]


def test_two_processes_are_stopped_go_on_and_train_like_one(bench: Bench, undisturbed: Path):
    stages = [METHOD, train(**STEPS, runtime={"cpu_processes": 2, "micro_batch": 2})]
    run = begun(bench, undisturbed, "two")
    process = start("run", str(bench.file("two", "fra_Latn", ["eng_Latn"], stages)), "--out", str(run))
    wait_for(process, "step 25/60")
    process.send_signal(signal.SIGTERM)  # the launcher alone would not tell its processes
    assert process.stdout is not None
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM and "everything is saved" in rest
    assert not running(run)
    exported = start("export", str(run), "--to", str(bench.root / "half way"), "--checkpoint", "last", stderr=subprocess.STDOUT)
    assert exported.wait(timeout=120) == 0, exported.communicate()
    record = json.loads((bench.root / "half way" / "export.json").read_text())
    assert record["loads_as"] == "Glm4MoeForCausalLM" and record["max_abs_difference"] < 1e-4
    assert re.search(r"a training that had not ended, at step [23]\d", (bench.root / "half way" / "README.md").read_text())
    process = start("run", str(bench.file("two", "fra_Latn", ["eng_Latn"], stages)), "--out", str(run))
    wait_for(process, "resuming at step")
    assert process.stdout is not None
    assert "03-train" not in process.stdout.read() and process.wait(timeout=60) == 0
    one, two = (
        [row["losses"]["loss/fra_Latn"] for row in log(f) if row["kind"] == "train"] for f in (undisturbed, run / "03-train")
    )
    assert two == pytest.approx(one, rel=0.02)  # bf16 sums in another order
