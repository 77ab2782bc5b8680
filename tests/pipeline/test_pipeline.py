"""Wiring, identity, and what is refused before anything runs."""

import gzip
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from pydantic import ValidationError
from run_folders import begun, done

from langext import spec
from langext.artifacts import Job, write_json
from langext.context import Runtime
from langext.data.tokens import TokenFile
from langext.errors import ConfigError
from langext.pipeline import launcher, plan, reuse, run, worker
from langext.pipeline.plan import Pipeline
from langext.stages.extend import Extend
from langext.summaries import EvaluateSummary
from langext.text_summaries import FilterSummary

ROOT = Path(__file__).parent.parent.parent
SHIPPED = sorted((ROOT / "pipelines").glob("**/*.yaml"))


def make(*stages, **more) -> Pipeline:
    return Pipeline(**{"name": "x", "language": "fr", "base_model": "./m", "stages": list(stages), **more})


FILTER = {"uses": "filter", "sources": [{"language": "fr", "path": "a.txt"}], "lid_model": "lid.bin"}
EXTEND = {"uses": "extend", "method": {"name": "full"}}
TRAIN = {"uses": "train", "steps": 1, "lr": 1, "sequence_length": 64}


def wiring(*stages):
    return {s.name: {arg: name for arg, (name, _, _) in s.inputs.items()} for s in plan.plan(make(*stages), Path("r"))}


def test_inputs_are_the_newest_of_their_kind_or_the_pinned_one():
    stages = [
        FILTER,
        {"name": "eval_base", "uses": "evaluate", "inputs": {"model": "base"}},
        EXTEND,
        TRAIN,
        {"uses": "evaluate"},
    ]
    found = wiring(*stages)
    assert found["eval_base"] == {"model": "base", "corpus": "filter"}
    assert found["extend"] == {"model": "base"}  # its tokenizer is optional
    assert found["train"] == {"model": "extend", "corpus": "filter"}
    assert found["evaluate"] == {"model": "train", "corpus": "filter"}
    with_tokenizer = wiring(FILTER, {"uses": "extend_tokenizer"}, EXTEND)
    assert with_tokenizer["extend"] == {"model": "base", "tokenizer": "extend_tokenizer"}


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([EXTEND, TRAIN], r"stage 'train' needs corpus: Corpus; earlier stages offer: base \(Model\), extend \(Model\)"),
        ([FILTER, FILTER], "two stages are named 'filter'"),
        ([FILTER, {**TRAIN, "inputs": {"model": "nowhere"}}], "needs model: Model named 'nowhere'"),
        ([FILTER, {**TRAIN, "inputs": {"modle": "base"}}], "reads no 'modle'. Did you mean model"),
    ],
)
def test_wiring_that_cannot_be(stages, expected):
    with pytest.raises(ConfigError, match=expected):
        plan.plan(make(*stages), Path("r"))


def test_identity_follows_what_matters_and_nothing_else():
    def prints(*stages, **more):
        return [s.fingerprint for s in plan.plan(make(*stages, **more), Path("r"))]

    plain = prints(FILTER, EXTEND, TRAIN)
    assert plain == prints(FILTER, EXTEND, {**TRAIN, "runtime": {"micro_batch": 1}})
    assert plain == prints({**FILTER, "name": "f"}, EXTEND, {**TRAIN, "inputs": {"corpus": "f"}})
    changed = prints(FILTER, EXTEND, {**TRAIN, "lr": 2})
    assert changed[:2] == plain[:2] and changed[2] != plain[2]
    assert all(a != b for a, b in zip(plain, prints(FILTER, EXTEND, TRAIN, seed=18), strict=True))
    assert all(a != b for a, b in zip(plain[1:], prints(FILTER, EXTEND, TRAIN, base_model="./n")[1:], strict=True))


def test_a_language_cannot_be_new_and_original():
    with pytest.raises(ValueError, match="also in original_languages"):
        make(FILTER, language="en")


def test_standard_input_comes_only_once():
    piped = {"uses": "filter", "sources": [{"language": "fr", "path": "-"}, {"language": "en", "path": "en.txt"}]}
    assert make(piped, {**FILTER, "name": "other"}).stages
    with pytest.raises(ValidationError, match="stages filter and again read standard input"):
        make(piped, {**piped, "name": "again"})


