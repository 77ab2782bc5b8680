"""Benchmarks in text: what is found, what is not, and what is said about it."""

import gzip
import json

import pytest
from datatrove.data import Document
from toy import ENGLISH, FRENCH, sentences

from langext.data import contamination
from langext.data.contamination import Decontaminate, file_items, index, write_index
from langext.data.word_units import WordUnits
from langext.errors import ConfigError
from tokenizer_tools import texts as audited

UNITS = WordUnits("fra_Latn")
ITEM = "Quel est le plus grand des chats qui dorment sous la pluie de la ville ?"
WORDING = "Lisez le texte suivant et choisissez celle des quatre réponses qui vous paraît la bonne :"


class Rejects:
    def __enter__(self):
        self.documents = []
        return self

    def __exit__(self, *_):
        pass

    def write(self, document, rank):
        self.documents.append(document)


def test_a_text_with_a_run_of_words_of_an_item_goes_and_names_its_task(tmp_path):
    items = {"other": [(text,) for text in sentences(ENGLISH, 20, 1)], "mine/fr": [(ITEM, "oui"), ("trop court",)]}
    assert write_index(tmp_path, items, UNITS, 13) == {"other": 0, "mine/fr": 1}
    inside = f"On lit : quel est LE plus grand des chats, qui dorment sous la pluie de la ville. {sentences(FRENCH, 1, 1)[0]}"
    texts = [inside, ITEM.replace("chats", "chiens"), "Quel est le plus grand ?", *sentences(FRENCH, 20, 2)]
    rejects = Rejects()
    step = Decontaminate(tmp_path, list(items), UNITS, rejects)
    kept = [doc.text for doc in step.run(iter([Document(text=text, id="") for text in texts]))]
    assert kept == texts[1:]
    assert [(d.text, d.metadata["filter_reason"]) for d in rejects.documents] == [(inside, "contaminated_mine/fr")]


LONG = [" ".join(sentences(FRENCH, 8, seed)) for seed in range(20)]
"""Paragraphs of several hundred characters."""


@pytest.mark.parametrize("code", ["fra_Latn", "zho_Hans"])
@pytest.mark.parametrize("gap", ["\n\n", " "])
def test_of_a_long_text_what_it_shares_with_an_item_is_cut_out(tmp_path, gap, code):
    """The sentence and what is around it go and are kept among the rejects; the rest stays as it was, in either script."""
    units = WordUnits(code)
    item, paragraphs = ITEM, LONG
    if code == "zho_Hans":
        item = "猫在城市的雨中睡觉时最大的一只是哪一只请从下面四个答案中选择一个你认为正确的答案来回答这个问题吧？"
        paragraphs = ["".join(chr(0x4E00 + (7 * i * n + i) % 9000) for i in range(1, 400)) + "。" for n in range(2, 22)]
    write_index(tmp_path, {"mine": [(item, "oui")]}, units, 13)
    text = gap.join([*paragraphs[:9], f"{item}", *paragraphs[9:]])
    step, rejects = Decontaminate(tmp_path, ["mine"], units, Rejects()), Rejects()
    step.exclusion_writer = step.places = rejects
    (kept,) = step.run(iter([Document(text=text, id="a")]))
    assert item not in kept.text and 0.75 * len(text) < len(kept.text) < len(text) - len(item) - 2 * contamination.MARGIN + 5
    assert all(part in text for part in kept.text.split("\n\n")) and paragraphs[0] in kept.text and paragraphs[-1] in kept.text
    (cut,) = rejects.documents
    assert item in cut.text and (cut.id, cut.metadata) == ("a#cut0", {"filter_reason": "contaminated_mine"})
    assert step.stats.stats[contamination.PARTS].total == 1


def test_a_text_of_many_cuts_goes_as_a_whole(tmp_path):
    write_index(tmp_path, {"mine": [(ITEM,)]}, UNITS, 13)
    step = Decontaminate(tmp_path, ["mine"], UNITS, Rejects())
    few, many = (" ".join(f"{paragraph} {ITEM}" for paragraph in LONG[:count]) for count in (10, 11))
    texts = [f"{few} {LONG[-1]}", f"{many} {LONG[-1]}"]
    (kept,) = step.run(iter([Document(text=text, id="") for text in texts]))
    assert LONG[-1][-400:] in kept.text and ITEM not in kept.text


def test_the_wording_of_a_task_is_not_its_content():
    items = [(f"{WORDING} {text}",) for text in sentences(FRENCH, 60, 3)]
    found, wording = index(items, UNITS, 13), index(items[:1], UNITS, 13).runs
    assert found.short == 0 and len(found.runs) > 60
    assert 0 < sum(run not in found.runs for run in wording) < len(wording)  # the question itself is still looked for


