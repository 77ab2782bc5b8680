"""What is wrong with a pipeline is said all at once, and nothing is promised of a base that is not here."""

import re
import shutil

import pytest

from langext import spec
from langext.errors import ConfigError
from langext.pipeline import estimate, plan
from langext.pipeline.plan import Pipeline
from tokenizer_tools import extension

FILTER = {"uses": "filter", "sources": [{"language": "fr", "path": "a.txt"}], "lid_model": "lid.bin"}
EXTEND = {"uses": "extend", "method": {"name": "full"}}
TRAIN = {"uses": "train", "steps": 1, "lr": 1, "sequence_length": 64}


def make(*stages, **more) -> Pipeline:
    return Pipeline(**{"name": "x", "language": "fr", "base_model": "./m", "stages": list(stages), **more})


def test_all_mistakes_are_said_at_once_and_equal_ones_once(tmp_path, pico, texts):
    sources = [{"language": code, "path": f"none.{code}"} for code in ("fr", "en")]
    export = {"uses": "export", "format": "native"}
    stages = [FILTER | {"sources": sources}, EXTEND | {"method": {"name": "neutral_residues", "gate": "relu"}}, TRAIN, export]
    gpus = {"runtime": {"gpus": 64, "deepspeed": "zero2"}}
    stages = [stage | gpus if stage["uses"] != "filter" else stage for stage in stages]
    spec_ = make(*stages, base_model=str(pico))
    steps = plan.plan(spec_, tmp_path)
    with pytest.raises(ConfigError) as error:
        plan.check(spec_, steps, steps)
    said = str(error.value).splitlines()
    assert said[0].endswith(" problems:") and len(said) == len(error.value.each) + 1
    for number, part in enumerate(("format 'native': no stock", "none.fr: no such", "none.en: no such"), 1):
        assert f"  {number}. stage" in said[number] and part in said[number]
    assert sum("64 asked for" in line for line in said) == 1 and "stages 'extend', 'train'" in str(error.value)


def test_a_plan_names_every_problem_with_its_line(tmp_path, pico, capsys):
    file = tmp_path / "x.yaml"
    sources = "\n".join(f"      - {{language: {code}, path: none.{code}}}" for code in ("fr", "en"))
    head = f"name: x\nlanguage: fr\nbase_model: {pico}\nstages:\n  - uses: filter\n    lid_model: none.bin\n"
    file.write_text(f"{head}    sources:\n{sources}\n")
    spec_ = spec.load(file, Pipeline)
    assert not estimate.show(spec_, tmp_path / "run", file, [])
    said = capsys.readouterr().out
    assert "not ready to run: 3 problems:" in said
    for line, part in ((8, "none.fr"), (9, "none.en"), (6, "none.bin")):
        assert re.search(rf"x\.yaml: line {line}: stage 'filter': \S*{part}", said), said


def test_of_a_base_that_is_not_here_nothing_is_promised(tmp_path, capsys):
    stages = [
        FILTER,
        {"uses": "extend", "method": {"name": "neutral_residues", "gate": "threshold"}},
        TRAIN,
        {"uses": "export"},
    ]
    (file := tmp_path / "x.yaml").write_text("stages: []\n")
    shown = {}
    for base in ("owner/model", "runs/first"):
        spec_ = make(*stages, base_model=base)
        estimate.show(spec_, tmp_path / "run", file, [])
        shown[base] = capsys.readouterr().out
    hub = shown["owner/model"]
    assert "unknown until the base is here: native, gguf" in hub and "; gguf:" not in hub
    assert "Not looked at, since they are on the hub and nothing is downloaded here: base_model owner/model\n" in hub
    assert "  1. base_model: runs/first: no such run here" in shown["runs/first"] and "Not looked at" not in shown["runs/first"]


def test_sizes_are_told_beside_a_problem_and_a_gpu_that_is_idle(tmp_path, pico, texts, capsys, monkeypatch):
    monkeypatch.setattr("langext.devices.gpus", lambda: 2)
    file = tmp_path / "x.yaml"
    file.write_text("stages: []\n")
    train = TRAIN | {"sequence_length": 100_000}
    spec_ = make(FILTER, EXTEND, train, {"uses": "export", "format": "native"}, base_model=str(pico))
    assert not estimate.show(spec_, tmp_path / "run", file, [])
    out, said = capsys.readouterr()
    assert "FLOPs" in out and "export: native. Possible" in out and "until the base" not in out and "positions" in out
    assert "trains on the CPU, and this machine has 2 GPU(s); --set train.runtime.gpus=1" in out + said


def test_a_vocabulary_that_has_been_extended_is_not_judged_again(tmp_path, pico, monkeypatch, capsys):
    """A later version may refuse what was made; what is left to do is done. Until it is, a base is judged once."""
    base = shutil.copytree(pico, tmp_path / "base")
    spec_ = make(FILTER, {"uses": "extend_tokenizer"}, EXTEND, TRAIN, base_model=str(base))
    steps, asked = plan.plan(spec_, tmp_path / "run"), []
    monkeypatch.setattr(extension, "_unlike_itself", lambda *given: asked.append(given) or "")
    for _ in range(3):
        plan.check_models(spec_, steps, steps)
    assert len(asked) == 1
    (base / "other.json").write_text("{}")
    monkeypatch.setattr(extension, "_unlike_itself", lambda *given: "it is another one")
    with pytest.raises(ConfigError, match="stage 'extend_tokenizer': .*it is another one"):
        plan.check_models(spec_, steps, steps)
    plan.check_models(spec_, steps, steps[2:])