@pytest.mark.parametrize(
    ("languages", "said"),
    [
        ({"language": "mul"}, r"mul_Zyyy \(many languages\) is no language to learn; it is for sources with protect"),
        ({"language": "fr", "original_languages": ["en", "mul"]}, r"mul_Zyyy \(many languages\) is no language"),
        ({"language": "code"}, r"zxx_Zyyy \(code\) is no language to learn; it is for original_languages and for sources"),
    ],
)
def test_many_languages_or_none_are_not_a_language(languages, said):
    with pytest.raises(ValidationError, match=said):
        Pipeline(name="x", base_model="./m", stages=[{"uses": "extend", "method": {"name": "full"}}], **languages)


def test_code_is_an_original_language():
    assert make(FILTER, original_languages=["en", "de", "code"]).original_languages == ["eng_Latn", "deu_Latn", "zxx_Zyyy"]


@pytest.mark.parametrize(("shares", "said"), [({"deu_Latn/de": 0.1}, "nothing to train on is called 'deu_Latn/de'"), ({}, "")])
def test_protected_text_has_no_share_of_the_training(tmp_path, shares, said):
    sources = [{"language": code, "path": f"{code}.txt"} for code in ("fr", "en")]
    sources.append({"language": "de", "path": "de.txt", "protect": True})
    train = {"uses": "train", "steps": 5, "lr": 1e-3, "shares": shares}
    stages = [{"uses": "filter", "sources": sources}, {"uses": "extend", "method": {"name": "full"}}, train]
    pipeline = Pipeline(name="x", language="fr", base_model="./m", stages=stages)
    steps = plan.plan(pipeline, tmp_path)
    with pytest.raises(ConfigError, match=said) if said else nullcontext():
        plan._check_text(pipeline, steps[-1], steps)


@pytest.mark.parametrize(
    ("method", "why"),
    [({"name": "lora"}, "with lora: it has no gates"), ({"name": "neutral_residues", "gate": "threshold"}, ""),
     ({"name": "neutral_residues", "gate": "relu"}, "with neutral_residues: its gates are not calibrated")],
)  # fmt: skip
def test_text_that_a_method_does_not_protect_is_named(tmp_path, texts, lid, pico, capsys, method, why):
    sources = [{"language": code, "path": str(texts / f"{code}.jsonl.gz")} for code in ("fr", "en")]
    other = {"language": "deu_Latn", "path": str(texts / "en.jsonl.gz"), "name": "web"}
    for purpose in ("protect", "measure_only"):
        stages = [{"uses": "filter", "sources": [*sources, other | {purpose: True}], "lid_model": str(lid)}]
        pipeline = make(*stages, {"uses": "extend", "method": method}, base_model=str(pico))
        steps = plan.plan(pipeline, tmp_path)
        plan.check(pipeline, steps, steps[1:])
        said = "source web: nothing keeps the model as it is on protected text"
        told = capsys.readouterr().err
        assert (f"{said} {why}" in told) == (said in told) == (purpose == "protect" and bool(why))


def test_a_stage_that_cannot_share_its_work_is_refused(tmp_path, pico, texts, lid):
    source = {"language": "fr", "path": str(texts / "fr.jsonl.gz")}
    first = {"uses": "filter", "sources": [source], "lid_model": str(lid), "runtime": {"cpu_processes": 2}}
    spec_ = make(first, base_model=str(pico))
    with pytest.raises(ConfigError, match="stage 'filter': filter runs as one process"):
        steps = plan.plan(spec_, tmp_path)
        plan.check(spec_, steps, steps)


def test_an_export_that_cannot_be_exact_is_refused_before_anything_runs(tmp_path, pico):
    method = {"name": "neutral_residues", "gate": "relu"}
    stages = [FILTER, {"uses": "extend", "method": method}, TRAIN, {"uses": "export", "format": "native"}]
    spec_ = make(*stages, base_model=str(pico))
    with pytest.raises(
        ConfigError, match="stage 'export': format 'native': no stock architecture .* relu gate .*; possible: remote"
    ):
        steps = plan.plan(spec_, tmp_path)
        plan.check(spec_, steps, steps[3:])


