"""What stage evaluate refuses, and what it makes of prompts and files of one's own."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import method
from pydantic import ValidationError
from run_folders import manifest_of
from toy import ENGLISH, FRENCH, GERMAN, SWAHILI, write_jsonl
from toy import documents as toy_documents

from langext.artifacts import Corpus, Model, sha256_file, write_json
from langext.context import Context
from langext.data import documents
from langext.errors import ConfigError, RunFailed
from langext.evaluation import generation, harness, heldout, scores
from langext.evaluation.scores import FORMAT
from langext.methods import extended
from langext.models import loading
from langext.models.loading import Reference
from langext.stages import evaluate
from langext.stages.evaluate import Evaluate
from langext.summaries import EvaluateSummary, TaskFile
from langext.text_summaries import FilterSummary, FunnelRow

FORMATS = Path(__file__).parent.parent.parent / "configs" / "lm_eval"


@pytest.fixture
def ctx(tmp_path):
    return Context(tmp_path, 1, "fra_Latn", ("eng_Latn",))


@pytest.fixture
def own(tmp_path):
    """A folder with one task over one file."""
    data = tmp_path / "items.jsonl"
    data.write_text('{"good": "a b", "bad": "b a"}\n')
    task = {"include": str(FORMATS / "_pairs.yaml"), "task": "mine", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(task))
    return tmp_path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"fr": ["a"], "fra_Latn": ["b"]}, "a language is named twice: fr, fra_Latn"),
        ({"fr": ["a"], "en": ["a"]}, "'a' is there twice"),
        ({"fr": [" "]}, "an entry is empty"),
        ({"fr": ["le \ud800 chat"]}, "has half a character"),
        ({"xqz": ["a"]}, "unknown language 'xqz'"),
    ],
)
def test_tasks_by_language_are_checked(value, expected):
    for key in ("tasks", "prompts"):
        with pytest.raises((ValidationError, ConfigError), match=expected):
            Evaluate(uses="evaluate", **{key: value})


def test_texts_are_shorter_than_the_base_has_positions():
    config = SimpleNamespace(max_position_embeddings=64)
    Evaluate(uses="evaluate", sample_tokens=63).check_model((), config)
    Evaluate(uses="evaluate").check_model((), SimpleNamespace(max_position_embeddings=32))  # the default is nobody's mistake
    with pytest.raises(ConfigError, match="sample_tokens is 64, and the base has 64 positions"):
        Evaluate(uses="evaluate", sample_tokens=64).check_model((), config)


def test_prompts_that_are_too_long_are_refused_before_anything_is_measured(ctx, pico, monkeypatch):
    live = extended.LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), None)
    live.net.config.max_position_embeddings = 24
    monkeypatch.setattr(loading, "load", lambda *_: live)
    stage = Evaluate(uses="evaluate", prompts={"fr": ["le chat", "le chat dort dans la rue " * 9]})
    with pytest.raises(ConfigError, match=r"prompts: 'le chat dort .*tokens, and the model 24 positions"):
        stage.run(ctx, Model(ctx.out), None)  # and nothing to measure on


def test_a_folder_of_tasks_is_read_when_planning(ctx, own):
    (own / "broken.yaml").write_text("task: [")
    with pytest.raises(ConfigError, match=r"include_path: .*broken.yaml: cannot be read as an lm-eval task") as caught:
        Evaluate(uses="evaluate", include_path=own).check(ctx)
    assert caught.value.at == ("include_path",)
    with pytest.raises(ValidationError, match="include_path: .* cannot be a path here"):
        Evaluate(uses="evaluate", include_path="a\0b")


def test_a_set_that_is_only_white_space_is_left_out(pico, capsys):
    live = extended.LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), None)
    assert heldout.bits(live, {"fra_Latn/book": [" \n\n "]}, 1000) == {}
    assert "fra_Latn/book: its held-out text is only white space; left out" in capsys.readouterr().out


def test_the_scores_of_a_task_are_kept_whatever_its_name(ctx, own, pico):
    mine = json.loads((own / "mine.yaml").read_text()) | {"task": "../mine/a"}
    (own / "mine.yaml").write_text(json.dumps(mine))
    live = extended.LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), ())
    stage = Evaluate(uses="evaluate", include_path=own, tasks=["../mine/a"], continuation_items=0)
    assert stage._tasks(ctx, live, "base", ["../mine/a"], {})["../mine/a"]["acc"].items == 1
    assert [path.name for path in (ctx.out / "checkpoints").iterdir()] == ["..%2Fmine%2Fa.json"]


def test_only_languages_of_the_run_have_tasks_and_prompts(ctx):
    for key in ("tasks", "prompts"):
        with pytest.raises(ConfigError, match=f"{key}: swh_Latn is no language of this run; there are: fra_Latn, eng_Latn"):
            Evaluate(uses="evaluate", **{key: {"sw": ["x"]}}).check(ctx)


def test_the_language_of_a_task_is_what_was_said_or_is_known(ctx, own):
    told = Evaluate(uses="evaluate", include_path=own, tasks={"fr": ["mine"]})
    told.check(ctx)
    assert told._names(ctx) == {"mine": "fra_Latn"}
    listed = Evaluate(uses="evaluate", tasks=["xnli_fr", "arc_easy", "gsm8k"])
    assert listed._names(ctx) == {"xnli_fr": "fra_Latn", "arc_easy": "eng_Latn", "gsm8k": None}


def test_a_group_counts_once_and_a_tag_by_its_tasks():
    stage = Evaluate(uses="evaluate", tasks={"en": ["mmlu", "mgsm_direct"]})
    measures = {"mmlu": "eng_Latn", "mgsm_direct": "eng_Latn", "gsm8k": None}
    names = ["mmlu", "mmlu_anatomy", "mgsm_direct_de", "mgsm_direct_fr", "gsm8k"]
    tasks = {name: {"acc": 0.5} for name in names} | {"mgsm_direct": {}}  # lm-eval lists groups without figures as well
    found = stage._task_languages(measures, tasks)
    assert found == {"mmlu": "eng_Latn", "mgsm_direct_de": "eng_Latn", "mgsm_direct_fr": "eng_Latn"}


def test_changed_tasks_of_ones_own_are_noticed(own):
    stage = Evaluate(uses="evaluate", include_path=own, tasks=["mine"])
    files = harness.files(["mine"], own)
    (own / "unrelated.yaml").write_text("task: other")
    assert [path.name for path in files] == ["mine.yaml", "_pairs.yaml", "items.jsonl"]
    assert harness.files(["arc_easy"], own) == []
    told = [TaskFile(path=str(path), sha256=sha256_file(path)) for path in files]
    summary = EvaluateSummary(bits_per_byte={}, scores=FORMAT, task_files=told, measured_with={"lm_eval": "0"})
    manifest = manifest_of(summary)
    assert stage.outdated(manifest) == ""
    for change in ({"scores": "langext scores 1"}, {"measured_with": {}}):  # the second: tasks as they were read before
        assert "another version of langext" in stage.outdated(manifest_of(summary.model_copy(update=change)))
    (own / "items.jsonl").write_text('{"good": "a", "bad": "b"}\n')
    assert "items.jsonl has changed since it was measured with" in stage.outdated(manifest)
    (own / "items.jsonl").unlink()
    assert "items.jsonl is gone since it was measured with" in stage.outdated(manifest)


def test_prompts_are_gone_on_from_after_the_start_token(pico):
    live = extended.LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), ())
    samples, speed = generation.write_samples(live, None, {"fra_Latn": ["le chat"], "eng_Latn": ["the cat"]}, 5)
    assert [(row.language, row.prompt) for row in samples] == [("fra_Latn", "le chat"), ("eng_Latn", "the cat")]
    assert speed is not None and 2 <= speed.tokens <= 10
    (ids,) = documents.encode(live.tokenizer, ["the cat"])
    with torch.no_grad():
        logits = live.net(input_ids=torch.tensor([ids])).logits[0, -1]
    seen = torch.tensor(sorted(set(ids)))
    logits[seen] = torch.where(logits[seen] > 0, logits[seen] / 1.1, logits[seen] * 1.1)
    assert samples[1].text.startswith(live.tokenizer.decode([int(logits.argmax())]).strip())
    assert generation.write_samples(live, None, {}, 8) == ([], None)
    assert documents.encode(live.tokenizer, []) == []


def test_tasks_that_are_measured_are_not_measured_again(ctx, own, pico, monkeypatch, capsys):
    other = json.loads((own / "mine.yaml").read_text()) | {"task": "other"}
    (own / "other.yaml").write_text(json.dumps(other))
    live = extended.LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), ())
    stage = Evaluate(uses="evaluate", include_path=own, tasks=["mine", "other"], continuation_items=0)
    plain, asked = harness.Harness.task, []

    def task(self, name, **options):
        asked.append(name)
        if asked == ["mine", "other"]:
            raise KeyboardInterrupt
        return plain(self, name, **options)

    monkeypatch.setattr(harness.Harness, "task", task)
    with pytest.raises(KeyboardInterrupt):
        stage._tasks(ctx, live, "base", ["mine", "other"], {})
    found = stage._tasks(ctx, live, "base", ["mine", "other"], {})
    assert asked == ["mine", "other", "other"] and "mine: measured already" in capsys.readouterr().out
    assert found["mine"] == found["other"] == stage._tasks(ctx, live, "base", ["mine"], {})["mine"]
    (own / "items.jsonl").write_text('{"good": "a b", "bad": "b a"}\n' * 2)
    assert stage._tasks(ctx, live, "base", ["mine"], {})["mine"]["acc"].items == 2  # its data are others now
    fewer = Evaluate(uses="evaluate", include_path=own, tasks=["mine"], continuation_items=0, limit=1)
    assert fewer._tasks(ctx, live, "base", ["mine"], {})["mine"]["acc"].items == 1  # another recipe
    asked.clear()
    stage.model_copy(update={"batch_size": 3})._tasks(ctx, live, "base", ["other"], {})
    assert stage._tasks(ctx, live, "04-train", ["other"], {}) and asked == ["other"] * 2  # its data had changed, then its model
    stage.tidy(ctx.out)
    assert not (ctx.out / "checkpoints").exists()


def test_a_task_that_keeps_its_own_number_of_examples_is_told(ctx, own, pico, capsys):
    mine = json.loads((own / "mine.yaml").read_text())
    (own / "mine.yaml").write_text(json.dumps(mine | {"num_fewshot": 0}))
    live = extended.LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), ())
    stage = Evaluate(uses="evaluate", include_path=own, tasks=["mine"], continuation_items=0, num_fewshot=3)
    assert stage._tasks(ctx, live, "base", ["mine"], {})["mine"]["acc"].shots == 0
    assert "mine: with 0 examples, which the task itself sets" in capsys.readouterr().out


def test_a_prompt_that_only_the_model_has_room_for_is_not_timed_on_the_base(pico):
    live = extended.LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), ())
    small = loading.load_base(pico, torch.float32)
    small.config.max_position_embeddings = 2
    samples, speed = generation.write_samples(
        live, lambda: Reference(small, live.tokenizer), {"fra_Latn": ["le chat dort dans la rue"]}, 4
    )
    assert len(samples) == 1 and speed.of_base == []


def test_the_speed_is_beside_that_of_the_base(pico):
    live = extended.LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), ())
    prompts = {"fra_Latn": ["le chat", "un chien"]}
    samples, speed = generation.write_samples(live, lambda: Reference(live.net, live.tokenizer), prompts, 8)
    assert len(samples) == len(speed.of_base) == 2 and all(0.05 < ratio < 20 for ratio in speed.of_base)
    assert speed.weights_bytes == sum(p.numel() for p in live.net.parameters()) * 4 and speed.peak_bytes is None


def test_text_of_other_languages_is_measured_and_kept_apart(tmp_path, pico, monkeypatch):
    """One that is protected and one that is not: bits per byte and KL of each, and nothing of them where the run's own are."""
    rows = {"fra_Latn/a": (FRENCH, "train"), "eng_Latn/a": (ENGLISH, "train"), "deu_Latn/a": (GERMAN, "protect"),
            "swh_Latn/a": (SWAHILI, "measure")}  # fmt: skip
    funnel = []
    for name, (words, role) in rows.items():
        write_jsonl(tmp_path / "text" / "documents" / "valid" / f"{name}.00000.jsonl.gz", toy_documents(words, 3, 1))
        counts = dict.fromkeys((key for key, field in FunnelRow.model_fields.items() if field.is_required()), 1)
        funnel.append(FunnelRow(**counts | {"language": name[:8], "domain": "a", "origin": "", "dropped": {}, "role": role}))
    write_json(tmp_path / "text" / "manifest.json", manifest_of(FilterSummary(funnel=funnel, source_files=[], lid_sha256="")))
    base, tokenizer = loading.load_base(pico, torch.float32), loading.load_tokenizer(pico)
    net = loading.load_base(pico, torch.float32)
    net.model.norm.weight.data *= 1.1
    monkeypatch.setattr(loading, "load", lambda *_: extended.LiveModel(net, tokenizer, (method({"name": "full"}),)))
    monkeypatch.setattr(loading, "reference", lambda *_: Reference(base, tokenizer))
    ctx = Context(tmp_path / "out", 1, "fra_Latn", ("eng_Latn",))
    ctx.out.mkdir()
    stage = Evaluate(uses="evaluate", continuation_items=0, samples=0, bpb_bytes=1000, kl_bytes=1000)
    found = scores.read(stage.run(ctx, Model(ctx.out), Corpus(tmp_path / "text")))
    assert set(found.bits_per_byte) == {"fra_Latn/a", "eng_Latn/a"} and set(found.kl_to_base) == {"eng_Latn"}
    assert {name: other.role for name, other in found.others.items()} == {"deu_Latn/a": "protect", "swh_Latn/a": "measure"}
    for other in found.others.values():
        assert other.bits_per_byte.value > 1 and other.kl_to_base.value > 1e-4 and other.kl_to_base.tokens > 100
    assert set(ctx.summary[-1].bits_per_byte) == set(found.bits_per_byte)


def test_what_is_no_number_ends_the_evaluation():
    with pytest.raises(RunFailed, match="fra_Latn/book: bits per byte is nan: the weights of this model overflow"):
        heldout.require_finite("fra_Latn/book: bits per byte", float("nan"))


def test_scores_of_other_items_are_not_taken(own):
    stage = Evaluate(uses="evaluate", include_path=own, tasks=["mine"])
    files = evaluate._hashes(harness.files(["mine"], own))
    summary = EvaluateSummary(bits_per_byte={}, scores=FORMAT, task_files=files, measured_with={"lm_eval": "0"})
    assert stage.same_sources(manifest_of(summary))
    elsewhere = [file.model_copy(update={"path": f"/other{file.path}"}) for file in files]
    assert not stage.same_sources(manifest_of(summary.model_copy(update={"task_files": elsewhere})))


def test_the_file_of_a_group_is_among_its_files(own):
    (own / "group.yaml").write_text(json.dumps({"group": "all", "task": [{"task": "mine", "num_fewshot": 3}]}))
    assert [path.name for path in harness.files(["all"], own)] == ["group.yaml", "mine.yaml", "_pairs.yaml", "items.jsonl"]
