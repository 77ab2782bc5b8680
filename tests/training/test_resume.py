"""Training that is interrupted and goes on: alike, with other numbers of processes, with damaged checkpoints."""

import json
import os
from pathlib import Path

import pytest
import torch
from bench import Bench, extend, train
from legs import launch
from safetensors.torch import load_file, save_file

from langext.artifacts import read_json, sha256_file, write_json
from langext.errors import RunFailed
from langext.training import checkpoints, snapshot

pytestmark = pytest.mark.timeout(900)  # the matrix is 24 trainings behind one fixture
RESIDUES = {
    "name": "neutral_residues", "gate": "threshold", "init": "lecun", "width": 32, "local_loss": "l1", "alpha": 0.1,
}  # fmt: skip
STAGE = {"steps": 10, "log_every": 1, "eval_every": 5, "save_every": 10, "precision": "fp32"}
# Case -> ZeRO stages of the three legs, and what else is asked for.
CASES = {
    "zero0": ([0, 0, 0], {}),
    "zero3": ([3, 3, 3], {}),
    "zero2 to 1": ([2, 1, 2], {}),
    "zero1 bf16 ema": ([1, 1, 1], {"precision": "bf16", "ema": 0.9}),
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, pico: Path) -> Path:
    """The stage folder of a finished training, whose inputs others are trained from: with gates that open for some tokens."""
    bench = Bench(tmp_path_factory.mktemp("resume"), pico)
    run = bench.run("first", "fra_Latn", ["eng_Latn"], [extend(**RESIDUES), train(steps=2, eval_every=2)])
    start = next(run.glob("*-extend")) / "delta.safetensors"
    torch.manual_seed(3)
    save_file({n: t.normal_(std=0.2) if ".router." in n else t for n, t in load_file(start).items()}, start)
    for zero in range(4):
        config = {
            "zero_optimization": {"stage": zero},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        if zero == 3:  # else so small a model would be whole in every process all the time
            config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
        (run / f"zero{zero}.json").write_text(json.dumps(config))
    return next(run.glob("*-train"))


def leg(job, name, zero=1, stop_at=None, micro_batch=2, **stage):
    runtime = {"deepspeed": str(job.parent / f"zero{zero}.json"), "micro_batch": micro_batch}
    runtime["activation_checkpointing"] = zero == 3
    return {
        "out": str(job.parent / name), "job": str(job), "runtime": runtime, "stage": STAGE | stage, "stop_at": stop_at,
    }  # fmt: skip


@pytest.fixture(scope="module")
def matrix(job: Path) -> Path:
    """By case: undisturbed on two processes; 5 + 5 steps; 3 on two, 3 on one (with another micro-batch), 4 on two processes."""
    two = [leg(job, f"{name} ref", zeros[0], **more) for name, (zeros, more) in CASES.items()]
    two += [leg(job, f"{name} same", zeros[0], 5, **more) for name, (zeros, more) in CASES.items()]
    two += [leg(job, f"{name} changed", zeros[0], 3, **more) for name, (zeros, more) in CASES.items()]
    launch(job.parent, two, 2)
    launch(job.parent, [leg(job, f"{name} changed", zeros[1], 6, 8, **more) for name, (zeros, more) in CASES.items()])
    rest = [leg(job, f"{name} same", zeros[0], **more) for name, (zeros, more) in CASES.items()]
    rest += [leg(job, f"{name} changed", zeros[2], **more) for name, (zeros, more) in CASES.items()]
    launch(job.parent, rest, 2)
    return job.parent


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 11))
    return [row["losses"]["loss/fra_Latn"] for row in rows if row["kind"] == "train"]


@pytest.mark.parametrize("case", CASES)
def test_five_and_five_steps_are_ten_to_the_last_bit(matrix, case):
    one, two = matrix / f"{case} ref", matrix / f"{case} same"
    assert (one / "delta.safetensors").read_bytes() == (two / "delta.safetensors").read_bytes()
    assert losses(one) == losses(two)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, two)]
    assert summaries[0]["bits_per_byte"] == summaries[1]["bits_per_byte"]


