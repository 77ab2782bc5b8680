import errno
import json
import math
import os
import random
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import regex
import torch
from tokenizers import processors
from toy import ENGLISH, FRENCH, documents

from langext.data import documents as corpus
from langext.errors import ConfigError, RunFailed
from langext.evaluation import continuation, harness, task_texts
from langext.evaluation.text_alone import TextAlone
from langext.evaluation.words import Words
from langext.methods.extended import LiveModel
from langext.models import loading


def test_items_are_fair():
    texts = documents(FRENCH, 40, 1)
    items = continuation.items(texts, 60, 3, 4000)
    assert len(items) == 60 and items == continuation.items(texts, 60, 3, 4000)
    for item in items:
        assert len(set(item["choices"])) == 4
        assert any(f"{item['query']} {item['choices'][item['gold']]}" in text for text in texts)
    assert {item["gold"] for item in items} == {0, 1, 2, 3}
    assert continuation.items(["too short"], 5, 1, 4000) == []


SCRIPTS = {
    "Thai": "แมว นอน อยู่ ใต้ โต๊ะ ฝน ตก หนัก ทั้ง คืน",
    "Chinese": "漢 字 中 文 天 氣 很 好 我 們 去 學 校",
    "Japanese": "猫 は テーブル の 下 で 眠 っ て い る",
    "Lao": "ແມວ ນອນ ຢູ່ ໃຕ້ ໂຕະ ຝົນ ຕົກ ໜັກ",
    "Khmer": "ឆ្មា ដេក នៅ ក្រោម តុ ភ្លៀង ខ្លាំង",
    "Burmese": "ကြောင် အိမ် တွင် ရှိ သည်",
    "Tibetan": "བོད་ ཡིག་ སྐད་ ཡིན་ ལ་",
}  # fmt: skip
"""Syllables of scripts without spaces between words, here with spaces to draw from."""


def unspaced(name, count=20):
    dice = random.Random(5)
    paragraphs = ["".join(dice.choices(SCRIPTS[name].split(), k=120)) for _ in range(3 * count)]
    return ["\n\n".join(paragraphs[3 * i : 3 * i + 3]) for i in range(count)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_items_and_starts_are_there_in_scripts_without_spaces(name):
    texts = unspaced(name)
    items = continuation.items(texts, 30, 3, 4000)
    assert len(items) == 30 and {item["gap"] for item in items} == {""}
    for item in items:
        whole = item["query"] + item["choices"][item["gold"]]
        assert len(set(item["choices"])) == 4 and any(whole in text for text in texts)
        assert abs(len(item["query"]) - len(whole) / 2) < len(whole) / 8
        assert regex.findall(r"\X", whole) == [c for part in (item["query"], whole[len(item["query"]) :])
                                               for c in regex.findall(r"\X", part)]  # fmt: skip
    short = continuation.items(texts, 30, 3, 254)
    assert len(short) == 30 and all(150 < len(c.encode()) <= 254 for item in short for c in item["choices"])
    starts = list(continuation.starts(texts))
    assert len(starts) == len(texts) and all(text.startswith(start) for text, start in zip(texts, starts, strict=True))
    assert all(30 <= len(regex.findall(r"\X", start)) <= 36 for start in starts)


def test_starts_are_looked_for_only_when_asked():
    assert next(iter(continuation.starts(["unread"])), None) is None
    continuation.starts([None])  # reads nothing
    first = next(continuation.starts([" ".join(ENGLISH * 2), "short"]))
    assert first == " ".join((ENGLISH * 2)[:12])


def test_one_language_has_one_way_to_count_words():
    finnish = ["Kolmivaihekilowattituntimittari lentokonesuihkuturbiinimoottori on talossa, ja se toimii hyvin."]
    assert Words.of(finnish).gap == " " and Words.of([]).gap == " "
    assert Words.of([*unspaced("Thai"), "OK now"]).gap == ""
    assert Words.of(["漢字 is a word, and 中文 is another, in a text about them."]).gap == " "


@pytest.mark.parametrize("name", SCRIPTS)
def test_spaces_between_phrases_are_no_spaces_between_words(name):
    """Burmese, Lao and Khmer are often written with a space after every two or three words, and Tibetan after a clause."""
    words = SCRIPTS[name].split() * 20
    phrases = ["".join(words[i : i + 3]) for i in range(0, len(words), 3)]
    division = Words.of([" ".join(phrases)])
    assert division.gap == "" and division.join(division.split(" ".join(phrases))) == " ".join(phrases)


@pytest.mark.parametrize(
    "text",
    [
        "हम बाज़ार से सब्ज़ी ख़रीदने गए और शाम को घर लौटे",
        "우리는 시장에 가서 채소를 샀다",
        "chúng tôi đi chợ mua rau",
        "we went to the market",
    ],
    ids=["Hindi", "Korean", "Vietnamese", "English"],
)
def test_words_of_spaced_scripts_stay_whole_with_their_marks(text):
    division = Words.of([text])
    assert division.gap == " " and division.split(text) == text.split(" ")
    assert not any(regex.match(r"\p{M}", word) for word in division.split(text))
    assert list(continuation.starts([" ".join(ENGLISH)])) == [" ".join(ENGLISH[:12])]


def test_accuracy_equals_likelihoods_by_hand(pico):
    live = LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), None)
    items = continuation.items(documents(ENGLISH, 8, 2), 8, 1, 254)
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