@pytest.mark.parametrize("asked", [{"redo": ["trian"]}, {"until": "trian"}])
def test_a_stage_that_is_not_in_the_pipeline_is_named(tmp_path, asked):
    with pytest.raises(ConfigError, match=f"--{next(iter(asked))} trian: no such stage. Did you mean train"):
        run.run(make(FILTER, EXTEND, TRAIN), tmp_path, **asked)


def test_a_run_until_a_stage_needs_nothing_of_what_follows(tmp_path, pico, lid, texts):
    french, english = ({"language": code, "path": str(texts / f"{code}.jsonl.gz")} for code in ("fr", "en"))
    stage = {"uses": "filter", "lid_model": str(lid), "heldout_frac": 0.2, "sources": [french, english]}
    spec_ = make(stage, EXTEND, TRAIN | {"runtime": {"gpus": 64}}, base_model=str(pico))
    with pytest.raises(ConfigError, match="64 asked for"):
        run.run(spec_, tmp_path / "run")
    steps = run.run(spec_, tmp_path / "run", until="filter")
    assert [step.state for step in steps] == ["done", "to do", "to do"]


def test_an_interrupted_stage_of_another_recipe_is_refused(tmp_path):
    spec_ = make(FILTER, EXTEND, TRAIN)
    first = plan.plan(spec_, tmp_path)[0]
    begun(first, fingerprint="other", identity={**first.identity, "threshold": 0.1})
    with pytest.raises(ConfigError, match=r"(?s)was interrupted.*threshold: 0.1 -> 'auto'.*--redo filter"):
        run.run(spec_, tmp_path)


def test_a_stage_that_failed_starts_over_when_its_recipe_is_mended(tmp_path, pico, lid, texts, capfd):
    """No --redo after a mistake: what failed has nothing to keep. With the same recipe it goes on instead."""
    path = tmp_path / "fr.jsonl"
    path.write_bytes(gzip.decompress((texts / "fr.jsonl.gz").read_bytes()) + b"no\n")
    source = {"language": "fr", "path": str(path), "max_bad_frac": 0}
    stage = {"uses": "filter", "lid_model": str(lid), "heldout_frac": 0.2, "level": "paragraph"}
    english = {"language": "en", "path": str(texts / "en.jsonl.gz")}
    with pytest.raises(SystemExit):
        run.run(make({**stage, "sources": [source, english]}, base_model=str(pico)), tmp_path / "run")
    assert "fr.jsonl: line 161: not a JSON object" in capfd.readouterr().err
    right = make({**stage, "sources": [{**source, "max_bad_frac": 0.5}, english]}, base_model=str(pico))
    steps = run.run(right, tmp_path / "run")
    assert steps[0].state == "done"


def test_a_failed_stage_keeps_its_checkpoints(tmp_path):
    spec_ = make(FILTER, EXTEND, TRAIN)
    first = plan.plan(spec_, tmp_path)[0]
    (first.out / "checkpoints").mkdir(parents=True)
    begun(first, fingerprint="other", identity={**first.identity, "threshold": 0.1}, failure="config")
    with pytest.raises(ConfigError, match="--redo filter"):
        run.run(spec_, tmp_path)
    assert (first.out / "checkpoints").is_dir()


def test_a_failed_evaluation_goes_on_with_another_recipe(tmp_path, monkeypatch):
    """Its tasks know by themselves what still holds."""
    spec_ = make(FILTER, {"uses": "evaluate", "inputs": {"model": "base"}, "limit": 3})
    steps = plan.plan(spec_, tmp_path)
    failed = steps[1].out
    done(steps[0], FilterSummary(funnel=[], source_files=[], lid_sha256="", duplicates="near"))
    begun(steps[1], fingerprint="other", failure="config")
    (failed / "checkpoints").mkdir()
    (failed / "checkpoints" / "arc_fr.json").write_text("{}")
    monkeypatch.setattr(run, "check", lambda *_: None)
    monkeypatch.setattr(run.bases, "prepare", lambda *_: None)
    monkeypatch.setattr(run, "_do", lambda step, *_: done(step))
    run.run(spec_, tmp_path)
    assert (failed / "checkpoints" / "arc_fr.json").exists() and (failed / "manifest.json").exists()


