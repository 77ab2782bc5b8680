"""Two steps of a training, for time and memory. What runs in them is tested where the stages are."""

import json
from pathlib import Path

import pytest
from run_folders import done, manifest_of

from langext.artifacts import Corpus, write_json
from langext.data import documents
from langext.errors import ConfigError
from langext.pipeline import plan, trial
from langext.pipeline.plan import Pipeline
from langext.spec import load
from langext.stages.train import Train

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "pipelines").rglob("*.yaml"))


def trained(file: str) -> tuple[Pipeline, list[plan.Step], list[plan.Step]]:
    spec = load(ROOT / file, Pipeline)
    steps = plan.plan(spec, Path("nowhere"))
    return spec, steps, [step for step in steps if isinstance(step.stage, Train)]


@pytest.mark.parametrize("file", FILES)
def test_the_trial_is_the_run_but_for_the_text(file, tmp_path, monkeypatch):
    monkeypatch.setattr(
        plan.bases, "earlier", lambda base: ()
    )  # the second language of the cookbook needs a run that is not here
    spec, steps, trainings = trained(file)
    for training in trainings:
        method = plan.lineage(spec, steps)[training.name][-1]
        small = trial._pipeline(spec, training.stage, method, tmp_path)
        text, extend, train = small.stages
        assert (small.base_model, small.seed) == (spec.base_model, spec.seed) and text.uses == "filter"
        assert type(extend.method) is type(method) and train.runtime == training.stage.runtime
        assert train.sequence_length == training.stage.sequence_length and train.accumulate() == 1
    assert trainings or "train" not in file


def test_its_text_is_there_already_and_can_be_told_apart(tmp_path):
    spec, steps, (training,) = trained("pipelines/quickstart.yaml")
    small = trial._pipeline(spec, training.stage, plan.lineage(spec, steps)[training.name][-1], tmp_path)
    first, *_ = plan.plan(small, tmp_path / "run")
    trial._filtered(first, spec)
    assert first.state == "done" and first.stage.outdated(first.finished()) == ""
    texts = documents.heldout(Corpus(first.out), ["fra_Latn", "eng_Latn"])
    french, english = (set("".join(texts[f"{code}/trial"])) - {" "} for code in ("fra_Latn", "eng_Latn"))
    assert french and english and not french & english


def test_time_is_counted_after_the_first_step_and_for_all_micro_batches(tmp_path, monkeypatch, pico, capsys):
    spec, *_ = trained("pipelines/quickstart.yaml")
    spec = spec.model_copy(update={"base_model": str(pico)})

    def run(small: Pipeline, root: Path) -> None:
        *_, last = plan.plan(small, root)
        done(last)
        write_json(last.out / "manifest.json", manifest_of(fingerprint=last.fingerprint, peak_memory_bytes=3 * 2**30))
        # 9 s for the first step, 2 s for each other one
        rows = [
            {"kind": "train", "step": step, "tokens": 10 * step, "tokens_per_second": 10 * step / (7 + 2 * step)}
            for step in (1, 2, 3)
        ]
        (last.out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr(trial.run, "run", run)
    trial.show(spec, tmp_path / "runs" / "x")
    training = next(stage for stage in spec.stages if isinstance(stage, Train))
    said = capsys.readouterr().out
    assert f"{2 * training.accumulate():.2f} s for a step" in said and "3.0 GiB" in said
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_not_here_is_refused(tmp_path):
    spec, *_ = trained("pipelines/add_language.yaml")
    with pytest.raises(ConfigError, match="is not here, so nothing can be measured"):
        trial.show(spec, tmp_path)
