"""What a comparison finds in runs, and what it shows."""

import csv
import json
from pathlib import Path

import pytest
from run_folders import bits, change, chosen, compared, evaluation, stage
from test_page import EVIL
from typer.testing import CliRunner

from langext.artifacts import read_json, write_json
from langext.cli.app import app
from langext.errors import ConfigError
from langext.evaluation.significance import unbeaten
from langext.report import compare_page, comparison, page, run_folder
from langext.summaries import TokenizerSummary
from langext.text_summaries import FilterSummary


@pytest.fixture
def runs(tmp_path):
    """Two methods at two rates, a full fine-tuning, and one that a better one beats."""
    for name, method, lr, french, english in (
        ("a", "lora", 1e-3, 1.8, 1.01), ("b", "lora", 1e-2, 1.6, 1.1), ("c", "adapter", 1e-3, 1.7, 1.0),
        ("d", "adapter", 1e-2, 1.5, 1.05), ("e", "full", 1e-4, 1.4, 1.3),
    ):  # fmt: skip
        compared(tmp_path / name, method, lr, french, english, **({"rank": 8} if method == "lora" else {"width": 4}))
    return tmp_path


def of(found, name):
    return next(entry for entry in found.entries if entry.run.root.name == name)


def test_what_was_learned_and_forgotten_and_who_is_unbeaten(runs):
    found = comparison.gather([runs])
    assert of(found, "a").learned.value == pytest.approx(0.1) and of(found, "a").forgot.value == pytest.approx(0.01)
    assert [entry.name for entry in found.front] == ["c", "d", "e"]
    assert found.of_full(of(found, "e")) == 1
    assert found.of_full(of(found, "d")) == pytest.approx(0.25 / 0.3)
    assert found.by_drift and of(found, "a").drift.value == pytest.approx(0.01)


def test_forgetting_is_the_distance_to_the_base_where_every_run_has_it(runs):
    """Bits per byte of the original language can fall while the model moves away from its base."""
    near, far = (runs / name / "05-evaluate" / "scores.json" for name in "cd")
    change(far, bits_per_byte={"eng_Latn/news": bits(0.9)})
    change(near, kl_to_base={"eng_Latn": {"value": 0.5, "tokens": 9}})
    found = comparison.gather([runs])
    assert of(found, "d").forgot.value < of(found, "c").forgot.value
    assert [entry.name for entry in found.front] == ["d", "e", "a"]
    text = compare_page.build(found, runs).read_text()
    assert text.count('role="img"') == 2 and ">0.0500 ± 0.0196<" in text and ">0.5000<" in text
    assert comparison.table(found)["forgotten_by"] == "kl_to_base"
    write_json(near, read_json(near) | {"kl_to_base": {}})
    found = comparison.gather([runs])
    assert not found.by_drift and [entry.name for entry in found.front] == ["d", "e"]
    assert compare_page.build(found, runs).read_text().count('role="img"') == 1


def test_a_distance_on_other_text_is_told(runs):
    for name, tokens in zip("abcde", (500, 500, 900, 500, 500), strict=True):
        path = runs / name / "05-evaluate" / "scores.json"
        write_json(path, read_json(path) | {"kl_by_set": {"eng_Latn/news": {"value": 0.1, "tokens": tokens}}})
    assert [entry.name for entry in comparison.gather([runs]).entries if not entry.alike] == ["c"]


def test_a_method_that_is_best_at_the_end_of_its_rates_is_told(runs):
    found = comparison.gather([runs])
    assert found.open_ended == [
        "adapter learned most at the highest learning rate that was tried, 0.01",
        "lora learned most at the highest learning rate that was tried, 0.01",
    ]
    compared(runs / "f", "lora", 1e-1, 1.9, 1.3, rank=8)
    compared(runs / "g", "adapter", 1e-1, 1.4, 1.3, width=4)
    found = comparison.gather([runs])
    assert found.open_ended == ["adapter learned most at the highest learning rate that was tried, 0.1"]
    assert found.open_ended[0] in compare_page.build(found, runs).read_text()
    change(of(found, "c").run.root / "05-evaluate" / "scores.json", bits_per_byte={"fra_Latn/book": bits(1.0)})
    assert "the lowest learning rate that was tried, 0.001" in comparison.gather([runs]).open_ended[0]