def test_several_stages_can_be_done_again_at_once(tmp_path, monkeypatch):
    """Two evaluations of another version: neither can be done again while the other one stands."""
    spec_ = make(FILTER, *({"uses": "evaluate", "name": name, "inputs": {"model": "base"}} for name in ("one", "two")))
    steps = plan.plan(spec_, tmp_path)
    for step in steps:
        old = EvaluateSummary(bits_per_byte={}, scores="langext scores 1", task_files=[], measured_with={})
        done(
            step, FilterSummary(funnel=[], source_files=[], lid_sha256="", duplicates="near") if step.name == "filter" else old
        )
    again = []
    monkeypatch.setattr(run, "check", lambda *_: None)
    monkeypatch.setattr(run.bases, "prepare", lambda *_: None)

    def start(step, *_):
        again.append(step.name)
        done(step)

    monkeypatch.setattr(run, "_do", start)
    with pytest.raises(
        ConfigError, match="stage 'two': another version of langext measured this. Use --redo two to do it again"
    ):
        run.run(spec_, tmp_path, redo=["one"])
    assert again == []
    run.run(spec_, tmp_path, redo=["one", "two"])
    assert again == ["one", "two"]


def test_what_was_made_from_what_is_gone_does_not_pass_as_done(tmp_path, monkeypatch):
    spec_ = make(FILTER, EXTEND, TRAIN)
    monkeypatch.setattr(run, "check", lambda *_: None)
    monkeypatch.setattr(run.bases, "prepare", lambda *_: None)
    monkeypatch.setattr(run, "_do", lambda step, *_: done(step))
    first, *_ = run.run(spec_, tmp_path)
    shutil.rmtree(first.out)
    with pytest.raises(
        ConfigError, match="'train' is finished, and what it has read, .*01-filter, is not there: .*--redo filter"
    ):
        run.run(spec_, tmp_path)
    assert not first.out.exists()
    discarded = []
    monkeypatch.setattr(run, "_discard", discarded.append)
    run.run(spec_, tmp_path, redo=["filter"])
    assert [path.name for path in discarded] == ["03-train", "01-filter"], "first what depends on others"


def test_stages_of_another_layout_are_refused(tmp_path):
    (tmp_path / "07-train").mkdir()
    with pytest.raises(ConfigError, match="07-train: not a stage of this pipeline"):
        run.run(make(FILTER, EXTEND, TRAIN), tmp_path)


def test_two_runs_never_share_a_folder(tmp_path):
    with run.hold(tmp_path), pytest.raises(ConfigError, match="another langext run is working here"):
        with run.hold(tmp_path):
            pass


def test_every_shipped_pipeline_is_valid_and_can_be_planned():
    assert {p.name for p in SHIPPED} >= {"quickstart.yaml", "add_language.yaml"}
    for path in SHIPPED:
        plan.plan(spec.load(path, Pipeline), Path("r"))


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ({"gpus": 64}, "64 asked for, 0 on this machine"),
        ({"nodes": 2}, "needs runtime.hostfile"),
        ({"nodes": 2, "gpus": 8, "hostfile": "nowhere"}, "nowhere: no such file"),
    ],
)
def test_machines_that_are_not_there_are_refused_for_every_stage(runtime, expected):
    with pytest.raises(ConfigError, match=expected):
        Runtime(**runtime).check()


@pytest.mark.parametrize(("processes", "threads"), [(1, None), (2, "4"), (16, "1")])
def test_processes_on_one_cpu_share_its_cores(processes, threads, monkeypatch, tmp_path):
    started = {}

    class Popen:
        pid = 1 << 30  # no process has this number

        def __init__(self, command, env, **more):
            started.update(env)

        def wait(self):
            return 0

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("subprocess.Popen", Popen)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    launcher.launch(tmp_path, Runtime(cpu_processes=processes), 0)
    assert started.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize(("gpus", "seen"), [(0, ""), (2, "3,5")])
