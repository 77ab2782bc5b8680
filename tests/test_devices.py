"""What is said of GPUs that torch cannot compute on."""

import pytest
import torch

from langext import devices
from langext.cli import first_look, health
from langext.context import Runtime
from langext.errors import ConfigError


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
    why = rf"NVIDIA's driver is here, and torch {torch.__version__} is built without CUDA; install torch for CUDA".replace(
        "+", r"\+"
    )
    with pytest.raises(ConfigError, match=f"runtime.gpus: 2 asked for, 0 on this machine; {why}"):
        Runtime(gpus=2).check()
    (check,) = health._devices()
    assert check.state == "warning" and "is built without CUDA" in check.line
    assert first_look.machine().gpus == 0 and "the pipeline is written for the CPU: NVIDIA's driver" in capsys.readouterr().err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # whoever hides them knows
    assert devices.unused_gpus() == "" and next(health._devices()).state == "ok"


def test_a_driver_that_is_too_old_is_told_in_the_words_of_torch(driver, monkeypatch):
    def refuse():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it")

    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.init", refuse)
    assert "cannot use it: The NVIDIA driver on your system is too old (found version 11040)" in devices.unused_gpus()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert devices.unused_gpus() == "" and devices.gpus() == 2


def test_a_machine_without_a_driver_has_no_gpus(driver, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.unused_gpus() == "" and next(health._devices()).state == "ok"
