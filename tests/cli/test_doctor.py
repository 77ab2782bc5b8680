"""What `langext doctor` says of a machine."""

from langext.cli import doctor


def test_what_only_some_runs_need_is_named_when_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = {(name, need) for name, at, need in doctor._sometimes() if at == "MISSING"}
    assert missing >= {
        ("pdsh", "runtime.nodes > 1"), ("ssh", "runtime.nodes > 1"), ("C++ compiler", "runtime.compile on a CPU"),
    }  # fmt: skip
    for name in ("pdsh", "ssh", "g++", "clang++"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    here = {name: at for name, at, _ in doctor._sometimes()}
    assert here["pdsh"] == str(tmp_path / "pdsh") and "MISSING" not in (here["ssh"], here["C++ compiler"])
    assert "tensorboard" in here
