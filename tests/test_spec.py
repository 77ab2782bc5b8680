"""Configuration errors: what, where, and what was meant."""

from pathlib import Path

import pytest

from langext import spec
from langext.pipeline.plan import Pipeline
from langext.spec import ConfigError

GOOD = """\
name: x
language: no
base_model: ./model
stages:
  - uses: filter
    sources:
      - {language: nob_Latn, path: a.txt}
  - uses: extend
    method:
      name: neutral_residues
      gate: sigmoid
  - uses: train
    steps: 3
    lr: 3e-4
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Pipeline:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return spec.load(path, Pipeline, overrides)


def test_yaml_1_2_and_language_codes(tmp_path):
    pipeline = load(tmp_path, GOOD)
    assert pipeline.language == "nob_Latn"  # YAML 1.1 would read `no` as false
    assert pipeline.stages[2].lr == 3e-4  # and `3e-4` as a string
    with pytest.raises(ValueError, match="frozen"):
        pipeline.seed = 3


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("gate: sigmoid", "gat: sigmoid", ["line 11", "unknown key 'gat'", "Did you mean gate", "alpha"]),
        (
            "gate: sigmoid",
            "gate: sigmoidal",
            ["line 11", "'elu', 'sigmoid', 'hard_sigmoid' or 'none'", "got 'sigmoidal'"],
        ),
        ("name: neutral_residues", "name: neutral_residue", ["line 9", "unknown name", "Did you mean neutral_residues"]),
        ("uses: train", "uses: trian", ["line 12", "unknown uses 'trian'", "Did you mean train", "filter"]),
        ("steps: 3", "steps: many", ["line 13", "valid integer", "got 'many'"]),
        ("steps: 3", "steps: 0", ["line 13", "greater than 0", "got 0"]),
        ("    steps: 3\n", "", ["line 12", "key 'steps' is required"]),
        ("steps: 3", "steps: 3\n    steps: 4", ["line 14", "not valid YAML", "duplicate key"]),
        ("stages:", "stages: [", ["not valid YAML", "line"]),
        ("language: no", "language: Frensh", ["line 2", "unknown language 'Frensh'", "french"]),
        ("path: a.txt", "path: a.txt, hub: b/c", ["line 7", "either path or hub"]),
        ("gate: sigmoid", "width: 0", ["line 11", "greater than or equal to 1"]),
        ("gate: sigmoid", "width: 8\n      extra_params_frac: 0.1", ["width or extra_params_frac, not both"]),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, old, new, expected):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    for part in expected:
        assert part in str(caught.value)


def test_all_mistakes_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"2 problem\(s\)"):
        load(tmp_path, GOOD.replace("steps: 3", "steps: x").replace("lr: 3e-4", "lr: y"))


def test_overrides(tmp_path):
    pipeline = load(tmp_path, GOOD, "train.lr=1e-2", "seed=5", "extend.method.width=8", "filter.sources.0.path=b.txt")
    assert (pipeline.stages[2].lr, pipeline.seed, pipeline.stages[1].method.width) == (1e-2, 5, 8)
    assert pipeline.stages[0].sources[0].path == "b.txt"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainn.lr=1", "no stage named 'trainn'; stages: filter, extend, train"),
        ("train.lr", "expected key=value"),
        ("train.lr=fast", "--set train.lr=fast: stages.2.lr"),
        ("train.lrr=1", "--set train.lrr=1: stages.2.lrr: unknown key 'lrr'. Did you mean lr"),
        ("name.x=1", "'name' is a plain value"),
        ("filter.sources.7.path=x", "must name one entry of the list"),
    ],
)
def test_wrong_overrides(tmp_path, override, expected):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD, override)
    assert expected in str(caught.value)


def test_not_a_mapping_and_no_file(tmp_path):
    with pytest.raises(ConfigError, match="expected a mapping"):
        load(tmp_path, "- a\n- b\n")
    with pytest.raises(ConfigError, match="no such file"):
        spec.load(tmp_path / "none.yaml", Pipeline)
