"""Configuration errors: what, where, and what was meant."""

import os
import re
from pathlib import Path

import pytest

from langext import spec
from langext.errors import ConfigError
from langext.pipeline.plan import Pipeline

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
            ["line 11", "'sigmoid', 'hard_sigmoid', 'threshold' or 'none'", "got 'sigmoidal'"],
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
        ("stages.²=1", "'²' must name one entry of the list"),
        ("stages=5", "--set stages=5: stages"),
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


BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
WRONG = {
    "UTF-16": ("name: x".encode("utf-16"), "not UTF-8 text"),
    "Latin-1": ("name: forêt".encode("latin-1"), "not UTF-8 text"),
    "NUL": (b"name: x\0", "not valid YAML"),
    "brackets": (b"a: " + b"[" * 2_000, "nested too deeply"),
    "an alias bomb": (BOMB.encode(), "more than 100,000 values"),
    "an alias of itself": (b"a: &a [*a, *a]", "more than 100,000 values"),
    "a number of 5,000 digits": (b"seed: " + b"9" * 5000, "not valid YAML"),
    "a tag that would make an object": (b"a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    "a list": (b"- a", "expected a mapping"),
    "nothing": (b"", "expected a mapping"),
    "text": (b"hello", "expected a mapping"),
    "a tab": (b"a:\n\tb: 1", "not valid YAML"),
    "not a number": (GOOD.replace("lr: 3e-4", "lr: .nan").encode(), "line 14.*finite"),
    "infinity": (GOOD.replace("lr: 3e-4", "lr: .inf").encode(), "line 14.*finite"),
    "a seed of more than 32 bits": (GOOD.replace("name: x", "name: x\nseed: 4294967296").encode(), "line 2: seed.*4294967296"),
    "a name that leads out of runs/": (GOOD.replace("name: x", "name: ..").encode(), "line 1: name"),
    "a long name": (GOOD.replace("name: x", "name: " + "x" * 5000).encode(), "line 1: name.*at most 100"),
    "5,000 hexadecimal digits": (GOOD.replace("name: x", "name: x\nseed: 0x" + "f" * 5000).encode(), "line 2: seed"),
    "an integer of more than 64 bits": (GOOD.replace("steps: 3", f"steps: {10**20}").encode(), "line 13.*"),
    "a key that is a list": (b"? [a, b]\n: 1\n", "problem|not valid YAML|expected"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_pipeline_file_that_is_none(tmp_path, kind):
    content, expected = WRONG[kind]
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        spec.load(path, Pipeline)
    assert re.search(expected, str(caught.value)) and str(path) in str(caught.value) and len(str(caught.value)) < 2000


def test_a_byte_order_mark_is_no_part_of_a_pipeline_file(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert spec.load(path, Pipeline).name == "x"


def test_what_is_no_file(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for name in ("loop", "file/below", "pipe", "x" * 5000, "a\0b", "~nosuchuser/p.yaml", "."):
        with pytest.raises(ConfigError) as caught:
            spec.load(tmp_path / name if "~" not in name else Path(name), Pipeline)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
