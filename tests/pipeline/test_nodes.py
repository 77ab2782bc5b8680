"""What goes from `langext run` to other machines, as DeepSpeed's launcher passes it on; and the end of what runs there."""

import fcntl
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from processes import stand_ins

from langext.context import Runtime
from langext.data import carriers
from langext.errors import ConfigError, RunFailed
from langext.pipeline import launcher, nodes, slurm_step


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A runtime of two machines; home and current folder are empty."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "hosts").write_text("10.0.0.7 slots=4\nnode-2 slots=4\n")
    return Runtime(nodes=2, cpu_processes=3, hostfile=tmp_path / "hosts")


def exported(path):
    """The variables of a file as the launcher exports them in the shell of another machine."""
    from deepspeed.launcher.multinode_runner import MultiNodeRunner

    found = {}
    for line in path.read_text().splitlines(keepends=True):  # as deepspeed/launcher/runner.py does
        key, value = line.split("=", maxsplit=1)
        runner = SimpleNamespace(exports={})
        MultiNodeRunner.add_export(runner, key, value)
        command = "".join(f"export {key}={value}; " for key, value in runner.exports.items()) + f'printf %s "${key}"'
        found[key] = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
    return found


def test_machines_are_named_and_the_first_one_is_met_at_its_address(two):
    told = nodes.arguments(two)
    assert told[:-1] == [
        "--hostfile", str(two.hostfile), "--num_nodes", "2", "--num_gpus", "3", "--master_addr", "10.0.0.7", "--master_port",
    ] and 1024 <= int(told[-1]) < 65536  # fmt: skip
    two.hostfile.write_text("me@node-1 slots=4\nnode-2 slots=4\n")
    assert "--master_addr" not in nodes.arguments(two)
    assert launcher.command("x", [], two)[2:4] == ["deepspeed.launcher.runner", "--hostfile"]


def test_settings_of_libraries_reach_all_machines_and_secrets_do_not(two, tmp_path):
    odd = r'a "b" $HOME `id` \ c;d'
    (tmp_path / "home" / ".deepspeed_env").write_text("MINE=1\n\n# not a variable\nNCCL_DEBUG=WARN\n")
    env = launcher.environment(two) | {"NCCL_DEBUG": "INFO", "HF_HOME": odd, "HF_TOKEN": "hf_secret", "EDITOR": "vi"}
    with nodes.passing_on(env, two, tmp_path) as whole:
        found = exported(tmp_path / whole[nodes.OWN_FILE])
    assert found["HF_HOME"] == odd and found["DS_ACCELERATOR"] == "cpu"
    assert found["MINE"] == "1" and found["NCCL_DEBUG"] == "WARN"  # what users of DeepSpeed say to all machines wins
    assert {"HF_TOKEN", "EDITOR", nodes.OWN_FILE}.isdisjoint(found) and "hf_secret" not in str(found)