def test_only_settings_that_differ_are_shown_and_make_curves(runs):
    found = comparison.gather([runs])
    assert {key for entry in found.entries for key in entry.settings} == {"train.lr"}
    assert [entry.name for entry in found.entries] == ["c", "d", "e", "a", "b"]  # by curve and rate
    assert of(found, "a").curve == of(found, "b").curve and of(found, "a").label == "lora"
    compared(runs / "f", "lora", 1e-3, 1.75, 1.02, rank=16)
    found = comparison.gather([runs])
    assert of(found, "f").settings == {"train.lr": 1e-3, "extend.method.rank": 16}
    assert of(found, "a").label == "lora, rank 8" and of(found, "f").label == "lora, rank 16"
    assert of(found, "c").label == "adapter" and of(found, "a").curve != of(found, "f").curve


def test_settings_that_look_alike_in_a_few_words_are_curves_of_their_own(tmp_path):
    for name, last in (("a", "base"), ("b", "instruct")):
        compared(tmp_path / name, "lora", 1e-3, 1.8, 1.01, init=f"a-text-that-is-much-too-long-{last}")
    for name, weight in (("c", 0.1), ("d", 1.0)):
        run = compared(tmp_path / name, "adapter", 1e-3, 1.8, 1.01)
        chosen(run, penalties=[{"name": "ldifs", "weight": weight}])
    found = comparison.gather([tmp_path])
    names = compare_page._curve_names(found)
    assert len({entry.curve for entry in found.entries}) == len(set(names.values())) == 4
    labels = [names[of(found, name).curve] for name in "abcd"]
    assert labels[1] == f"{labels[0]} (2)" and labels[2:] == ["adapter + ldifs, weight 0.1", "adapter + ldifs, weight 1"]


@pytest.mark.parametrize(
    ("pairs", "best"),
    [
        ([(1, 1), (2, 2), (3, 3)], [0, 1, 2]),
        ([(1, 1), (2, 1), (1, 0)], [1, 2]),
        ([(1, 1), (1, 1)], [0, 1]),
        ([(0, 0)], [0]),
    ],
)
def test_unbeaten(pairs, best):
    assert unbeaten(pairs) == best


def test_page_and_table_say_the_same(runs):
    compared(runs / EVIL.replace("/", ""), "grow", 1e-3, 1.9, 1.0)
    page = compare_page.build(comparison.gather([runs]), runs).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "+10.0 ± " in page and "83 %" in page and page.count(">yes</td>") == 3
    rows = list(csv.DictReader((runs / "compare.csv").open(encoding="utf-8")))
    assert [row["run"] for row in rows if row["on_front"] == "True"] == ["c", "d", "e"]
    (full,) = [row for row in rows if row["run"] == "e"]
    assert float(full["learned"]) == pytest.approx(0.3) and full["fra_Latn/book after"] == "1.4"
    done = CliRunner().invoke(app, ["compare", str(runs), "--json"])
    assert json.loads(done.stdout)["front"] == ["c", "d", "e"]
    shown = CliRunner().invoke(app, ["compare", str(runs / "a"), str(runs / "b"), "--out", str(runs / "two")])
    assert shown.exit_code == 0 and "lora" in shown.stdout and (runs / "two" / "compare.html").is_file()


def test_what_does_not_compare_is_told(runs, tmp_path_factory):
    path = runs / "b" / "02-evaluate_base" / "scores.json"
    scores = read_json(path)
    scores["bits_per_byte"]["fra_Latn/book"] = bits(2.0, count=40)
    write_json(path, scores)
    stage(runs / "half", 1, "filter", "Corpus", summary=FilterSummary(funnel=[], source_files=[], lid_sha256=""))
    found = comparison.gather([runs])
    assert [entry.run.root.name for entry in found.entries if not entry.alike] == ["b"]
    assert found.of_full(of(found, "b")) is None and "b" not in {entry.name for entry in found.front}
    (runs / "begun" / "base").mkdir(parents=True)
    found = comparison.gather([runs])
    assert found.left_out == ["begun: no finished stage", "half: no evaluation of both base and trained model"]
    manifest = runs / "a" / "02-evaluate_base" / "manifest.json"
    (runs / "a" / "whole.json").write_text(manifest.read_text())
    change(manifest, summary={"measured_with": read_json(manifest)["summary"]["measured_with"] | {"precision": "fp32"}})
    assert not of(comparison.gather([runs]), "c").alike  # the first one's base was measured otherwise than its model
    (runs / "a" / "whole.json").rename(manifest)
    change(runs / "c" / "01-filter" / "job.json", language="swh_Latn")
    write_json(runs / "d" / "05-evaluate" / "scores.json", {"format": "langext scores 1"})
    found = comparison.gather([runs])
    assert "c: adds swh_Latn and keeps eng_Latn, a fra_Latn and keeps eng_Latn" in found.left_out
    assert any("d: " in reason and "another version of langext" in reason for reason in found.left_out)
    with pytest.raises(ConfigError, match="nothing to compare: half: no evaluation of both base and trained model"):
        compare_page.build(comparison.gather([runs / "half"]), runs)
    with pytest.raises(ConfigError, match="neither a run folder nor a folder of runs"):
        comparison.gather([tmp_path_factory.mktemp("empty")])


