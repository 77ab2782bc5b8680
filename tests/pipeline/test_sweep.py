"""Sweeps: their runs, what these have in common, and going on after an interruption."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from bench import ROOT, Bench, extend, train
from forks import langext
from processes import start, wait_for
from ruamel.yaml import YAML
from run_folders import manifest_of

from langext.artifacts import InputRecord, read_json, sha256_file, write_json
from langext.errors import ConfigError, RunFailed
from langext.pipeline import plan, reuse, run, sweep
from langext.text_summaries import FilterSummary

EVALUATE = {"uses": "evaluate", "bpb_bytes": 2000, "kl_bytes": 0, "continuation_items": 0, "samples": 0, "precision": "fp32"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, pico: Path) -> Path:
    bench = Bench(tmp_path_factory.mktemp("sweep"), pico)
    quick = train(steps=4, eval_every=4, save_every=4, eval_bytes=1000)
    stages = [{**EVALUATE, "name": "evaluate_base", "inputs": {"model": "base"}}, extend(name="lora"), quick, EVALUATE]
    return bench.file("toy", "fra_Latn", ["eng_Latn"], stages)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("train.lr=1e-4,3e-4", [1e-4, 3e-4]),
        ("train.lr=[1e-4, 3e-4]", [1e-4, 3e-4]),
        ("extend.method=lora, full", ["lora", "full"]),
        ("extend.method={name: lora, rank: 8},{name: full}", [{"name": "lora", "rank": 8}, {"name": "full"}]),
        ("train.betas=[0.9, 0.95],[0.9, 0.99]", [[0.9, 0.95], [0.9, 0.99]]),
        ("train.penalties=[]", [[]]),
    ],
)
def test_values_of_an_axis(text, values):
    assert sweep.axis(text)[1] == values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.lr", "expected key=value,value"),
        ("train.lr=", "expected key=value,value"),
        ("train.lr=1e-3,0.001", "a value is there twice"),
        ("train.lr=[1", "not valid YAML"),
    ],
)
def test_an_axis_that_cannot_be(text, expected):
    with pytest.raises(ConfigError, match=expected):
        sweep.axis(text)


def test_every_combination_is_a_run_with_a_name(file, tmp_path):
    over = ["extend.method=lora,{name: lora, rank: 4},full", "train.lr=1e-3,2e-5"]
    found = sweep.points([file], over, ["train.clip=0.5"], tmp_path)
    names = ["lora-lr=0.001", "lora-lr=2e-05", "lora-rank=4-lr=0.001", "lora-rank=4-lr=2e-05", "full-lr=0.001", "full-lr=2e-05"]
    assert [point.name for point in found] == names
    assert {point.spec.stages[3].clip for point in found} == {0.5}  # type: ignore[union-attr]
    shared = sweep._Work(found, []).common
    for point in found:  # filter and the base's evaluation are common to all, an extension to the runs of one method
        assert [step.name for step in point.steps if step.fingerprint in shared] == ["filter", "evaluate_base", "extend"]
    assert len(shared) == 2 + 3


def test_settings_that_a_value_would_replace_are_refused(file, tmp_path):
    with pytest.raises(ConfigError, match="--set extend.method.rank=8: --over extend.method would replace it"):
        sweep.points([file], ["extend.method=lora,full"], ["extend.method.rank=8"], tmp_path)
    with pytest.raises(ConfigError, match="--set train.lr=5e-4: --over train.lr would replace it"):
        sweep.points([file], ["train.lr=1e-3,2e-3"], ["train.lr=5e-4"], tmp_path)


def test_runs_that_nothing_could_compare_are_refused(file, tmp_path):
    short = tmp_path / "short.yaml"
    value = YAML(typ="safe", pure=True).load(file.read_text())
    YAML(typ="safe", pure=True).dump(value | {"stages": value["stages"][:-1]}, short)
    found = sweep.points([short], ["train.lr=1e-3,2e-3"], [], tmp_path / "runs")
    with pytest.raises(ConfigError, match="a sweep compares its runs, so each needs a stage evaluate of the base"):
        sweep.check(found)


def test_failed_runs_are_named(file, tmp_path):
    """Their pipeline file is gone by the time they start."""
    found = sweep.points([file], ["train.lr=1e-3,2e-3"], [], tmp_path)
    broken = [replace(point, file=tmp_path / "gone.yaml") for point in found]
    assert sweep._Work(broken, [{}]).run() == broken
    with pytest.raises(RunFailed, match=r"2 run\(s\) failed: lr=0.001, lr=0.002"):
        sweep.report(broken)
    sweep.report([])


def test_runs_wait_for_what_another_is_doing_and_no_longer(file, tmp_path):
    """Two methods at two rates: the second method starts once filter and base are done, a second rate after its extension."""
    found = sweep.points([file], ["extend.method=lora,full", "train.lr=1e-3,2e-3"], [], tmp_path)
    work = sweep._Work(found, [{}, {}, {}])
    assert work._ready() is found[0]
    work.waiting.remove(found[0])
    work.at_work.append((found[0], None, {}, 0.0))  # type: ignore[arg-type]
    assert work._ready() is None
    for number, ready in ((0, None), (1, found[2]), (2, found[1])):
        out = found[0].steps[number].out
        out.mkdir(parents=True)
        write_json(out / "manifest.json", {})
        assert work._ready() is ready


def test_what_is_wrong_is_told_before_anything_runs(file, tmp_path):
    with pytest.raises(ConfigError, match="two runs of this sweep would both be called toy"):
        sweep.points([file, file], [], [], tmp_path)
    for over, said in (
        ("train.stepz=1,2", "--over train.stepz=1: .*unknown key 'stepz'"),
        ("trane.lr=1", "--over trane.lr=1: no stage"),
    ):
        with pytest.raises(ConfigError, match=said):
            sweep.points([file], [over], [], tmp_path)
    with pytest.raises(ConfigError, match="--over train.lr: given twice"):
        sweep.points([file], ["train.lr=1,2", "train.lr=3,4"], [], tmp_path)
    with pytest.raises(ConfigError, match="must add one language"):
        sweep.points([file], ["language=fr,sw"], [], tmp_path)
    found = sweep.points([file], ["train.batch_sequences=8,9"], [], tmp_path)
    with pytest.raises(ConfigError, match="batch_sequences=9: .*--set train.batch_sequences=9: .*no multiple"):
        sweep.run(found, None)
    assert not list(tmp_path.iterdir())


def test_devices_are_shared_out(file, tmp_path, monkeypatch):
    found = sweep.points([file], ["train.lr=1e-3,1e-2"], ["train.runtime.gpus=2"], tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,9")
    assert sweep.slots(found, None) == [{"CUDA_VISIBLE_DEVICES": "4,5"}, {"CUDA_VISIBLE_DEVICES": "6,7"}]
    assert len(sweep.slots(found, 1)) == 1
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in sweep.slots(found, 3)] == ["4,5", "6,7", "4,5"]
    assert sweep.slots(sweep.points([file], [], [], tmp_path), None) == [{}]


@pytest.fixture(scope="module")
def swept(file, tmp_path_factory) -> Path:
    """Two runs side by side: stopped, and gone on with."""
    out = tmp_path_factory.mktemp("swept") / "out"
    command = ["sweep", str(file), "--over", "train.lr=1e-3,1e-2", "--out", str(out), "--jobs", "2"]
    process = start(*command)
    wait_for(process, "lr=0.01: started")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert not (out / "compare.html").exists()
    printed = _printed(*command)
    assert "lr=0.001" in printed and "compare.html" in printed
    return out


def test_common_stages_are_done_once(swept):
    second = swept / "lr=0.01"
    for name in ("01-filter", "02-evaluate_base", "03-extend"):
        mine, others = second / name / "manifest.json", swept / "lr=0.001" / name / "manifest.json"
        assert mine.stat().st_ino == others.stat().st_ino  # hard links of the same files
    assert (second / "04-train" / "manifest.json").stat().st_nlink == 1 and (second / "sweep.log").is_file()
    (key,) = [path for path in (swept / "tokens").iterdir() if path.is_dir()]  # both train on these
    assert (key / "fra_Latn" / "book" / "done.json").is_file() and not (second / "tokens").exists()
    files = read_json(second / "04-train" / "manifest.json")["files"]
    assert not any("tokens" in entry["name"] for entry in files)
    rows = json.loads(_printed("compare", str(swept), "--json"))["runs"]
    assert [row["train.lr"] for row in rows] == [1e-3, 1e-2] and rows[0]["learned"] != rows[1]["learned"]


def test_what_is_done_is_not_done_again(swept, file):
    made = (swept / "lr=0.01" / "04-train" / "manifest.json").stat().st_mtime_ns
    printed = _printed("sweep", str(file), "--over", "train.lr=1e-3,1e-2", "--out", str(swept))
    assert "2 of 2 runs are finished already" in printed
    assert (swept / "lr=0.01" / "04-train" / "manifest.json").stat().st_mtime_ns == made


def test_a_run_takes_what_another_has_done(swept, file, tmp_path):
    command = ["run", str(file), "--out", str(tmp_path), "--reuse", str(swept / "lr=0.001")]
    printed = _printed(*command, "--set", "train.lr=1e-3")
    assert printed.count("taken from") == 5
    paths = [path for path in tmp_path.rglob("model.json")]
    assert len(paths) >= 3 and not any("swept" in path.read_text() for path in paths)  # it needs nothing of the other run
    weights = tmp_path / "base" / "manifest.json"
    shutil.rmtree(tmp_path / "05-evaluate")
    shutil.rmtree(tmp_path / "04-train")
    write_json(weights, read_json(weights) | {"files": []})  # as if ours were other weights
    (point,) = sweep.points([file], [], ["train.lr=1e-3"], tmp_path.parent)
    steps = plan.plan(point.spec, tmp_path)
    assert list(run._taken(steps[3:], [], [swept / "lr=0.001"])) == [steps[3].out, steps[4].out]  # the same extension
    assert reuse.stage(steps[1], [swept / "lr=0.001"]) is None  # but not what was measured of the base


def _printed(*command: str) -> str:
    done = langext(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_stage_is_taken_whole_or_not_at_all(file, tmp_path):
    """Not of another recipe, not from inputs of other names, not what its source says is out of date; and never half of it."""
    (point,) = sweep.points([file], [], [], tmp_path / "b")
    step = point.steps[0]
    theirs = tmp_path / "a" / step.out.name
    (theirs / "documents").mkdir(parents=True)
    (theirs / "documents" / "text").write_text("x")
    step.out.mkdir(parents=True)  # what a kill left
    source = next(file.parent.glob("fra_Latn.jsonl.gz"))
    was = source.read_bytes()
    lid = sha256_file(Path(step.stage.lid_model))
    read = [file for source in step.stage.sources for file in source.record().files]
    summary = FilterSummary(funnel=[], source_files=read, lid_sha256=lid, duplicates="near")
    right = manifest_of(summary, fingerprint=step.fingerprint)
    others = [file.model_copy(update={"sha256": "of other text", "modified_ns": 0}) for file in summary.source_files]
    elsewhere = summary.model_copy(update={"source_files": others})  # what the same relative path is in another project
    other = {"corpus": InputRecord(stage="other", path="/x/01-other", fingerprint="abc")}
    wrong = [
        manifest_of(summary, fingerprint="other"),
        manifest_of(summary, fingerprint=step.fingerprint, inputs=other),
        manifest_of(elsewhere, fingerprint=step.fingerprint),
    ]
    (theirs / "checkpoints").mkdir()
    for manifest in (*wrong, None):
        if manifest is None:
            source.write_bytes(was + b"more")
        write_json(theirs / "manifest.json", manifest or right)
        assert reuse.stage(step, [tmp_path / "a"]) is None and not any(step.out.iterdir())
    source.write_bytes(was)
    assert reuse.stage(step, [tmp_path / "a"]) == tmp_path / "a"
    assert (step.out / "documents" / "text").read_text() == "x"
    assert [path.name for path in step.out.parent.iterdir()] == [step.out.name] and not (step.out / "checkpoints").exists()
    with pytest.raises(ConfigError, match="--reuse .*nowhere: no run folder"):
        reuse.check([tmp_path / "nowhere"])


def test_what_is_made_of_new_text_is_not_taken(file, tmp_path, monkeypatch):
    """A filter that is done again takes all that was made of its text along, though their recipes are the same."""
    (point,) = sweep.points([file], [], [], tmp_path)
    monkeypatch.setattr(reuse, "stage", lambda step, *_: None if step.name == "filter" else Path("other"))
    assert [path.name for path in run._taken(point.steps, [], [Path("other")])] == ["03-extend"]


def test_the_folder_of_a_sweep_is_named_after_the_pipeline():
    assert sweep.name_of(ROOT / "pipelines" / "compare.yaml", [], ["train.lr=1,2"]) == "compare"
    assert sweep.name_of(ROOT / "pipelines" / "compare.yaml", ["name=mine"], []) == "mine"
