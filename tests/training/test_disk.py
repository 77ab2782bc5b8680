"""A disk that takes no more: what was there stays, the error says what to do, and the same call goes on when there is room."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from langext.artifacts import write_json
from langext.data.tokens import TokenFile
from langext.errors import RunFailed, disk_problem
from langext.training import checkpoints
from langext.training.checkpoints import Checkpoints


@pytest.fixture
def disk(tmp_path):
    """A disk of 300 kB. Skipped where this test may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "langext-test", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def grow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)


@pytest.fixture
def alone(monkeypatch):
    """One process, without a process group."""
    monkeypatch.setattr(checkpoints.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(checkpoints.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(checkpoints.distributed, "broadcast_object_list", lambda shared: None)
    monkeypatch.setattr(checkpoints.distributed, "barrier", lambda: None)


def fill(size):
    return lambda folder: torch.save({"w": torch.zeros(size)}, folder / "states.pt")


def test_a_checkpoint_is_written_whole_or_not_at_all(disk, alone):
    kept = Checkpoints(disk / "checkpoints", keep=2)
    kept.write(1, fill(100), "zero1", 0)
    for name in ("the disk is full", "it is full again"):
        with pytest.raises(RunFailed, match=r"step-2.tmp: .*make room and run the same command again"):
            kept.write(2, fill(10**6), "zero1", 0)
        assert [path.name for path in kept.folder.iterdir()] == ["step-1"], name
        assert kept.newest() == kept.folder / "step-1"
    with pytest.raises(RunFailed, match=r"a checkpoint takes 0.02 GiB and 0.00 GiB are free; make room"):
        kept.write(2, fill(10**6), "zero1", 20 * 2**20)
    grow(disk)
    kept.write(2, fill(10**6), "zero1", 0)
    assert kept.newest() == kept.folder / "step-2"


def test_tokens_and_records_say_that_the_disk_is_full(disk):
    (disk / "full").write_bytes(bytes(280_000))
    for write in (
        lambda: TokenFile.write(disk / "tokens", [[1] * 50_000]),
        lambda: TokenFile.write(disk / "starts", [[]] * 50_000),
        lambda: write_json(disk / "manifest.json", {"files": ["x" * 100] * 2000}),
    ):
        with pytest.raises(OSError) as error:
            write()
        assert "the disk is full; mend that and run the same command again to go on" in disk_problem(error.value)
    assert not TokenFile.is_done(disk / "tokens") and not (disk / "manifest.json").exists()
    grow(disk)
    assert len(TokenFile.write(disk / "tokens", [[1] * 50_000]).tokens) == 50_000


def test_every_process_does_what_the_first_one_sees(tmp_path, monkeypatch):
    """On a shared disk the others may not see the folder yet; if they decided for themselves, they would wait for ever."""
    kept = Checkpoints(tmp_path, keep=2)
    monkeypatch.setattr(checkpoints.distributed, "get_rank", lambda: 1)

    def first_says(shared):
        shared[:] = [True, None]

    monkeypatch.setattr(checkpoints.distributed, "broadcast_object_list", first_says)
    kept.write(5, lambda folder: pytest.fail("the first process has this checkpoint"), "zero1", 0)
    assert not os.listdir(tmp_path)


def test_files_that_are_not_of_a_checkpoint_make_it_damaged(tmp_path, alone):
    kept = Checkpoints(tmp_path, keep=2)
    kept.write(1, fill(10), "zero1", 0)
    assert checkpoints.damage(tmp_path / "step-1") == ""
    (tmp_path / "step-1" / "state").mkdir()
    torch.save({}, tmp_path / "step-1" / "state" / "more.pt")  # DeepSpeed reads what has the right name
    assert checkpoints.damage(tmp_path / "step-1") == "state/more.pt is not one of its files"