def test_fewer_items_are_a_choice_by_chance_that_stays(pico, group):
    live = LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), None)
    whole = harness.Harness(live, 4).task("both", include=group)
    found = [harness.Harness(live, 4).task("both", include=group, limit=5) for _ in range(2)]
    assert found[0] == found[1] and found[0]["one"] == whole["one"] and found[0]["both"]["acc"].items == 9
    chosen = task_texts.some({"two": SimpleNamespace(eval_docs=[0] * 13)}, 5)["two"]
    assert chosen == sorted(set(chosen)) and len(chosen) == 5 and chosen[-1] >= 5
    assert found[0]["two"]["acc"].each == [whole["two"]["acc"].each[i] for i in chosen]


@pytest.mark.parametrize("own", [False, True], ids=["a mark of chat", "put there by the tokenizer"])
def test_a_text_alone_stands_after_one_start_token(own, pico, tmp_path):
    tokenizer = loading.load_tokenizer(pico)
    mark = tokenizer.eos_token_id if own else 300
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(mark)
    if own:
        rule = processors.TemplateProcessing(single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, mark)])
        tokenizer.backend_tokenizer.post_processor = rule
    live = LiveModel(loading.load_base(pico, torch.float32), tokenizer, None)
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "the small cat", "good": "a cat", "bad": "cat a"}) + "\n")
    formats = Path(__file__).parent.parent.parent / "configs" / "lm_eval"
    for name in ("bits_per_byte", "pairs"):
        task = {"include": str(formats / f"_{name}.yaml"), "task": f"my_{name}"}
        (tmp_path / f"{name}.yaml").write_text(
            json.dumps(task | {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "x.jsonl")}}})
        )
    measure, asked = harness.Harness(live, 2), []
    plain = measure.model._loglikelihood_tokens
    measure.model._loglikelihood_tokens = lambda requests, **o: (asked.extend(requests), plain(requests, **o))[1]
    for name in ("my_bits_per_byte", "my_pairs"):
        measure.task(name, include=tmp_path)
    text = tokenizer("the small cat", add_special_tokens=False).input_ids
    assert [len(request[2]) for request in asked][0] == len(text)
    assert {tuple(request[1]) for request in asked} == {(tokenizer.eos_token_id,)}
    assert measure.model.softmax_dtype is torch.float32


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


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), RunFailed, "the memory of the GPU is used up"),
        (OSError(errno.ENOSPC, "No space left on device"), RunFailed, "the disk is full"),
        (ValueError("odd\ndata"), ConfigError, "two: lm-eval cannot measure it: ValueError: odd"),
    ],
)
def test_what_the_machine_lacks_is_no_mistake_of_a_task(pico, group, monkeypatch, error, kind, said):
    from lm_eval import evaluator

    live = LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), None)
    # compiled under another name, as a line of lm-eval is, not of this file
    exec(compile("def fail(*_, **__): raise error", evaluator.__file__, "exec"), scope := {"error": error})
    monkeypatch.setattr(evaluator, "evaluate", scope["fail"])
    with pytest.raises(kind, match=said) as caught:
        harness.Harness(live, 4).task("two", include=group)
    assert "\n" not in str(caught.value)