@pytest.mark.parametrize("case", CASES)
def test_other_numbers_of_processes_give_the_same_training(matrix, case):
    one, two = matrix / f"{case} ref", matrix / f"{case} changed"
    close = 1e-2 if "bf16" in case else 1e-6  # sums in another order
    assert losses(two) == pytest.approx(losses(one), rel=close)
    if "bf16" not in case:
        ours, theirs = (load_file(folder / "delta.safetensors") for folder in (one, two))
        assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_one_process_reads_what_was_learnt_from_a_checkpoint_of_two(matrix, case):
    run = matrix / f"{case} ref"
    wanted = {name: value for name, value in load_file(run / "delta.safetensors").items() if ".router." not in name}
    found = snapshot.weights(run / "checkpoints" / "step-10", wanted)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("case", CASES)
def test_calibrated_gates_stay_as_they_were(matrix, case):
    start = load_file(next(matrix.glob("*-extend")) / "delta.safetensors")
    for leg in ("ref", "same", "changed"):
        trained = load_file(matrix / f"{case} {leg}" / "delta.safetensors")
        assert trained.keys() == start.keys()
        stayed = {name for name in start if torch.equal(trained[name].bfloat16(), start[name])}
        assert stayed == {name for name in start if ".router." in name}


def test_all_zero_stages_compute_the_same(matrix):
    reference = losses(matrix / "zero0 ref")
    for case in ("zero2 to 1", "zero3"):
        assert losses(matrix / f"{case} ref") == pytest.approx(reference, rel=1e-6)


def test_damaged_checkpoints_are_passed_over(job):
    """Of two checkpoints the newer is damaged: the older is used. Both damaged: refused. Another ZeRO stage: refused.

    Something planted, which its record calls whole: refused, and it does not run; neither does any other reader run it.
    """
    saving = {"save_every": 2, "keep_checkpoints": 2}
    names = ("whole", "one", "both", "zero", "planted")
    launch(job.parent, [leg(job, f"damaged {name}", stop_at=6, **saving) for name in names])

    def spoil(name: str, step: int) -> None:
        folder = job.parent / f"damaged {name}" / "checkpoints" / f"step-{step}" / "state"
        path = next(folder.glob("*optim_states.pt"))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    assert sorted(p.name for p in (job.parent / "damaged one" / "checkpoints").glob("step-*")) == ["step-4", "step-6"]
    for name, step in (("one", 6), ("both", 6), ("both", 4)):
        spoil(name, step)
    (job.parent / "damaged one" / "checkpoints" / "step-8.tmp").mkdir()  # what a kill leaves
    planted = plant(job.parent / "damaged planted" / "checkpoints" / "step-6", job.parent / "it ran")
    plan = [leg(job, f"damaged {name}", 1, **saving) for name in ("whole", "one", "both", "planted")]
    plan.append(leg(job, "damaged zero", 3, **saving))
    printed = launch(job.parent, plan)
    assert "checkpoint of step 6: state/" in printed and "is damaged; going back to the one before" in printed
    assert "resuming at step 4 of 10" in printed and "resuming at step 6 of 10" in printed
    one, two = (job.parent / f"damaged {name}" / "delta.safetensors" for name in ("whole", "one"))
    assert one.read_bytes() == two.read_bytes()
    assert "no checkpoint is intact" in (job.parent / "damaged both" / "error.txt").read_text()
    assert "written under ZeRO stage 1, and runtime.deepspeed says 3" in (job.parent / "damaged zero" / "error.txt").read_text()
    said = f"{planted}: asks for posix.mkdir, which is in no checkpoint of langext"
    assert said in (job.parent / "damaged planted" / "error.txt").read_text()
    with pytest.raises(RunFailed, match="asks for posix.mkdir"):
        snapshot._held(planted.parents[1], job.parent / "held")
    with pytest.raises(RunFailed, match="cannot be converted .* asks for posix.mkdir, which is not loaded"):
        checkpoints.convert(planted.parents[1], job.parent / "converted")
    assert not (job.parent / "it ran").exists()


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def plant(checkpoint: Path, mark: Path) -> Path:
    """Put a payload into a file of the optimizer, and make the record of the checkpoint agree with it. Returns the file."""
    path = next(checkpoint.glob("state/*optim_states.pt"))
    torch.save(torch.load(path, weights_only=False) | {"more": Payload(mark)}, path)
    record = read_json(checkpoint / "files.json")
    for file in record["files"]:
        if file["name"] == str(path.relative_to(checkpoint)):
            file |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_json(checkpoint / "files.json", record)
    assert not checkpoints.damage(checkpoint)
    return path
