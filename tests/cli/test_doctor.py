"""What `langext doctor` says of a machine."""

import re
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from langext.artifacts import write_json
from langext.cli import doctor, health
from langext.cli.health import Check


def test_what_only_some_runs_need_is_named_when_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = {check.what: check for check in health.sometimes() if "MISSING" in check.found}
    assert missing.keys() >= {"pdsh", "ssh", "C++ compiler"}
    assert "runtime.nodes > 1" in missing["ssh"].found and missing["ssh"].cure == "on Debian: apt install openssh-client"
    for name in ("pdsh", "ssh", "g++", "clang++"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    here = {check.what: check.found for check in health.sometimes()}
    assert here["pdsh"] == str(tmp_path / "pdsh") and not [name for name in ("ssh", "C++ compiler") if "MISSING" in here[name]]
    assert "tensorboard" in here


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "state"), [(2**40, "ok"), (2**30, "warning"), (2**20, "failure")])
def test_disk_is_a_warning_before_it_is_a_failure(free, state, tmp_path, monkeypatch):
    monkeypatch.setattr(health.shutil, "disk_usage", lambda path: Usage(2**40, 0, free))
    found = health._disk("this folder", tmp_path / "not" / "there")
    assert found.state == state and bool(found.cure) == (state != "ok")


def test_a_folder_that_cannot_be_written_to_is_a_failure(tmp_path, monkeypatch):
    assert health._writable("cache", tmp_path / "not" / "there").state == "ok" and not list(tmp_path.iterdir())

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(health.tempfile, "TemporaryFile", refuse)
    found = health._writable("cache", tmp_path)
    assert found.state == "failure" and "Permission denied" in found.found and "LANGEXT_CACHE" in found.cure


def test_a_clock_before_the_installation_and_a_damaged_asset_are_warnings(tmp_path, monkeypatch):
    assert health._clock(0.0).state == "warning" and health._clock(4e9).state == "ok"
    monkeypatch.setenv("LANGEXT_CACHE", str(tmp_path))
    assert "langext fetch lid.176" in health._asset("lid.176").line
    (tmp_path / "lid.176").mkdir()
    file = {"name": "model.ftz", "bytes": 9, "sha256": "0"}
    write_json(tmp_path / "lid.176" / "asset.json", {"origin": "", "licence": "", "about": "", "files": [file]})
    found = health._asset("lid.176")
    assert found.state == "warning" and "model.ftz damaged or missing; get it again" in found.found


@pytest.mark.parametrize(("states", "code"), [(["ok"], 0), (["ok", "warning"], 0), (["warning", "ok", "failure"], 1)])
def test_quiet_prints_only_what_is_wrong(states, code, monkeypatch, capsys):
    monkeypatch.setattr(health, "checks", lambda: [Check(state, f"a {state}", "so", "do") for state in states])
    assert doctor.show() == code
    assert len(capsys.readouterr().out.splitlines()) == len(states)
    assert doctor.show(quiet=True) == code
    lines = [f"{state:<8} a {state}: so; do" for state in states if state != "ok"]
    assert capsys.readouterr().out.splitlines() == lines


def test_a_package_that_is_missing_is_a_failure(monkeypatch):
    assert health._package("torch").state == "ok"
    assert health._package("no-such-package").state == "failure"


def test_the_page_of_all_keys_is_a_page():
    """Every key is in a row of four cells, whatever its text has in it."""
    page = doctor.page()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    assert {"calibrate", "forgetting_budget", "slurm", "length"} <= {title for title, *_ in doctor.parts()}, "parts have tables"
    for title, about, keys in doctor.parts():
        assert f"\n## {title}\n" in page and about
        assert all(f"| {key.replace('_', chr(92) + '_')} |" in page for key, *_ in keys)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a | b", "a \\| b"),
        ("runs/<name>", "runs/\\<name>"),
        ("see `a_b[c]` or a_b", "see `a_b[c]` or a\\_b"),
        ("two\n  lines", "two lines"),
    ],
)
def test_text_in_a_table_stays_text(text, cell):
    assert doctor._cell(text) == cell


def test_the_hub_is_asked_and_its_token_is_not_shown(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert health.hub().line.startswith("ok       hub: not asked (HF_HUB_OFFLINE)")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:secret@127.0.0.1:9")
    refused = health.hub()
    assert refused.state == "warning" and "cannot be reached" in refused.found and "HF_HUB_OFFLINE=1" in refused.cure
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://me:secret@127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_quite_secret")
        answered = health.hub()
        server.shutdown()
    assert answered.state == "ok" and answered.found.endswith("answers; logged in")
    assert "secret" not in refused.line + answered.line