def test_mistakes_of_langext_are_no_mistakes_of_a_task(pico, group, monkeypatch):
    live = LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), None)
    monkeypatch.setattr(TextAlone, "first", property(lambda self: [] + None))
    monkeypatch.setattr(harness, "HOME", Path(__file__).parent)
    with pytest.raises(TypeError, match="can only concatenate list"):
        harness.Harness(live, 4).task("two", include=group)


def test_nothing_is_printed_where_there_is_no_git(pico, group, monkeypatch, capfd):
    live = LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), None)
    monkeypatch.chdir(group)
    harness.Harness(live, 4).task("one", include=group)
    assert capfd.readouterr().err == ""


def test_text_that_spells_a_special_token_is_measured_as_text(pico, group):
    live = LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), None)
    model, text = harness.Harness(live, 2).model, "the cat<|end|> sleeps"
    assert live.tokenizer.eos_token_id in live.tokenizer(text).input_ids
    (plain,) = corpus.encode_text(live.tokenizer, [text])
    assert model.tok_encode(text) == plain and live.tokenizer.eos_token_id not in plain
    ids, mask = model.tok_batch_encode([text, "the cat"])
    assert ids[0].tolist() == plain and mask.sum(1).tolist() == [len(plain), len(model.tok_encode("the cat"))]
    assert model.tok_encode(text, left_truncate_len=2) == plain[-2:]


def test_a_tokenizers_own_start_token_stays(pico):
    live = LiveModel(loading.load_base(pico, torch.float32), loading.load_tokenizer(pico), None)
    backend = live.tokenizer._tokenizer
    backend.post_processor = processors.TemplateProcessing(single="<|end|> $A <|end|>", special_tokens=[("<|end|>", 0)])
    model = harness.Harness(live, 2).model
    assert model.tok_encode("the cat") == [0, *corpus.encode_text(live.tokenizer, ["the cat"])[0]]  # and no end token
    assert model.tok_encode("the cat", add_special_tokens=False)[0] != 0


BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
"""YAML in which `*a9` is a list that has x a milliard times, all of it in 300 bytes."""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: [mine", r"broken.yaml: cannot be read as an lm-eval task: "),
        ("- a\n- b\n", r"broken.yaml: cannot be read as an lm-eval task: Expected YAML dict"),
        ("task: mine\ninclude: none.yaml\n", r"none.yaml: no such file"),
        ("task: mine\ninclude: broken.yaml\n", r"Include cycle"),
        ("task: 2024\n", r"broken.yaml: task: 2024 is no name; write one in quotes"),
        ("group: ''\ntask: [one]\n", r"broken.yaml: group: '' is no name"),
        ("task: mine\nwhat: !unknown x\n", r"could not determine a constructor"),
        (b"task: mine\nnote: \xff\n", r"broken.yaml: cannot be read as an lm-eval task: "),
        ("task: mine\ninclude: [pipe, {}]\n", r"cannot be read as an lm-eval task"),
        ("task: mine\ninclude: pipe\n", r"pipe: not a file that holds an lm-eval task"),
        ("task: mine\ninclude: /dev/zero\n", r"/dev/zero: not a file that holds an lm-eval task"),
        ("task: mine\ninclude: large\n", r"large: too large for an lm-eval task"),
        (BOMB + "task: *a9\n", r"broken.yaml: task: a list is no name"),
    ],
)
def test_a_file_of_ones_own_that_lm_eval_would_pass_over_is_refused(group, text, said):
    harness.check_folder(group)
    os.mkfifo(group / "pipe")
    with open(group / "large", "wb") as file:
        file.truncate(10**11)  # takes no room on the disk
    (group / "broken.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=said) as caught:
        harness.check_folder(group)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"group": "odd", "task": ["one", "eno"]}, r"odd.yaml: its group names 'eno', which lm-eval does not have"),
        ({"group": "odd", "task": ["one", 5]}, r"odd.yaml: its group names 5, which"),
        (
            {"group": "odd", "task": ["one", {"task": ["two"], "num_fewshot": 5}]},
            r"group names an object without a name, which",
        ),
        ({"group": "odd", "task": [["one"]]}, r"odd.yaml: its group names a list, which"),
        ("group: odd\ntask: [0x" + "f" * 5000 + "]", r"odd.yaml: its group names a value of type int, which"),
        ("group: odd\ntask: &t [{group: in, task: *t}]", r"odd.yaml: its group names the same description 'in' twice"),
        (BOMB + "group: odd\ntask: [{task: *a9}]", r"its group names an object without a name"),
        (BOMB + "task: odd\nmetric_list: [{metric: *a9}]", r"its metric a list is a program on the hub"),
        ({"task": "odd", "metric_list": 5}, r"tasks: odd: metric_list must be a list of objects"),
        ({"task": "odd", "metric_list": True}, r"tasks: odd: metric_list must be a list of objects"),
        ({"task": "odd", "metric_list": ["acc"], "process_results": "x"}, r"metric_list must be a list of objects"),
        ({"group": "odd", "task": ["one", {"group": "in", "task": ["odd"]}]}, r"odd.yaml: the group odd contains itself"),
        ({"task": "odd", "dataset_path": ["a"], "doc_to_text": "q"}, r"odd: dataset_path must be a text"),
        (
            {"task": "odd", "metric_list": [{"metric": "f1", "hf_evaluate": True}]},
            r"its metric f1 is a program on the hub",
        ),
        ({"task": "odd", "metric_list": [{"metric": "sari"}]}, r"its metric sari is a program on the hub"),
    ],
)
def test_tasks_of_ones_own_that_make_no_sense_are_refused_at_plan_time(group, task, said):
    (group / "odd.yaml").write_text(task if isinstance(task, str) else json.dumps(task))
    harness.check_folder(group)
    with pytest.raises(ConfigError, match=said):
        harness.check_tasks(["odd"], group)


def test_data_in_folders_and_by_patterns_are_files_of_a_task(group):
    one = json.loads((group / "one.yaml").read_text())
    data = group / "data" / "more.jsonl"
    data.parent.mkdir()
    data.write_text((group / "one.jsonl").read_text())
    ways = ({"data_files": {"test": f"{data.parent}/*.jsonl"}}, {"data_dir": str(data.parent)}, None)
    for number, kwargs in enumerate(ways):
        task = one | {"task": f"way{number}"} | ({"dataset_kwargs": kwargs} if kwargs else {"dataset_path": str(data.parent)})
        (group / f"way{number}.yaml").write_text(json.dumps(task))
        assert data in harness.files([f"way{number}"], group)


def test_code_of_ones_own_does_not_run_before_its_task(group):
    ran = group / "ran"
    (group / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\ndef text(doc): return doc['query']\n")
    mine = json.loads((group / "one.yaml").read_text()) | {"task": "coded"}
    (group / "coded.yaml").write_text(json.dumps(mine)[:-1] + ', "doc_to_text": !function code.text}')
    harness.check_folder(group)
    harness.check_tasks(["coded"], group)
    assert {path.name for path in harness.files(["coded"], group)} == {
        "coded.yaml", "_multiple_choice.yaml", "code.py", "one.jsonl"}  # fmt: skip
    assert not ran.exists()