def test_a_setting_that_only_some_runs_have_sets_them_apart(tmp_path):
    for name, more in (("a", {}), ("b", {"shares": {"eng_Latn": 0.2}}), ("c", {"forgetting_budget": {"kl": 0.02}})):
        chosen(compared(tmp_path / name, "lora", 1e-3, 1.8, 1.01), **{"shares": {}, **more})
    found = comparison.gather([tmp_path])
    assert len({entry.curve for entry in found.entries}) == 3
    assert {"train.shares.eng_Latn", "train.forgetting_budget.kl"} <= set(found.keys)
    assert of(found, "b").settings["train.shares.eng_Latn"] == 0.2


def test_damaged_scores_are_told(runs):
    path = runs / "b" / "05-evaluate" / "scores.json"
    write_json(path, read_json(path) | {"more": 1})
    assert any("scores.json: more: " in reason for reason in comparison.gather([runs]).left_out)


def test_names_tell_runs_apart(runs, tmp_path, monkeypatch):
    compared(tmp_path / "other" / "a", "lora", 1e-3, 1.8, 1.0)
    found = comparison.gather([runs / "a", tmp_path / "other" / "a"])
    assert {entry.name for entry in found.entries} == {f"{runs.name}/a", "other/a"}
    monkeypatch.chdir(runs / "b")
    assert [entry.name for entry in comparison.gather([Path(".")]).entries] == ["b"]
    assert comparison.folder([runs]) == comparison.folder([runs / "a", runs / "b"]) == runs
    assert comparison.folder([runs / "a", tmp_path / "other" / "a"]) == Path.cwd()


def test_forgetting_is_that_of_the_set_that_lost_most(runs):
    for name, value in (("02-evaluate_base", 1.0), ("05-evaluate", 0.5)):
        path = runs / "a" / name / "scores.json"
        scores = read_json(path)
        scores["bits_per_byte"]["eng_Latn/book"] = bits(value)
        write_json(path, scores)
    entry = of(comparison.gather([runs]), "a")
    assert entry.forgot_in == "eng_Latn/news" and entry.forgot.value == pytest.approx(0.01)


def test_the_set_with_the_largest_increase_counts_and_its_interval_says_what_may_be_chance(runs):
    for name, value in (("02-evaluate_base", 1.0), ("05-evaluate", 1.05)):
        path = runs / "d" / name / "scores.json"
        scores = read_json(path)
        scores["bits_per_byte"]["eng_Latn/few"] = bits(value, count=4)
        scores["bits_per_byte"]["eng_Latn/few"]["bits_each"] = [value * 100 + k * (value - 1) * 900 for k in (-1, 2, -2, 1)]
        write_json(path, scores)
    entry = of(comparison.gather([runs]), "d")
    assert [row.verdict for row in entry.run.bits if row.name == "eng_Latn/few"] == ["noise"]
    assert entry.forgot_in == "eng_Latn/few" and entry.forgot.value == pytest.approx(0.05) and entry.forgot.low < 0


def test_a_method_with_another_vocabulary_is_another_curve(runs):
    stage(runs / "a", 7, "extend_tokenizer", "Tokenizer", summary=TokenizerSummary(new_tokens=3, heldout={}))
    compared(runs / "f", "lora", 1e-3, 1.75, 1.02, rank=16)
    chosen(runs / "f", penalties=[{"name": "l2sp", "weight": 1.0}])
    found = comparison.gather([runs])
    labels = [of(found, name).label for name in "abf"]
    assert labels[:2] == ["lora, extend_tokenizer, rank 8", "lora, rank 8"] and labels[2].startswith("lora + l2sp, rank 16")


