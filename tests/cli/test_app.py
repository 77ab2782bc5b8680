"""The program as a person meets it: what it says without anything here, mistakes, help and completion."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from forks import langext
from typer.testing import CliRunner

from langext.cli import app
from langext.evaluation import harness

ROOT = Path(__file__).parent.parent.parent


def test_plan_needs_no_download_and_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("LANGEXT_CACHE", str(tmp_path))
    result = langext("plan", "pipelines/quickstart.yaml", "--out", str(tmp_path / "run"))
    assert result.returncode == 2, result.stderr
    for part in (
        "04-train", "model <- extend", "text of filter", "of the run, held out", "225,280 tokens",
        "unknown until the base is here: native, gguf", "not dense (a block with a threshold gate",
        "not ready to run", "langext fetch smollm2-135m", "langext fetch lid.176",
    ):  # fmt: skip
        assert part in result.stdout
    assert not (tmp_path / "run").exists()


def test_doctor_and_the_explanation_of_every_key():
    assert "torch" in langext("doctor").stdout
    fields = langext("doctor", "--fields")
    assert fields.returncode == 0
    for key in ("original_frac", "extra_params_frac", "heldout_frac", "micro_batch", "neutral_residues"):
        assert key in fields.stdout


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("run", "none.yaml"), "none.yaml: no such file"),
        (("run", "pipelines/quickstart.yaml", "--set", "train.stepz=3"), "unknown key 'stepz'. Did you mean steps"),
        (("report", "/nowhere"), "/nowhere: no such folder"),
        (("export", "/nowhere", "--to", "/tmp/x"), "/nowhere: no such folder"),
        (("fetch", "quickstrat"), "Did you mean quickstart"),
    ],
)
def test_mistakes_end_with_code_2_and_one_message(args, expected):
    result = langext(*args)
    assert result.returncode == 2
    assert expected in result.stderr and "Traceback" not in result.stderr


def test_the_library_of_the_hub_is_quiet_in_every_command():
    """A fresh process: what it was told is read when the library is first imported, which no command does before."""
    code = (
        "import sys, langext.cli.app; from langext.cli import edge; assert 'huggingface_hub' not in sys.modules\n"
        "with edge.clean():\n"
        "    from huggingface_hub.utils import logging\n"
        "    logging.get_logger('huggingface_hub.utils._http').warning('thrown while requesting GET')"
    )
    env = {key: value for key, value in os.environ.items() if key != "HF_HUB_VERBOSITY"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_fresh_machine_lacks_is_said_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("LANGEXT_CACHE", str(tmp_path))
    result = langext("run", "pipelines/quickstart.yaml", "--out", str(tmp_path / "run"))
    assert result.returncode == 2 and "langext fetch" in result.stderr
    assert not list((tmp_path / "run").glob("*/job.json"))


def test_fetch_brings_what_is_on_every_machine_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LANGEXT_CACHE", str(tmp_path))
    first, again = (CliRunner().invoke(app.app, ["fetch", "python-reference"]) for _ in range(2))
    assert first.exit_code == again.exit_code == 0 and "help() topics of CPython" in first.output
    assert "here already" in again.output and (tmp_path / "python-reference" / "asset.json").is_file()


def test_fetch_knows_programs_too():
    result = CliRunner().invoke(app.app, ["fetch", "vllmm"])
    assert result.exit_code == 2 and "unknown asset 'vllmm'. Did you mean vllm?" in result.output


def test_the_shell_completes_commands_and_options(monkeypatch):
    monkeypatch.setenv("_LANGEXT_COMPLETE", "complete_bash")
    for words, offered in (("langext qu", "quickstart"), ("langext plan --meas", "--measure")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert CliRunner().invoke(app.app, [], prog_name="langext").stdout.split() == [offered]


def test_public_tasks_are_listed_and_formats_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(
        harness, "known", lambda names: [name for name in names if name == "belebele_swh_Latn"]
    )  # no ten seconds
    assert CliRunner().invoke(app.app, ["tasks", "Swahili"]).stdout == "belebele_swh_Latn\n"
    assert CliRunner().invoke(app.app, ["tasks", "Elvish"]).exit_code == 2
    told = CliRunner().invoke(app.app, ["formats", str(tmp_path / "mine")]).stdout.split()
    assert told and all(Path(path).is_file() for path in told)
