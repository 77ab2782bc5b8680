"""`langext scores`: figures by name, conditions, exit codes."""

import json
import math
import re
import shutil

import pytest
from run_folders import bits, change
from test_page import run  # noqa: F401
from typer.testing import CliRunner

from langext.artifacts import read_json, write_json
from langext.cli.app import app
from langext.errors import ConfigError
from langext.report import conditions, page, run_folder


@pytest.fixture
def measured(run):  # noqa: F811
    path = run / "04-evaluate" / "scores.json"
    scores = read_json(path)
    scores["kl_to_base"] = {"eng_Latn": {"value": 0.02, "stderr": 0.001, "tokens": 500}}
    scores["bits_per_byte"]["eng_Latn/python"] = bits(1.1)
    scores["tasks"]["continuation_fra_Latn"]["acc"]["value"] = 0.4
    write_json(path, scores)
    before = run / "02-evaluate_base" / "scores.json"
    scores = read_json(before)
    scores["bits_per_byte"]["eng_Latn/python"] = bits(1.0)
    write_json(before, scores)
    return run


def langext(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_figures_have_names(measured):
    found = conditions.measures(run_folder.gather(measured))
    assert found["new.bpb_increase"] == found["fra_Latn/book.bpb_increase"] == pytest.approx(-0.25)
    assert found["eng_Latn/python.bpb_increase"] == pytest.approx(0.1)
    assert found["original.bpb_increase"] == pytest.approx((0.1 + 0.0001) / 2, rel=1e-3)
    assert found["original.worst_bpb_increase"] == found["eng_Latn/python.bpb_increase"]
    assert found["original.kl"] == found["eng_Latn.kl"] == 0.02
    assert found["continuation_fra_Latn.acc_drop"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("condition", "true"),
    [
        ("original.bpb_increase > 0.5%", True),
        ("original.bpb_increase>6%", False),
        ("eng_Latn/python.bpb_increase >= 0.09", True),
        ("new.bpb_increase > -2e-1", False),
        ("new.bpb_increase < -20%", True),
        ("eng_Latn.kl <= 0.01", False),
    ],
)
def test_conditions_decide_the_exit_code(measured, condition, true):
    done = langext("scores", measured, "--fail-if", condition)
    assert done.exit_code == (3 if true else 0)
    assert ("failed: " + condition in done.output) == true


def test_conditions_that_cannot_be_read_are_told(measured, tmp_path):
    found = conditions.measures(run_folder.gather(measured))
    with pytest.raises(ConfigError, match="expected <measure> <operator> <number>"):
        conditions.met(["original.kl"], found)
    with pytest.raises(ConfigError, match=r"no measure 'orignal.kl'\. Did you mean original.kl"):
        conditions.met(["orignal.kl > 1"], found)
    with pytest.raises(ConfigError, match="have not both been measured"):
        conditions.met(["original.kl > 1"], {})
    assert langext("scores", measured, "--fail-if", "x").exit_code == 2


def test_a_run_that_has_not_measured_says_so(measured):
    for stage in measured.glob("*evaluate*"):
        shutil.rmtree(stage)
    done = langext("scores", measured)
    assert done.exit_code == 0 and not done.stdout and "no evaluation of this run has finished" in done.stderr


def test_what_is_no_number_does_not_pass():
    assert conditions.met(["x > 1"], {"x": float("nan")}) and conditions.met(["x < 1"], {"x": float("nan")})
    for number in ("1.2.3", ".", "1e"):
        with pytest.raises(ConfigError, match="expected <measure> <operator> <number>"):
            conditions.met([f"x > {number}"], {"x": 1.0})


def test_languages_that_nobody_measured_are_not_kept(measured):
    for path in measured.glob("*/job.json"):
        change(path, original_languages=["eng_Latn", "deu_Latn"])
    found = conditions.measures(run_folder.gather(measured))
    assert math.isnan(found["original.bpb_increase"]) and math.isnan(found["original.worst_bpb_increase"])
    assert math.isnan(found["original.kl"]) and found["eng_Latn.kl"] == 0.02
    (line,) = conditions.met(["original.bpb_increase > 50%"], found)
    assert line == "original.bpb_increase > 50%: it is not known"
    html = page.build(measured).read_text()
    assert "German: forgot" in html and "not measured" in html and "English, German: forgot" not in html


@pytest.mark.parametrize(("setting", "known"), [("precision", False), ("limit", True), ("include_path", True)])
def test_what_was_measured_in_two_ways_is_not_known(measured, setting, known):
    path = measured / "04-evaluate" / "manifest.json"
    change(path, summary={"measured_with": read_json(path)["summary"]["measured_with"] | {setting: "other"}})
    found = conditions.measures(run_folder.gather(measured))
    assert math.isfinite(found["original.bpb_increase"]) == math.isfinite(found["new.bpb_increase"]) == known
    assert (
        math.isfinite(found["continuation_fra_Latn.acc_drop"]) == (setting == "include_path") and found["original.kl"] == 0.02
    )


def test_figures_of_several_filters_have_names_without_spaces(measured):
    for name, value in (("02-evaluate_base", 0.5), ("04-evaluate", 0.25)):
        path = measured / name / "scores.json"
        metrics = {f"exact_match/{kind}": {"value": value, "stderr": 0.1, "items": 20} for kind in ("strict-match", "flexible")}
        scores = read_json(path)
        write_json(path, scores | {"tasks": {"sums, easy": metrics}, "task_languages": {"sums, easy": "eng_Latn"}})
    gathered = run_folder.gather(measured)
    assert conditions.met(["sums,_easy.exact_match/strict-match_drop > 0.2"], conditions.measures(gathered))
    assert [row.name for row in gathered.task_changes()[False]] == ["sums, easy, exact_match/flexible"]


def test_json_has_null_where_there_is_no_number(measured):
    path = measured / "04-evaluate" / "scores.json"
    scores = read_json(path)
    scores["tasks"]["continuation_fra_Latn"]["acc"]["stderr"] = None
    write_json(path, scores)
    printed = langext("scores", measured, "--json").stdout
    assert "NaN" not in printed and json.loads(printed)["tasks"]["continuation_fra_Latn, acc"]["p"] is None
    html = page.build(measured).read_text()
    assert not re.search(r"\bnan\b", html)


def test_json_is_what_the_tables_say(measured):
    found = json.loads(langext("scores", measured, "--json", "--fail-if", "original.kl > 0.01").stdout)
    assert found["failed"] == ["original.kl > 0.01: it is 0.02"]
    assert found["bits_per_byte"]["fra_Latn/book"]["verdict"] == "better"
    again = json.loads(langext("report", measured, "--json").stdout)
    assert again == {key: value for key, value in found.items() if key != "failed"}
