"""What is said of GPUs that torch cannot compute on."""

import re

import pytest
import torch

from langext import devices
from langext.artifacts import Job, write_json
from langext.cli import first_look, health
from langext.context import Runtime
from langext.errors import ConfigError, RunFailed
from langext.pipeline import worker


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A machine with NVIDIA's driver, and a torch that sees no GPU."""
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01\n")
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "version")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # the driver counts them even where torch cannot use them
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_torch_without_cuda_is_told_wherever_gpus_are_counted(driver, monkeypatch, capsys):
    version = re.escape(torch.__version__)
    why = f"the machine has NVIDIA's driver, and torch {version} is built without CUDA; install torch for CUDA"
    with pytest.raises(ConfigError, match=f"runtime.gpus: 2 asked for, 0 on this machine; {why}"):
        Runtime(gpus=2).check()
    (check,) = health._devices()
    assert check.state == "warning" and "is built without CUDA" in check.line
    assert first_look.machine().gpus == 0 and "the pipeline is written for the CPU: the machine has" in capsys.readouterr().err
    assert first_look.machine(8, 80).gpus == 8 and capsys.readouterr().err == ""  # for another machine
    for hidden in devices.HIDDEN:  # whoever hides them knows
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert devices.unused_gpus() == "" and next(health._devices()).state == "ok"


def test_a_driver_that_is_too_old_is_told_in_the_words_of_torch(driver, monkeypatch):
    def refuse():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it")

    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.init", refuse)
    assert "finds no GPU: The NVIDIA driver on your system is too old (found version 11040)" in devices.unused_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    assert devices.unused_gpus() == "CUDA_VISIBLE_DEVICES is 9, and leaves torch none of the GPUs of the machine"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert devices.unused_gpus() == "" and devices.gpus() == 2


def test_a_machine_without_a_driver_has_no_gpus(driver, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.unused_gpus() == "" and next(health._devices()).state == "ok"
    program = tmp_path / "nvidia-smi"
    for says, found in (("No devices were found", False), ("GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-1)", True)):
        program.write_text(f"#!/bin/sh\necho '{says}'\n")
        program.chmod(0o755)
        assert bool(devices.unused_gpus()) == found


def test_a_process_without_a_gpu_does_not_compute_on_the_cpu_instead(tmp_path, monkeypatch):
    """One of several machines may be unlike the others, which the plan does not see."""
    monkeypatch.setattr(devices, "gpus", lambda: 0)
    monkeypatch.setattr(devices, "unused_gpus", lambda: "")
    stage = {"uses": "train", "steps": 1, "lr": 0.1, "sequence_length": 16, "batch_sequences": 1, "runtime": {"gpus": 1}}
    job = Job(
        fingerprint="", identity={}, inputs={}, seed=1, stage=stage, language="fra_Latn", original_languages=["eng_Latn"],
        tokens="", benchmarks=[],
    )  # fmt: skip
    (tmp_path / "train").mkdir()
    write_json(tmp_path / "train" / "job.json", job)
    with pytest.raises(RunFailed, match="runtime.gpus: 1 asked for, and none on .*: torch finds none"):
        worker.execute(tmp_path / "train")
