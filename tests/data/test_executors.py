"""The same text wherever it is filtered. Slurm is played by shell scripts here; benchmarks/clusters.py runs the real one."""

import os
import re
import shlex
from pathlib import Path

import dill
import pytest
from processes import stand_ins
from pydantic import ValidationError
from steps import Count

from langext.artifacts import sha256_file
from langext.context import Ray, Runtime, Slurm
from langext.data import on_slurm
from langext.data.executor import execute
from langext.data.on_slurm import SlurmExecutor
from langext.data.writers import Writer
from langext.errors import ConfigError, RunFailed

PROGRAMS = {
    "sbatch": """
for script; do :; done
case "$*" in *nowhere*) set nowhere;; *--test-only*) exit 0;; *) grep -q nowhere "$script" && set nowhere;; esac
[ "$1" = nowhere ] && { echo 'sbatch: error: invalid partition specified: nowhere' >&2; exit 1; }
echo Submitted batch job 7 on cluster one""",
    "squeue": 'case "$*" in *--name=*) cat "$SLURM/queue" 2> /dev/null || true;; *) cat "$SLURM/ended";; esac',
    "scancel": 'echo "$*" >> "$SLURM/cancelled"; rm -f "$SLURM/queue"',
    "scontrol": "echo here",
}
SLURM = Runtime(executor="slurm", workers=2, slurm=Slurm(partition="one", options={"account": "a b"}))


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder in which the scripts leave what they did."""
    folder = tmp_path / "slurm"
    stand_ins(folder, PROGRAMS)
    monkeypatch.setenv("SLURM", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_NODELIST", "here")
    for name in ("LOOK_SECONDS", "ASK_SECONDS", "LAG_SECONDS"):
        monkeypatch.setattr(on_slurm, name, 0.01)
    launch = SlurmExecutor.launch_job

    def launch_and_run(self):
        """The tasks of the array, as the script that was submitted would start each in a process of its own."""
        launch(self)
        assert "SLURM_NODELIST" not in os.environ  # of the job in which this test may run
        script = (self.log / "launch_script.slurm").read_text()
        (last,) = re.findall(r'^#SBATCH --array="0-(\d+)%2"$', script, re.MULTILINE)
        for index in range(int(last) + 1):
            with monkeypatch.context() as job, open(shlex.split(script.splitlines()[-1])[-1], "rb") as file:
                job.setenv("SLURM_ARRAY_TASK_ID", str(index))
                job.setenv("SLURM_NODELIST", "here")
                end = "COMPLETED"
                try:
                    dill.load(file).run()
                except (ConfigError, SystemExit):
                    end = "FAILED"
            with (folder / "ended").open("a") as ended:
                ended.write(f"{index} {end}\n")

    monkeypatch.setattr(SlurmExecutor, "launch_job", launch_and_run)
    return folder


def written(folder: Path, runtime: Runtime, **more) -> dict[str, str]:
    execute([Count(**more), Writer(folder / "text", "a%b.${rank}.jsonl.gz")], 2, folder / "log", runtime)
    return {path.name: sha256_file(path) for path in sorted((folder / "text").iterdir())}


def test_a_slurm_run_writes_the_same_bytes_as_this_machine(tmp_path, slurm):
    here = written(tmp_path / "here", Runtime())
    assert len(here) == 2
    there = tmp_path / "100% on::slurm"
    assert written(there, SLURM) == here
    script = (there / "log" / "launch_script.slurm").read_text()
    for line in ('--account="a b"', '--partition="one"', '--mem-per-cpu="4G"', "--no-requeue", '--output="'):
        assert f"\n#SBATCH {line}" in script
    assert "100%% on::slurm/log/slurm_logs/%A_%a.out" in script
    (slurm / "sbatch").unlink()
    assert written(there, SLURM) == here  # nothing is left to do


def test_a_mistake_in_the_text_is_told_as_on_this_machine_and_the_rest_goes_on(tmp_path, slurm):
    with pytest.raises(ConfigError, match=r"^part 1.jsonl: line 2: not a JSON object$"):
        written(tmp_path / "a", SLURM, wrong=1)
    (slurm / "ended").unlink()
    (slurm / "queue").write_text("7_1\n")  # of an attempt that was killed
    assert written(tmp_path / "a", SLURM) == written(tmp_path / "here", Runtime())
    assert (slurm / "cancelled").read_text().startswith("--quiet --name=langext-")
    assert (slurm / "ended").read_text() == "0 COMPLETED\n"  # only the task that had failed


def test_a_slurm_task_that_is_killed_ends_the_run(tmp_path, slurm):
    with pytest.raises(RunFailed, match=r"was killed.*raise runtime.slurm.memory_gb .see .*7_1.out"):
        written(tmp_path / "a", SLURM, ends=1)


def test_what_sbatch_refuses_is_told_in_its_words(tmp_path, slurm):
    wrong = Slurm(partition="nowhere")
    later = SlurmExecutor([Count()], 2, 2, tmp_path / "log", wrong).run  # what is finished is kept then
    for ask, error in ((wrong.check, ConfigError), (later, RunFailed)):
        with pytest.raises(error, match=r"^runtime.slurm: .*invalid partition specified: nowhere$"):
            ask()
    SLURM.check()


def test_a_cluster_that_is_not_here_is_refused_when_the_run_is_planned(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"runtime.executor: slurm needs the program sbatch"):
        SLURM.check()
    monkeypatch.setattr("langext.context.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"ray is not installed; pip install '\.\[ray\]'"):
        Runtime(executor="ray").check()
    with pytest.raises(ValidationError, match="slurm: is for executor: slurm, and the executor is ray"):
        Runtime(executor="ray", ray=Ray(), slurm=Slurm())
    with pytest.raises(ValidationError, match="String should match"):
        Slurm(options={"account": "a\n#SBATCH --wrap=x"})
