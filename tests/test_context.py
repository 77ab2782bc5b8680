"""Where a stage runs: machines, programs and host files that are not as they must be."""

import os

import pytest

from langext.context import Runtime, hosts
from langext.errors import ConfigError

TWO = "node-1 slots=8\n# a comment\n\nnode-2\tslots=8  # the second\n"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder that is the whole PATH, with pdsh and ssh in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("pdsh", "ssh"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def nodes(path, **more):
    return Runtime(**{"nodes": 2, "gpus": 8, "hostfile": path, **more})


def test_a_host_file_lists_machines_in_order(tmp_path, programs):
    path = tmp_path / "hosts"
    path.write_text(TWO)
    assert hosts(path) == {"node-1": 8, "node-2": 8}
    nodes(path).check()
    on_cpus = nodes(path, gpus=0, cpu_processes=3)
    on_cpus.check()
    assert on_cpus.processes == 6


def test_a_host_file_with_too_few_slots_for_processes_on_the_cpu_is_refused(tmp_path, programs):
    (tmp_path / "hosts").write_text(TWO)
    with pytest.raises(ConfigError, match="runtime.cpu_processes: 9 asked for, and .*hosts gives node-1 8"):
        nodes(tmp_path / "hosts", gpus=0, cpu_processes=9).check()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"node-1 slots=8\nnode-2\n", r"hosts: line 2: expected name slots=N, N from 1 on \(got 'node-2'\)"),
        (b"node-1 slots=8\nnode-2 slots=many\n", "line 2: expected name slots=N"),
        (b"node-1 slots=8\n-oProxyCommand=touch slots=8\n", "line 2: expected name slots=N"),
        (b"node-1 slots=8\nnode;touch slots=8\n", "line 2: expected name slots=N"),
        (b"node-1 slots=8\nnode-1 slots=8\n", "line 2: node-1 is there twice"),
        (b"node-1 slots=8\n", "runtime.nodes: 2 asked for, and .*hosts lists 1"),
        (b"", "runtime.nodes: 2 asked for, and .*hosts lists 0"),
        (b"node-1 slots=8\nnode-2 slots=4\n", "runtime.gpus: 8 asked for, and .*hosts gives node-2 4"),
        (b"\xef\xbb\xbfnode-1 slots=8\nnode-2 slots=8\n", "byte order mark"),
        ("nœud-1 slots=8\nnode-2 slots=8\n".encode("latin-1", "replace") + b"\xff", "UTF-8"),
        ("node-1 slots=8\n".encode("utf-16"), "UTF-8"),
    ],
)
def test_a_host_file_that_deepspeed_could_not_use_is_refused_in_one_line(tmp_path, programs, content, said):
    path = tmp_path / "hosts"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as error:
        nodes(path).check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("program", ["pdsh", "ssh"])
def test_programs_that_several_machines_need_are_asked_for(tmp_path, programs, program):
    (tmp_path / "hosts").write_text(TWO)
    (programs / program).unlink()
    with pytest.raises(ConfigError, match=f"needs the program {program}, .*apt install"):
        nodes(tmp_path / "hosts").check()


def test_compiling_for_a_cpu_needs_a_compiler(programs, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match="runtime.compile: .*C\\+\\+ compiler"):
        Runtime(compile=True).check()
    compiler = programs / "my-c++"
    os.symlink(programs / "ssh", compiler)
    monkeypatch.setenv("CXX", "my-c++")
    Runtime(compile=True).check()


def test_gpus_that_are_named_by_other_than_numbers_are_refused(monkeypatch):
    monkeypatch.setattr("langext.devices.gpus", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f1a,GPU-77b0")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES has GPU-8f1a"):
        Runtime(gpus=2).check()
    Runtime(gpus=1).check()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 0")
    Runtime(gpus=2).check()