def test_an_item_of_which_nothing_is_left_is_counted_and_leaves_nothing():
    """A short one that many have is wording too; its beginning would only cost a closer look at every text with it."""
    common, own = "Laquelle de ces phrases est juste ?", "Comment dort le chat noir la nuit ?"
    found = index([*[(common,)] * 7, (own,), ("trop court",)], UNITS, 13)
    alone = index([(own,)], UNITS, 13)
    assert found.short == 8 and alone.short == 0
    assert found.runs.tolist() == alone.runs.tolist() and found.begins.tolist() == alone.begins.tolist()
    assert found.lengths == alone.lengths == [7, 13]
    assert index([(WORDING,)] * 7, UNITS, 13).short == 7  # of a long one too


ITEMS = {
    "zho_Hans": "世界上使用人数最多的语言是哪一种？",
    "jpn_Jpan": "日本で一番高い山の名前は何ですか。",
    "kor_Hang": "한국에서 가장 높은 산의 이름은 무엇입니까?",
    "tha_Thai": "ภูเขาที่สูงที่สุดในประเทศไทยชื่อว่าอะไร",
    "lao_Laoo": "ພູເຂົາທີ່ສູງທີ່ສຸດໃນປະເທດລາວຊື່ວ່າຫຍັງ",
    "khm_Khmr": "ភ្នំខ្ពស់បំផុតនៅក្នុងប្រទេសកម្ពុជាឈ្មោះអ្វី",
    "mya_Mymr": "မြန်မာနိုင်ငံတွင်အမြင့်ဆုံးတောင်၏အမည်မှာအဘယ်နည်း",
    "bod_Tibt": "བོད་ལྗོངས་ཀྱི་རི་བོ་མཐོ་ཤོས་ཀྱི་མིང་ལ་ཅི་ཟེར།",
    "fra_Latn": "Comment dort le chat noir ?",
}
"""Questions that are shorter than 13 words, in scripts without spaces too."""


@pytest.mark.parametrize("code", ITEMS)
def test_a_short_item_is_found_whole_in_every_script(tmp_path, code):
    """Not half of it, and not where only its letters are the same."""
    units, item = WordUnits(code), ITEMS[code]
    assert write_index(tmp_path, {"mine": [(item, item[:3])]}, units, 13) == {"mine": 0}
    step = Decontaminate(tmp_path, ["mine"], units, Rejects())
    texts = [f"{item[3:]} {item}", item[: 2 * len(item) // 3], item[::-1]]
    kept = [doc.text for doc in step.run(iter([Document(text=text, id="") for text in texts]))]
    assert kept == texts[1:]


@pytest.mark.parametrize(("code", "characters"), [("zho_Hans", 43), ("jpn_Jpan", 41), ("tha_Thai", 100)])
def test_the_window_is_shorter_than_a_sentence_in_every_script(code, characters):
    """These are medians of sentences; so a sentence inside a longer text is found by a part of it."""
    assert WordUnits(code).count(13) < 0.7 * characters


def test_a_few_words_of_another_script_are_no_run(tmp_path):
    """Thirteen words of Chinese have 20 characters; so many letters of English are three words."""
    units, wanted = WordUnits("zho_Hans"), "请问 the United States of America 的首都是哪一座城市，它在哪里？"
    write_index(tmp_path, {"mine": [(wanted,)]}, units, 13)
    step = Decontaminate(tmp_path, ["mine"], units, Rejects())
    texts = [f"他去过 the United States of America 很多次。{text}" for text in ("他喜欢那里的天气。", wanted)]
    assert [doc.text for doc in step.run(iter([Document(text=text, id="") for text in texts]))] == texts[:1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt"])
def test_files_of_ones_own(tmp_path, name):
    path = tmp_path / name
    lines = ["un\n", "\n", "deux\n"] if name == "a.txt" else [json.dumps({"q": "un", "choices": ["a", {"x": "b"}], "gold": 1})]
    with (gzip.open if name.endswith("gz") else open)(path, "wt") as file:
        file.writelines(lines)
    assert file_items(path) == ([("un",), ("deux",)] if name == "a.txt" else [("un", "a", "b")])


def test_half_a_character_in_an_item_is_mended(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": "un \\ud83d"}\n')
    assert file_items(tmp_path / "a.jsonl") == [("un \ufffd",)]


DAMAGED = gzip.compress(b"un\n" * 900, mtime=0)[:20] + b"\xff" * 30


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("a.csv", b"", "write .jsonl or .txt"), ("a.jsonl", b"{", "no lines of JSON"), ("a.txt", b"\xff\xfe", "no UTF-8"),
     ("a.txt.gz", b"x", "cannot be read"), ("b.txt", None, "No such file"),
     ("damaged.txt.gz", DAMAGED, "cannot be read"),
     ("c.txt", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer")],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"contamination: .*{said}") as raised:
        contamination.file_items(tmp_path / name)
    assert "\n" not in str(raised.value)
    if name.startswith("damaged"):
        with pytest.raises(ValueError, match="damaged.txt.gz: cannot be read"):
            list(audited.read(tmp_path / name))
