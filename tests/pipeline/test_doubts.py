"""What speaks against a training that could start."""

from types import SimpleNamespace

import pytest

from langext.pipeline import doubts
from langext.stages.train import Train

GiB = 2**30


def told(tmp_path, memory=0.0, disk=0.0, new_text=0, **more):
    train = Train(
        uses="train", lr=1.0, **{"steps": 100, "sequence_length": 64, "batch_sequences": 1, "original_frac": 0.5, **more}
    )
    return list(doubts.of_training(train, memory * GiB, disk * GiB, tmp_path / "run", new_text))


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """One with 16 GiB of memory, 10 GiB of free disk and two GPUs, the smaller of 8 GiB."""
    monkeypatch.setattr(doubts.psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * GiB))
    monkeypatch.setattr(doubts.shutil, "disk_usage", lambda _: SimpleNamespace(free=10 * GiB))
    monkeypatch.setattr(doubts.launcher, "gpu_memory", lambda: 8 * GiB)


def test_what_fits_raises_no_doubt(tmp_path):
    assert told(tmp_path, 15, 9, 800) == []
    assert told(tmp_path, 7, 9, runtime={"gpus": 2, "deepspeed": "zero2"}, batch_sequences=2) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"memory": 17}, "this machine has 16.0 GiB of memory, and its 1 process(es) need 17.0 GiB"),
        ({"memory": 9, "runtime": {"cpu_processes": 2}, "batch_sequences": 2}, "its 2 process(es) need 18.0 GiB"),
        ({"memory": 9, "runtime": {"gpus": 2}, "batch_sequences": 2}, "a GPU of this machine has 8.0 GiB"),
        ({"disk": 11}, "has 10.0 GiB free, and its checkpoints need 11.0 GiB"),
        ({"new_text": 400}, "it reads about 400 tokens of new text 8 times, and more than 4 readings teach little"),
    ],
)  # fmt: skip
def test_each_doubt_says_what_there_is_and_what_is_needed(tmp_path, more, said):
    (found,) = told(tmp_path, **more)
    assert said in found


def test_the_steps_that_are_enough_are_four_readings(tmp_path):
    (found,) = told(tmp_path, new_text=400)  # 3,200 tokens of new text, of which 1,600 are four readings
    assert found.endswith("50 steps are enough")