def test_libraries_of_a_stage_without_gpus_find_none(gpus, seen, monkeypatch, tmp_path):
    found = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(Extend, "prepare", lambda *_, **__: found.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    made = {"stage": {"uses": "extend", "method": {"name": "full"}, "runtime": {"gpus": gpus}}, "inputs": {}, "seed": 1}
    job = Job(**made, language="fra_Latn", original_languages=[], fingerprint="", identity={}, tokens=str(tmp_path))
    (tmp_path / "02-extend").mkdir()
    write_json(tmp_path / "02-extend" / "job.json", job)
    worker.execute(tmp_path / "02-extend", only_prepare=True)
    assert found == [seen]


def test_the_launcher_gets_the_gpus_that_are_allowed_and_a_free_port(monkeypatch, tmp_path):
    from deepspeed.launcher.runner import parse_args

    def placed(**runtime):
        return parse_args([*launcher._placement(Runtime(**runtime)), "--module", "langext.pipeline.worker", "x"])

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    assert placed(gpus=2).include == "localhost:3,5"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert placed(gpus=2).include == "localhost:0,1"
    assert placed(cpu_processes=2).num_gpus == 2
    assert placed(gpus=2).master_port != placed(gpus=2).master_port
    nodes = placed(gpus=8, nodes=2, hostfile=ROOT / "configs" / "hostfile.example")
    assert (nodes.num_nodes, nodes.num_gpus) == (2, 8) and nodes.hostfile.endswith("hostfile.example")


@pytest.mark.parametrize("failure", ["config", "run"])
def test_what_failed_may_be_done_by_another_recipe(tmp_path, monkeypatch, failure):
    """After a RunFailed the same recipe goes on with what is there; a changed one, as its message may advise, starts anew."""
    spec_ = make(FILTER, EXTEND, TRAIN)
    first = plan.plan(spec_, tmp_path)[0]
    monkeypatch.setattr(run, "check", lambda *_: None)
    monkeypatch.setattr(run.bases, "prepare", lambda *_: None)
    monkeypatch.setattr(run, "_do", lambda step, *_: done(step))
    for printed, kept in ((first.fingerprint, failure == "run"), ("other", False)):
        begun(first, fingerprint=printed, failure=failure)
        (first.out / "half").write_text("")
        run.run(spec_, tmp_path)
        assert (first.out / "half").exists() == kept
        for step in plan.plan(spec_, tmp_path):
            shutil.rmtree(step.out)


def test_finished_tokens_of_other_runs_are_taken(tmp_path):
    other, mine = tmp_path / "other", tmp_path / "mine"
    for name, whole in (("fra_Latn/book", True), ("eng_Latn/book", False)):
        folder = other / "tokens" / "key" / name
        TokenFile.write(folder, [[1, 2], [3]])
        if not whole:
            (folder / "done.json").unlink()  # the other run is still writing it
    reuse.tokens(mine, [other])
    assert [str(path.relative_to(mine)) for path in mine.rglob("done.json")] == ["tokens/key/fra_Latn/book/done.json"]
    theirs = other / "tokens" / "key" / "fra_Latn" / "book" / "tokens.bin"
    assert theirs.stat().st_nlink == 2
    TokenFile.write(mine / "tokens" / "key" / "fra_Latn" / "book", [[9]])  # made anew here, it stays what it was there
    assert TokenFile.open(theirs.parent).tokens.tolist() == [1, 2, 3]


def test_what_a_run_has_made_again_is_not_taken_for_what_was_copied_before(tmp_path):
    for name in ("base", "01-filter"):
        (tmp_path / "run" / name).mkdir(parents=True)
        write_json(tmp_path / "run" / name / "manifest.json", {"made": 1})
    reuse.whole(tmp_path / "run", ["01-filter"], tmp_path / "out")
    reuse.whole(tmp_path / "run", ["01-filter"], tmp_path / "out")
    again = tmp_path / "run" / "01-filter" / "manifest.json"
    again.unlink()
    write_json(again, {"made": 2})
    with pytest.raises(ConfigError, match="01-filter: .*run has made this stage again since"):
        reuse.whole(tmp_path / "run", ["01-filter"], tmp_path / "out")
    with pytest.raises(ConfigError, match="02-train: cannot be copied"):
        reuse.whole(tmp_path / "run", ["02-train"], tmp_path / "other")
