"""The quality rules: what they need to know of a language, and what they drop."""

import random
from types import SimpleNamespace

import pytest
import regex
from datatrove.data import Document
from datatrove.pipeline.filters import GopherRepetitionFilter
from datatrove.utils._import_utils import check_required_dependencies
from pydantic import TypeAdapter
from test_contamination import Rejects
from test_word_units import SCRIPTS
from toy import FRENCH, sentences

from langext.data import quality, word_units
from langext.data.filters import AnyFilter, Length, Web, web
from langext.data.filters.web import LINE_ENDS, PARTS_OF_LINES, SHORT_LINES, STOP_WORDS, WORDS
from langext.data.quality import describe
from langext.data.word_units import WordUnits

FR = WordUnits("fra_Latn")
PAGE = "\n".join(" ".join(sentences(FRENCH, 3, seed)) for seed in range(12))
KNOWN = describe([PAGE] * 5, ["fra_Latn/news"], FR)


def judged(text, units=FR, known=KNOWN):
    rejects = Rejects()
    kept = list(Web(name="web").step(units, known, rejects).run(iter([Document(text=text, id="")])))
    return kept[0].text if kept else rejects.documents[0].metadata["filter_reason"]


def test_what_is_known_of_a_language_comes_from_its_text():
    assert (KNOWN.words, KNOWN.sources, KNOWN.documents, KNOWN.left_out) == ("words", ["fra_Latn/news"], 5, {})
    assert set(KNOWN.stop_words) <= {w.capitalize() for w in FRENCH} | set(FRENCH) and len(KNOWN.stop_words) >= 8
    least, most = KNOWN.mean_word_length
    assert least < 5 < most and round(most / least, 1) == 3.3


BAD = {
    "gopher_short_doc": " ".join(f"mot{a}{b}" for a in "abcdef" for b in "abcdefg") + ".",
    "dup_line_frac": "\n".join(["Le chat dort sous la pluie."] * 30),
    "gopher_enough_stop_words": "\n".join(f"Zz{i}a xx{i}b yy{i}c ww{i}d vv{i}e uu{i}f." for i in range(40)),
    "line_punct_ratio": PAGE.replace(".", ""),
    "curly_bracket": PAGE + "\nfunction() { return; } et la suite.",
    "lorem_ipsum": PAGE + "\nLorem ipsum dolor sit amet.",
    "gopher_too_many_bullets": "\n".join(f"- {line}" for line in PAGE.split("\n")),
}


def test_repetition_is_judged_as_datatrove_does_it():
    draw, own, plain = random.Random(3), web.Repetition(FR), GopherRepetitionFilter(language=FR)
    texts = [
        " ".join(draw.choices(words, k=draw.randint(1, 90)))
        for words in (["un", "deux,", "l'été", "x"], FRENCH)
        for _ in range(40)
    ]
    texts += [f"{PAGE} {cut} {cut} {cut}" for cut in (PAGE[:60], PAGE[:150], PAGE[:400])] + [PAGE, "", "a", ". .", "a b\n" * 9]
    found = [(own.filter(Document(text=text, id="")), plain.filter(Document(text=text, id=""))) for text in texts]
    assert all(mine == theirs for mine, theirs in found)
    assert len({str(theirs) for _, theirs in found}) > 6


def test_the_lines_that_go_are_found():
    text = "One line.  \n\n javascript must be on\nTwo words.\nuse cookies\nEnd of it."
    after = "One line.\nTwo words.\nEnd of it."
    assert web.removed(text, after) == [" javascript must be on", "use cookies"]
    assert web.removed(text, text) == []


def test_marks_in_brackets_stay_in_text_that_is_kept():
    page = PAGE.replace(".", " [12].", 3).replace(",", " [],", 2) + "\nLe grand chat dort ici [edit]."
    assert judged(page) == page


@pytest.mark.parametrize("reason", BAD)
def test_what_is_no_running_text_goes_with_its_reason(reason):
    assert judged(BAD[reason]) == reason


