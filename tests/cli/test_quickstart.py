"""What `langext quickstart` finds out before it fetches anything."""

import pytest
from typer.testing import CliRunner

from langext.cli import app
from langext.data import assets


@pytest.fixture
def fetched(monkeypatch):
    names = []
    monkeypatch.setattr(assets, "fetch", names.append)
    return names


def test_one_of_several_tasks_fetches_nothing(fetched, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = CliRunner().invoke(app.app, ["quickstart", "--out", str(tmp_path / "run")])
    assert refused.exit_code == 2 and "WORLD_SIZE is 2: torchrun" in refused.output and not fetched
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_found_out_first(fetched, tmp_path):
    (tmp_path / "file").write_text("in the way of a folder, as a disk that is read-only is")
    failed = CliRunner().invoke(app.app, ["quickstart", "--out", str(tmp_path / "file" / "run")])
    assert failed.exit_code and "Traceback" not in failed.output and not fetched


def test_the_assets_come_before_the_run(fetched, tmp_path, monkeypatch):
    monkeypatch.setenv("LANGEXT_CACHE", str(tmp_path / "empty"))
    missing = CliRunner().invoke(app.app, ["quickstart", "--out", str(tmp_path / "run")])
    assert fetched == list(assets.GROUPS["quickstart"])
    assert missing.exit_code == 2 and "asset:smollm2-135m is not on this machine yet" in missing.output
