import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from toy import ENGLISH, FRENCH, documents

from langext.evaluation import harness
from langext.methods.extended import LiveModel
from langext.models import loading
from langext.spec import ConfigError


def test_items_are_fair():
    texts = documents(FRENCH, 40, 1)
    items = harness.continuation_items(texts, 60, seed=3)
    assert len(items) == 60 and items == harness.continuation_items(texts, 60, seed=3)
    for item in items:
        assert len(set(item["choices"])) == 4
        assert any(f"{item['query']} {item['choices'][item['gold']]}" in text for text in texts)
    assert {item["gold"] for item in items} == {0, 1, 2, 3}
    assert harness.continuation_items(["too short"], 5, 1) == []


def test_accuracy_equals_likelihoods_by_hand(pico):
    live = LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), None)
    items = harness.continuation_items(documents(ENGLISH, 8, 2), 8, seed=1)
    found = {"own": harness.Harness(live, 3).items("own", items)}
    right = 0
    for item in items:
        scores = []
        for choice in item["choices"]:
            context = live.tokenizer(item["query"]).input_ids
            whole = live.tokenizer(f"{item['query']} {choice}").input_ids
            with torch.no_grad():
                log_p = live.net(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            scores.append(sum(log_p[i - 1, whole[i]].item() for i in range(len(context), len(whole))))
        right += scores.index(max(scores)) == item["gold"]
    assert found["own"]["acc"].value == pytest.approx(right / 8)
    assert found["own"]["acc"].items == 8 and found["own"]["acc"].stderr > 0
    assert sum(found["own"]["acc"].each) == right


def test_unknown_tasks_are_named_at_plan_time():
    harness.check_tasks([], None)
    with pytest.raises(ConfigError, match="no 'belebele_fra'.*belebele_fra_Latn"):
        harness.check_tasks(["hellaswag", "belebele_fra"], None)


def test_auto_is_what_there_is_in_the_languages():
    english = ["arc_challenge", "hellaswag", "mmlu", "commonsense_qa", "belebele_eng_Latn"]
    french = ["arc_fr", "hellaswag_fr", "m_mmlu_fr", "belebele_fra_Latn"]
    assert harness.auto_tasks(["fra_Latn", "eng_Latn"], None) == french + english
    assert harness.auto_tasks(["swh_Latn"], None) == ["belebele_swh_Latn"]
    assert harness.auto_tasks(["kmb_Latn"], None) == []


def test_each_format_of_a_local_file_is_scored_as_by_hand(pico, tmp_path):
    live = LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), None)
    words = "the small cat sleeps in the house with a dog".split()
    choices = [["cat sleeps", "with a", "dog"], ["in the", "house"], ["a dog", "the cat", "small"]]
    rows = {
        "multiple_choice": [{"query": f"the {w}", "choices": c, "gold": 1} for w, c in zip(words, choices, strict=False)],
        "contexts": [{"context_options": ["the cat", w], "continuation": "sleeps", "gold": 1} for w in words[:4]],
        "pairs": [{"good": f"{a} {b}", "bad": f"{b} {a}"} for a, b in pairwise(words)],
        "cloze": [{"context": "the small", "continuation": w if i % 2 else f" {w}"} for i, w in enumerate(words)],
        "bits_per_byte": [{"text": " ".join(words)}],
    }
    formats = Path(__file__).parent.parent.parent / "configs" / "lm_eval"
    for name, items in rows.items():
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(item) + "\n" for item in items))
        task = {"include": str(formats / f"_{name}.yaml"), "task": f"my_{name}"}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task | {"dataset_kwargs": {"data_files": {"test": str(data)}}}))
    tasks = [f"my_{name}" for name in rows]
    harness.check_tasks(tasks, tmp_path)
    measure = harness.Harness(live, 2)
    found = {name: figures for task in tasks for name, figures in measure.task(task, include=tmp_path).items()}

    @torch.no_grad()
    def log_p(context, continuation):
        first = live.tokenizer(context).input_ids or [live.tokenizer.eos_token_id]
        whole = first + live.tokenizer(continuation).input_ids
        scores = live.net(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(scores[i - 1, whole[i]].item() for i in range(len(first), len(whole)))

    right = [max(range(len(r["choices"])), key=lambda i, r=r: log_p(r["query"], f" {r['choices'][i]}")) == 1
             for r in rows["multiple_choice"]]  # fmt: skip
    assert found["my_multiple_choice"]["acc"].each == right
    right = [log_p(r["context_options"][1], " sleeps") > log_p(r["context_options"][0], " sleeps") for r in rows["contexts"]]
    assert found["my_contexts"]["acc"].each == right
    assert found["my_pairs"]["acc"].each == [log_p("", r["good"]) > log_p("", r["bad"]) for r in rows["pairs"]]
    mean = sum(log_p("the small", f" {w}") for w in words) / len(words)
    assert found["my_cloze"]["perplexity"].value == pytest.approx(math.exp(-mean), rel=1e-4)
    assert not found["my_cloze"]["perplexity"].higher_is_better
    text = " ".join(words)
    bits = -log_p("", text) / math.log(2) / len(text.encode())
    of_bytes = found["my_bits_per_byte"]["bits_per_byte"]
    assert of_bytes.value == pytest.approx(bits, rel=1e-4) and of_bytes.weight_each == [len(text.encode())]
    assert {figure.shots for metrics in found.values() for figure in metrics.values()} == {0}


@pytest.fixture
def group(tmp_path):
    """A folder with two tasks of unlike size, and a group of them that weighs them by it."""
    formats = Path(__file__).parent.parent.parent / "configs" / "lm_eval"
    words = "the small cat sleeps in the house with a dog and a bird".split()
    for name, part in (("one", words[:4]), ("two", words)):
        data = tmp_path / f"{name}.jsonl"
        data.write_text(
            "".join(json.dumps({"query": f"item {i} {w}", "choices": [w, "x"], "gold": 0}) + "\n" for i, w in enumerate(part))
        )
        task = {"include": str(formats / "_multiple_choice.yaml"), "task": name}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task | {"dataset_kwargs": {"data_files": {"test": str(data)}}}))
    mean = [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}]
    (tmp_path / "both.yaml").write_text(json.dumps({"group": "both", "task": ["one", "two"], "aggregate_metric_list": mean}))
    return tmp_path