def test_running_text_stays_but_for_lines_of_boilerplate():
    assert judged(PAGE) == PAGE
    step = Web(name="web").step(FR, KNOWN, Rejects())
    (kept,) = step.run(iter([Document(text=f"{PAGE}\nPlease read our cookie policy now.", id="")]))
    assert kept.text == PAGE and step.stats["line-filter-policy"].total == 1


UNSPACED = {
    "tha_Thai": ("", " ",
                 "แมว สุนัข บ้าน ถนน เมือง กลางวัน กลางคืน ดวงอาทิตย์ ฝน นอน กิน เห็น รัก พูด เสมอ ใน ใต้ กับ เพื่อ โรงเรียน นักเรียน ป่า"),
    "lao_Laoo": ("", " ",
                 "ແມວ ໝາ ເຮືອນ ຖະໜົນ ເມືອງ ກາງເວັນ ກາງຄືນ ຕາເວັນ ຝົນ ນອນ ກິນ ເຫັນ ຮັກ ເວົ້າ ສະເໝີ ໃນ ໃຕ້ ກັບ ເພື່ອ ໂຮງຮຽນ ນັກຮຽນ ປ່າ"),
    "khm_Khmr": ("", "។ ",
                 "ឆ្មា ឆ្កែ ផ្ទះ ផ្លូវ ទីក្រុង ថ្ងៃ យប់ ព្រះអាទិត្យ ភ្លៀង ដេក ស៊ី ឃើញ ស្រឡាញ់ និយាយ ជានិច្ច ក្នុង ក្រោម ជាមួយ ដើម្បី សាលា សិស្ស ព្រៃ"),
    "mya_Mymr": ("", "။ ",
                 "ကြောင် ခွေး အိမ် လမ်း မြို့ နေ့ ည နေမင်း မိုး အိပ် စား မြင် ချစ် ပြော အမြဲ အတွင်း အောက် နှင့် အတွက် ကျောင်း ကျောင်းသား တော"),
    "bod_Tibt": ("་", "། ",
                 "ཞི་མི ཁྱི ཁང་པ ལམ གྲོང་ཁྱེར ཉིན་མོ མཚན་མོ ཉི་མ ཆར་པ ཉལ ཟ མཐོང དགའ སྐད་ཆ རྟག་ཏུ ནང འོག དང སློབ་གྲྭ སློབ་མ ནགས་ཚལ"),
    "zho_Hans": ("", "。",
                 "猫 狗 房子 街道 城市 白天 夜晚 太阳 下雨 睡觉 吃 看见 喜欢 说话 总是 在 下面 和 为了 学校 学生 森林"),
    "jpn_Jpan": ("", "。",
                 "猫が 犬は 家の 通りに 都市で 昼も 夜に 太陽の 雨が 眠る 食べる 見える 愛する 話す いつも 中に 下の"),
}  # fmt: skip
"""What stands between words, and between sentences, and words, in scripts without spaces."""


def page(code, seed, lines=12):
    """Running text: lines of three sentences."""
    between, end, words = UNSPACED[code]
    draw = random.Random(seed)
    told = ["".join(between.join(draw.choices(words.split(), k=10)) + end for _ in range(3)) for _ in range(lines)]
    return "\n".join(line.strip() for line in told)


