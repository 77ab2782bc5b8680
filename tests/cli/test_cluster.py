"""What `langext doctor --cluster` says of machines, without ssh: each machine is a change to what this one says of itself."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import stand_ins

from langext.cli import cluster, probe
from langext.errors import ConfigError
from langext.pipeline import reduce


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    monkeypatch.setattr(cluster, "_hub", lambda: tmp_path / "hub")


def machines(**changes):
    """A runner for `cluster.ask`. A change is made to what the machine is asked or says; an exit code and text replace it."""

    def run(host, command, script):
        assert script == Path(probe.__file__).read_text() and command[-3:-1] == [sys.executable, "-"]
        change = changes.get(host.replace("-", "_"), {})
        if isinstance(change, tuple):
            return subprocess.CompletedProcess(command, change[0], "", change[1])
        asked = json.loads(command[-1])
        asked |= {key: value for key, value in change.items() if key in asked}
        said = probe.look(asked)
        said |= {key: value(said[key]) for key, value in change.items() if key in said and callable(value)}
        return subprocess.CompletedProcess(command, 0, f"Welcome!\n\nfound: {json.dumps(said)}\n", "")

    return run


def lines(tmp_path, **changes):
    _, said = cluster.ask({"node-1": 1, "node-2": 1}, tmp_path, machines(**changes))
    return {line.what.split(" of the hub")[0]: line for line in said}


def test_machines_that_are_alike_are_ok_and_nothing_is_left(tmp_path):
    said = lines(tmp_path)
    assert [line.state for line in said.values()] == ["ok"] * 8, said
    assert "torch 2" in said["versions"].said and said["ssh"].said.startswith("2 machines answer")
    assert not list(tmp_path.rglob(".langext-doctor-*"))


@pytest.mark.parametrize(
    ("what", "state", "change", "told"),
    [
        ("ssh", "failure", (255, "Permission denied (publickey).\n"), "node-2: Permission denied .*ssh-copy-id node-2"),
        ("ssh", "failure", (255, "ssh: connect to host node-2 port 22: Connection refused\n"), "no ssh server listens there"),
        ("ssh", "failure", (255, "ssh: Could not resolve hostname node-2: Name\n"), "node-2: ssh: Could not .*no such name"),
        ("ssh", "failure", (255, "Host key verification failed.\n"), "call `ssh node-2` once by hand"),
        ("ssh", "failure", (127, "env: No such file\n"), "node-2: env: No such file; langext must be installed"),
        ("ssh", "failure", (1, ""), "node-2: exit code 1; langext"),
        ("versions", "failure", {"versions": lambda v: v | {"torch": "2.0"}}, r"^node-2: torch 2\.0 \(2.* here\); install"),
        ("versions", "failure", {"versions": lambda v: v | {"langext": "missing"}}, "langext missing"),
        ("path", "failure", {"path": lambda _: "/opt/langext"}, "node-2: langext is at /opt/langext; here it is at .*install"),
        ("clock", "warning", {"time": lambda t: t + 60}, r"^node-2: differs by [56]\d s; turn on time sync"),
        ("clock", "warning", {"time": lambda t: t - 3600}, r"differs by 3[56]\d\d s"),
        ("shared folder", "failure", {"shared": "/no/such"}, "node-2: does not see .*put runs .*--shared"),
        ("shared folder", "failure", {"answer": "/no/such"}, "node-2: cannot write there"),
        ("locks", "warning", {"locked": lambda _: False}, "node-2: does not see a lock .*NFS"),
        ("models", "warning", {"hub": "/no/such"}, "node-2: has another folder, or none; set HF_HOME"),
        ("GPUs", "ok", {}, "none; trainings without runtime.gpus"),
    ],
)
def test_each_difference_is_one_line_with_its_cure(tmp_path, monkeypatch, what, state, change, told):
    monkeypatch.setenv("PATH", "")
    said = lines(tmp_path, node_2=change)
    assert said[what].state == state and "\n" not in said[what].said
    assert re.search(told, said[what].said), said[what].said
    assert all(line.state == "ok" for name, line in said.items() if name != what)


@pytest.mark.parametrize(("here", "there"), [(8, 0), (8, 3), (3, 0)])
def test_a_machine_with_fewer_gpus_than_slots_is_found(tmp_path, here, there):
    slots, gpus = {"node-1": 3, "node-2": 4}, {"node_1": {"gpus": lambda _: here}, "node_2": {"gpus": lambda _: there}}
    _, said = cluster.ask(slots, tmp_path, machines(**gpus))
    (line,) = (line for line in said if line.what == "GPUs")
    assert line.state == "failure" and line.said.startswith(f"node-2: {there} GPUs, and slots=4; nvidia-smi")


def test_where_the_hub_has_put_nothing_yet_a_shared_folder_is_advised(tmp_path):
    (tmp_path / "hub").rmdir()
    assert "is not there yet; set HF_HOME" in lines(tmp_path)["models"].said


@pytest.mark.parametrize(
    ("code", "speed", "state", "told"),
    [
        (0, 3e9, "ok", "2 processes, nccl, 3.00 GB/s"),
        (0, 3e8, "warning", "slow: .*NCCL_SOCKET_IFNAME"),
        (1, None, "failure", "RuntimeError: Connection refused; all ports"),
        (None, None, "failure", "no end after 300 s; all ports"),
    ],
)
def test_an_all_reduce_in_a_line(code, speed, state, told):
    found = {"backend": "nccl", "processes": 2, "right": True, "bytes_per_second": speed}
    printed = [f"node-1: {reduce.FOUND}{json.dumps(found)}"] if speed else ["RuntimeError: Connection refused", "bye"]
    line = cluster.reduced(code, printed)
    assert line.state == state and re.search(told, line.said), line.said
    wrong = cluster.reduced(0, [reduce.FOUND + json.dumps(found | {"right": False, "bytes_per_second": 1.0})])
    assert wrong.state == "failure" and "the sum is wrong" in wrong.said


@pytest.mark.parametrize(
    ("text", "folder", "told"), [("a slots=1\n", ".", "lists 1 of"), ("a slots=1\nb slots=1\n", "no", "no such")]
)
def test_what_cannot_be_checked_is_refused(tmp_path, text, folder, told):
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(ConfigError, match=told):
        cluster.check(tmp_path / "hosts", tmp_path / folder)


def test_without_pdsh_nothing_else_is_tried(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    assert cluster.check(tmp_path / "hosts", tmp_path) == 1
    assert capsys.readouterr().out == "failure  programs: no pdsh, ssh here; apt install pdsh openssh-client\n"


def test_a_machine_that_hangs_is_named_and_not_waited_for(tmp_path, monkeypatch):
    stand_ins(tmp_path / "bin", {"ssh": "exec sleep 20"})
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.2)
    _, said = cluster.ask({"node-1": 1, "node-2": 1}, tmp_path, cluster.ssh)
    assert re.search(r"^failure +ssh: node-1: no answer within 0.2 s; does a file system hang there", said[0].line)