def test_a_group_is_paired_by_the_items_of_all_its_tasks(pico, group):
    live = LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), None)
    found = harness.Harness(live, 4).task("both", include=group)
    whole, parts = found["both"]["acc"], [found[name]["acc"] for name in ("one", "two")]
    assert whole.items == 17 and whole.each == [*parts[0].each, *parts[1].each]
    assert len({figure.items_hash for figure in (whole, *parts)}) == 3
    shots = harness.Harness(live, 4).task("both", include=group, num_fewshot=2)["both"]["acc"]
    assert shots.shots == 2 and shots.items_hash != whole.items_hash


def test_examples_are_never_the_item_itself(pico, group, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    asked = []
    plain = HFLM.loglikelihood
    monkeypatch.setattr(
        HFLM, "loglikelihood", lambda self, requests, **o: (asked.extend(requests), plain(self, requests, **o))[1]
    )
    live = LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), None)
    harness.Harness(live, 4).task("two", include=group, num_fewshot=10)
    assert len(asked) == 26
    for request in asked:
        query = request.doc["query"]
        assert request.args[0].count("item ") == 11 and query not in request.args[0].removesuffix(query)


def test_what_cannot_be_measured_is_refused_at_plan_time(group):
    with pytest.raises(ConfigError, match="one is in both both and one; leave one of them out"):
        harness.check_tasks(["both", "one"], group)
    with pytest.raises(ConfigError, match="humaneval runs programs that the model has written"):
        harness.check_tasks(["humaneval"], None)
    inline = {"group": "inline", "task": [{"task": "two", "num_fewshot": 3}, {"group": "inner", "task": ["one"]}]}
    (group / "inline.yaml").write_text(json.dumps(inline))
    assert harness.members("inline", group) == ["two", "one"]
    (group / "two.jsonl").unlink()
    with pytest.raises(ConfigError, match="two: .*two.jsonl: no such file"):
        harness.check_tasks(["inline"], group)


def test_errors_of_a_task_are_one_message(pico, group):
    live = LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), None)
    (group / "two.jsonl").write_text('{"other": 1}\n')
    with pytest.raises(ConfigError, match="two: lm-eval cannot measure it: "):
        harness.Harness(live, 4).task("two", include=group)