def test_one_sided_runs_have_no_plane(tmp_path):
    compared(tmp_path / "a", "lora", 1e-3, 1.8, 1.0)
    for name in ("02-evaluate_base", "05-evaluate"):
        path = tmp_path / "a" / name / "scores.json"
        scores = read_json(path)
        scores.pop("kl_to_base", None)
        del scores["bits_per_byte"]["eng_Latn/news"]
        write_json(path, scores)
    found = comparison.gather([tmp_path])
    assert 'role="img"' not in compare_page.build(found, tmp_path).read_text() and found.front == []


def test_a_page_to_publish_has_no_links_to_runs(runs):
    page.build(runs / "a")
    text = {}
    for more in ([], ["--no-links"]):
        assert CliRunner().invoke(app, ["compare", str(runs), *more]).exit_code == 0
        text[bool(more)] = (runs / "compare.html").read_text()
    assert 'href="a/report.html"' in text[False] and text[True] == text[False].replace('<a href="a/report.html">a</a>', "a")


def test_names_from_outside_stay_text(runs):
    """A method, a setting and a folder that would be markup, a formula or mathematics somewhere."""
    compared(runs / "$\\frac{$ =1", "grow", 1e-3, 1.9, 1.0, init=EVIL)
    compared(runs / "[bold]x", "grow", 1e-3, 1.9, 1.0, init="=HYPERLINK()")
    found = comparison.gather([runs])
    page = compare_page.build(found, runs)
    assert "<script" not in page.read_text() and "frac" in page.read_text()
    rows = list(csv.DictReader((runs / "compare.csv").open(encoding="utf-8")))
    assert "'=HYPERLINK()" in {row["extend.method.init"] for row in rows}
    shown = CliRunner().invoke(app, ["compare", str(runs)], env={"COLUMNS": "300"})
    assert "[bold]x" in shown.stdout


def test_several_evaluations_of_a_model_count_together(runs):
    more = {"eng_Latn/web": bits(1.2)}
    evaluation(runs / "a", 6, "evaluate_more", "train", 1.9, 1.0)
    path = runs / "a" / "06-evaluate_more" / "scores.json"
    write_json(path, read_json(path) | {"bits_per_byte": more, "tasks": {}})
    for name, shots in (("02-evaluate_base", 5), ("05-evaluate", 0)):
        manifest = runs / "a" / name / "manifest.json"
        measured_with = read_json(manifest)["summary"]["measured_with"] | {"num_fewshot": str(shots)}
        change(manifest, summary={"measured_with": measured_with})
    run = run_folder.gather(runs / "a")
    assert run.model_scores is not None and set(run.model_scores.bits_per_byte) == {
        "fra_Latn/book",
        "eng_Latn/news",
        "eng_Latn/web",
    }
    assert run.model_scores.bits_per_byte["fra_Latn/book"].value == 1.8 and run.model_scores.kl_to_base
    assert run.measured_differently == ["num_fewshot"] and run.measuring["num_fewshot"] == ["0", "None"]
    assert "measured with different num_fewshot" in page.build(runs / "a").read_text()


def test_tasks_have_a_plane_of_their_own(runs):
    found = comparison.gather([runs])
    assert of(found, "a").tasks_learned.value == 0 and of(found, "a").tasks_forgot is None
    for number, name, model, value in ((8, "x", "base", 0.4), (9, "y", "train", 0.3)):
        metric = {"value": value, "stderr": 0.01, "items": 9}
        tasks = {"mine": {"acc": metric, "bleu": metric}, "other": {"acc": metric}, "unknown": {"acc": metric}}
        tasks["bits"] = {"bits_per_byte": metric | {"higher_is_better": False}}  # of another unit, so it is no part of the mean
        languages = {"mine": "fra_Latn", "other": "eng_Latn", "bits": "fra_Latn"}
        for run in ("a", "c"):
            evaluation(runs / run, number, name, model, 2.0, 1.0, tasks=tasks, task_languages=languages)
    found = comparison.gather([runs])
    learned = (0.0 - 0.1) / 2  # in the continuation task and in mine
    for run in ("a", "c"):
        assert of(found, run).tasks_learned.value == pytest.approx(learned) and of(
            found, run
        ).tasks_forgot.value == pytest.approx(0.1)
    assert of(found, "b").tasks_learned is None  # a mean over fewer tasks is no point of this plane
    assert compare_page.build(found, runs).read_text().count('role="img"') == 3