def test_nobody_needs_a_home(two, monkeypatch):
    """As in a container with a user that its system does not know."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert nodes.own_lines({}) == []
    monkeypatch.delenv("LANGEXT_CACHE", raising=False)
    with pytest.raises(ConfigError, match=r"LANGEXT_CACHE: ~/.cache/langext cannot be a path here: Could not determine home"):
        carriers.cache()


def test_what_is_secret_or_of_this_machine_alone_is_not_passed_on():
    env = {"CUDA_VISIBLE_DEVICES": "3", "NCCL_DEBUG": "INFO", "HF_ENDPOINT": "https://me:secret@mirror"}
    assert nodes.passed_on(env) == {"NCCL_DEBUG": "INFO"}


def test_on_one_machine_nothing_is_passed_on(tmp_path):
    with nodes.passing_on({"A": "%"}, Runtime(), tmp_path / "a folder") as env:
        assert env == {"A": "%"}


@pytest.mark.parametrize(
    ("env", "folder", "said"),
    [
        ({}, "a folder", "the run folder, .*a folder: for several machines"),
        ({}, "50%n", "the run folder"),
        ({"NCCL_X": "50%"}, "a", "environment variable NCCL_X: .*'50%'"),
        ({"NCCL_X": "a\nb"}, "a", r"environment variable NCCL_X: .*'a\\nb'"),
    ],
)
def test_what_the_launcher_would_pass_on_wrongly_is_refused(two, tmp_path, env, folder, said):
    with pytest.raises(ConfigError, match=said), nodes.passing_on(env, two, tmp_path / folder):
        raise AssertionError("not refused")


def test_the_end_waits_for_processes_that_hold_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "PATIENCE_SECONDS", 0.3)
    path = tmp_path / "lock"
    with path.open("w") as mine, path.open() as elsewhere, path.open() as other:
        fcntl.flock(mine, fcntl.LOCK_SH)
        fcntl.flock(elsewhere, fcntl.LOCK_SH)
        assert not nodes.wait_until_gone(mine.fileno())
        fcntl.flock(elsewhere, fcntl.LOCK_UN)
        assert nodes.wait_until_gone(mine.fileno())
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)  # it is shared again
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


SLURM = {
    "scontrol": "printf 'a\\nb\\n'",
    "srun": """until [ "$1" = "$PYTHON" ]; do echo "$1" >> options; shift; done
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=0 SLURM_NTASKS=2 "$@" > "task-$i" & done; wait""",
}
"""What langext calls, as far as it matters here. https://slurm.schedmd.com/srun.html"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A Slurm job of two machines, in an empty folder; what it says to other tasks is in the environment."""
    stand_ins(tmp_path / "bin", SLURM)
    monkeypatch.chdir(tmp_path)
    said = {"SLURM_JOB_NODELIST": "[a-b]", "SLURM_CPUS_ON_NODE": "8", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "RANK": "7"}
    for name, value in (said | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable}).items():
        monkeypatch.setenv(name, value)
    return Runtime(nodes=2, cpu_processes=1, launcher="srun")


def test_tasks_of_srun_know_which_they_are_and_where_they_meet(job, tmp_path):
    job.check()
    env = launcher.environment(job)
    assert env["MASTER_ADDR"] == "a" and 1024 <= int(env["MASTER_PORT"]) < 65536 and "RANK" not in env
    code = "import json, os\nfrom langext.pipeline.slurm_step import translate\ntranslate(os.environ)"
    code += "\nprint(json.dumps(dict(os.environ)))"
    subprocess.run([*slurm_step.command(job), sys.executable, "-c", code], env=env, check=True)
    tasks = [json.loads((tmp_path / f"task-{i}").read_text()) for i in (0, 1)]
    assert [(task["RANK"], task["LOCAL_RANK"], task["WORLD_SIZE"]) for task in tasks] == [("0", "0", "2"), ("1", "0", "2")]
    options = set((tmp_path / "options").read_text().split())
    assert {"--nodelist=a,b", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=8"} <= options
    with nodes.passing_on(env, job, tmp_path) as same:
        assert same == env


def test_srun_outside_a_job_and_beside_a_host_file_is_refused(job, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="srun takes the machines of its job"):
        job.model_copy(update={"hostfile": tmp_path / "hosts"}).check()
    monkeypatch.delenv("SLURM_JOB_NODELIST")
    with pytest.raises(ConfigError, match="and this is none"):
        launcher.environment(job)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "[a-b]")
    with pytest.raises(ConfigError, match="runtime.nodes: 3 asked for, and the job has 2"):
        launcher.command("x", [], job.model_copy(update={"nodes": 3}))
    stand_ins(tmp_path / "bin", {"scontrol": "echo 'scontrol: no such\nname' >&2; exit 1"})
    with pytest.raises(RunFailed, match="does not name the machines of the job: scontrol: no such name"):
        launcher.environment(job)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RunFailed, match="scontrol cannot be started: No such file"):
        launcher.environment(job)
    with pytest.raises(ConfigError, match="srun is not here"):
        job.check()
