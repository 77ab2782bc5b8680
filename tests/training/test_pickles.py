"""Pickled files of a checkpoint: what DeepSpeed writes is loaded, anything else is refused without running."""

import os
from pathlib import Path

import pytest
import torch

from langext.errors import RunFailed
from langext.training import pickles


class Payload:
    """Makes a folder when it is unpickled as usual."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def restricted(monkeypatch):
    """As in a process that loads checkpoints."""
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    pickles.restrict()


@pytest.fixture
def known():
    """One of each class that DeepSpeed puts into its files."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    values = {"scaler": LossScaler(1.0), "stage": ZeroStageEnum.gradients, "slices": {"w": fragment_address(3, 5)}}
    assert len(values) == len(pickles.KNOWN)
    return values | {"state": {"step": 7, "exp_avg": torch.ones(3)}, "shape": torch.Size([3]), "large": 1 << 40}


def test_what_deepspeed_writes_is_loaded(tmp_path, known, restricted):
    torch.save(known, tmp_path / "states.pt")
    pickles.check(tmp_path)
    loaded = torch.load(tmp_path / "states.pt", weights_only=False)
    assert loaded["stage"] == known["stage"] and loaded["slices"] == known["slices"] and loaded["scaler"].cur_scale == 1.0
    assert torch.equal(loaded["state"]["exp_avg"], torch.ones(3)) and loaded["large"] == 1 << 40


@pytest.mark.parametrize("protocol", [2, 5])
def test_what_would_run_is_refused_and_does_not_run(tmp_path, known, restricted, protocol):
    path, mark = tmp_path / "deep" / "states.pt", tmp_path / "it ran"
    path.parent.mkdir()
    torch.save(known | {"more": [Payload(mark)]}, path, pickle_protocol=protocol)
    with pytest.raises(RunFailed, match=f"{path}: "):
        pickles.check(tmp_path)
    with pytest.raises(RunFailed, match="states.pt: cannot be read"), pickles.reading(path):
        torch.load(path, weights_only=False)  # as DeepSpeed calls it
    assert not mark.exists()
    torch.save({"more": Payload(mark)}, path)
    with pytest.raises(RunFailed, match=r"asks for (posix|nt)\.mkdir, which is in no checkpoint of langext"):
        pickles.check(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no zip", b"\x80\x02c" + b"posix\nsystem\n."])
def test_what_is_no_file_of_torch_is_refused(tmp_path, content):
    (tmp_path / "states.pt").write_bytes(content)
    with pytest.raises(RunFailed, match="states.pt: cannot be read: .*start the stage over with --redo"):
        pickles.check(tmp_path)


def test_a_cut_file_and_a_program_of_torch_are_refused(tmp_path, restricted):
    path = tmp_path / "states.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(RunFailed, match="cannot be read"):
        pickles.check(tmp_path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(RunFailed, match="cannot be read"):
        pickles.check(tmp_path)


def test_other_errors_than_of_the_file_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="^no memory$"), pickles.reading(tmp_path):
        raise RuntimeError("no memory")