@pytest.mark.parametrize("code", UNSPACED)
def test_where_nothing_divides_words_characters_are_counted(code, monkeypatch):
    monkeypatch.setattr(word_units, "_tokenizer", lambda _: None)
    units, text = WordUnits(code), page(code, 9)
    known = describe([page(code, seed) for seed in range(5)], [], units)
    assert set(known.left_out) - {LINE_ENDS} == {WORDS, PARTS_OF_LINES} and not known.stop_words
    first, *_ = text.split("\n")
    sentence = first[: len(first) // 3]
    bad = {
        "": text,
        "top_2_gram": sentence[:6] * 200,
        "repeated": sentence * 40,
        "gopher_short_doc": "".join(units.word_tokenize(text)[: units.count(45)]),
        "dup_line_frac": "\n".join([text] * 2),
        "gopher_too_many_hashes": "#".join(text[at : at + 9] for at in range(0, len(text), 9)),
        "gopher_too_many_end_ellipsis": text.replace("\n", "...\n"),
        "gopher_too_many_bullets": "\n".join(f"- {line}" for line in text.split("\n")),
        "curly_bracket": text + "{",
        "list_ratio": "\n".join(f"{text[at]}{chr(0x4E00 + at)}" for at in range(200)),
    }
    known.left_out.update({SHORT_LINES: "", LINE_ENDS: ""})
    found = {reason: judged(text, units, known) for reason, text in bad.items()}
    assert found.pop("") == text
    assert found.pop("repeated").startswith(("top_", "duplicated_"))
    assert found == {reason: reason for reason in found}
    assert judged(text + first * 3, units, known).startswith("duplicated_")


def test_what_divides_words_without_spaces_does_not_make_lines_too_short(monkeypatch):
    """C4 counts what stands between spaces, and takes a full stop before a letter for none."""
    pairs = SimpleNamespace(word_tokenize=lambda text: regex.findall(r"\p{Han}{1,2}", text))
    monkeypatch.setattr(word_units, "_tokenizer", lambda _: pairs)
    units, text = WordUnits("yue_Hant"), page("zho_Hans", 9)
    known = describe([page("zho_Hans", seed) for seed in range(5)], [], units)
    assert units.are_words and set(known.left_out) == {PARTS_OF_LINES} and len(known.stop_words) >= 8
    assert judged(text, units, known) == text
    assert judged(text[:40] * 40, units, known).startswith("top_")


def test_the_package_that_divides_words_is_named(monkeypatch, capsys):
    def load(code):
        if code == "jav_Java":
            raise ValueError("Language 'jav_Java' doesn't have a tokenizer assigned.")
        check_required_dependencies("word tokenizer", [(f"not_here_{code}", f"not-here-{code}")])

    monkeypatch.setattr(word_units, "load_word_tokenizer", load)
    quality.tell_missing(["fra_Latn", "jav_Java"])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(word_units, "TOGETHER", {"Hani": ("not_here", "regex", "nor_here")})
    quality.tell_missing(["tha_Thai", "zho_Hant", "tha_Thai"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "of tha_Thai (not-here-tha_Thai), zho_Hant (not_here nor_here);" in said
    monkeypatch.setattr(word_units, "load_word_tokenizer", lambda code: None)
    quality.tell_missing(["tha_Thai"])
    assert capsys.readouterr().err == ""


def test_a_rule_that_half_of_the_language_fails_is_left_out():
    lists = ["\n".join(f"x{i}{j}" for i in range(60)) for j in range(3)]
    out = describe(lists, [], WordUnits("eng_Latn")).left_out
    assert set(out) == {STOP_WORDS, LINE_ENDS, SHORT_LINES}


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a" * 9, "too_short"), ("e\u0301" * 9, "too_short"), ("a" * 10, ""), ("e\u0301" * 12, ""), ("a" * 13, "too_long")],
)
def test_lengths_are_those_that_readers_see(text, reason):
    assert Length(name="length", min_characters=10, max_characters=12).reason(text) == reason


def test_a_filter_is_chosen_by_name():
    assert isinstance(TypeAdapter(AnyFilter).validate_python({"name": "length", "min_characters": 3}), Length)


@pytest.mark.parametrize("code", SCRIPTS)
def test_a_least_length_counts_what_readers_see_in_every_script(code):
    """A letter with its vowel signs is one, and spaces between words are none where there are none."""
    text = SCRIPTS[code]
    seen = len(regex.findall(r"\X", text))
    assert 15 < seen <= len(text) and (seen == len(text)) == (code in ("zho_Hans", "jpn_Jpan"))
    assert Length(name="length", min_characters=seen).reason(text) == ""
    assert Length(name="length", min_characters=seen + 1).reason(text) == "too_short"
