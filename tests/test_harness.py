import pytest
import torch
from toy import ENGLISH, FRENCH, documents

from langext import harness, modeling
from langext.modeling import LiveModel
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
    live = LiveModel(modeling.load_base(pico, torch.float32), modeling.load_tokenizer(pico), None)
    items = harness.continuation_items(documents(ENGLISH, 8, 2), 8, seed=1)
    found = harness.evaluate(live, [], {"own": items}, num_fewshot=None, limit=None, batch_size=3, include=None)
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
