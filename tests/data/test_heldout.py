"""What is held out is not trained on, paragraph by paragraph, and every source has something that is held out."""

import numpy as np
import pytest
from datatrove.data import Document
from toy import FRENCH, documents

from langext.data import heldout
from langext.data.split import passages, unit_hash

LONG = [" ".join(text.split()) for text in documents(FRENCH, 40, 5) if len(text) > heldout.LEAST]


def test_equal_paragraphs_and_lines_are_taken_out_whatever_stands_around_them():
    held = heldout.keys(f"{LONG[0]}\n\n{LONG[1]}\n{LONG[2]}")
    text = f"Un titre\n\n{LONG[0].replace(' ', chr(10), 3)}\n\n{LONG[3]}\n{LONG[2]}\n\n\nFin"
    rest, removed = heldout.without(text, heldout.Held(held))
    assert rest == f"Un titre\n\n{LONG[3]}\n\n\nFin"
    assert [" ".join(part.split()) for part in removed] == [LONG[0], LONG[2]]


def test_what_is_short_or_not_held_out_stays():
    text = f"{LONG[5]}\n\nUn titre\n\n"
    assert heldout.without(text, heldout.Held(heldout.keys(f"Un titre\n\n{LONG[4]}"))) == (text, [])
    assert heldout.without(LONG[4], heldout.Held(heldout.keys(LONG[4]))) == ("", [LONG[4]])


@pytest.mark.parametrize(("frac", "texts"), [(0.3, LONG), (1e-9, LONG), (1e-9, LONG[:2]), (1e-9, LONG[:1]), (0.01, [])])
def test_a_source_of_two_texts_has_one_that_is_held_out(tmp_path, frac, texts):
    parts = [texts[0::2], texts[1::2], []]
    for rank, part in enumerate(parts):
        list(heldout.Mark(frac, tmp_path).run([Document(text=text, id="0") for text in part], rank, 3))
    least, keys = heldout.chosen(tmp_path, 3, frac)
    held = [text for text in texts if unit_hash(text) < least]
    assert keys == {key for text in held for key in heldout.keys(text)}
    wanted = [text for text in texts if unit_hash(text) < frac]
    assert held == (wanted or ([min(texts, key=unit_hash)] if len(texts) > 1 else []))
    heldout.write(tmp_path / "held.npy", keys)
    assert np.load(tmp_path / "held.npy").tolist() == sorted(keys)


SHORT = {
    "Chinese": "汉语是世界上使用人数最多的语言之一，也是中国的通用语言。",
    "Japanese": "日本語は主に日本国内や日本人同士の間で使われている言語である。",
    "Korean": "한국어는 대한민국과 조선민주주의인민공화국의 공용어로 쓰이는 언어이다.",
    "Thai": "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอนหรือวรรณยุกต์เช่นเดียวกับภาษาจีน",
    "Lao": "ພາສາລາວເປັນພາສາທາງການຂອງສາທາລະນະລັດປະຊາທິປະໄຕປະຊາຊົນລາວ ແລະ ໃຊ້ໃນປະເທດໄທ",
    "Khmer": "ភាសាខ្មែរគឺជាភាសាកំណើតរបស់ជនជាតិខ្មែរនិងជាភាសាផ្លូវការរបស់ប្រទេសកម្ពុជា",
    "Burmese": "မြန်မာဘာသာစကားသည်မြန်မာနိုင်ငံ၏ရုံးသုံးဘာသာစကားဖြစ်သည်။ကမ္ဘာပေါ်တွင်လူများစွာပြောဆိုကြသည်။",
    "Tibetan": "བོད་སྐད་ནི་བོད་མི་རིགས་ཀྱི་སྐད་ཡིན། དེ་ནི་རྒྱ་གར་དང་བལ་ཡུལ་དང་འབྲུག་ཡུལ་ལ་ཡང་བཤད།",
}
"""A sentence in scripts in which 60 characters are more than a sentence, or words have no spaces between them."""


@pytest.mark.parametrize("name", SHORT)
def test_a_sentence_that_is_held_out_is_taken_out_in_every_script(name):
    """And a heading, the first letters of it, stays."""
    sentence = SHORT[name]
    heading = sentence[:8]
    held = heldout.keys(f"{sentence}\n\n{heading}")
    assert heldout.without(f"{LONG[0]}\n\n{sentence}\n\n{heading}", heldout.Held(held)) == (
        f"{LONG[0]}\n\n{heading}",
        [sentence],
    )


def test_a_passage_that_was_cut_out_of_a_paragraph_is_found_wherever_the_paragraph_stands():
    """Cut at sentence ends, and not where the other text would be cut."""
    every = [f"La phrase {number} dit que {'le chat dort dans la maison et ' * 2}rien de plus." for number in range(60)]
    parts = [passage for passage, _ in passages(" ".join(every))]
    assert len(parts) > 3 and not parts[1].startswith(every[0])
    other = "Une autre phrase, qui déplace toutes les coupures de ce texte d'un seul paragraphe. " + " ".join(every)
    rest, removed = heldout.without(other, heldout.Held(heldout.keys(parts[1])))
    assert {text.strip() for text in removed} == {sentence for sentence in every if sentence in parts[1]}
    assert rest.split(". ")[1:] == [text.removesuffix(".") for text in every[:-1] if text not in parts[1]] + [every[-1]]


def test_a_whole_text_is_taken_out_however_short_it_is():
    assert heldout.without(" Un titre\n", heldout.Held(heldout.keys("Un titre"))) == ("", [" Un titre\n"])


def test_a_passage_of_short_lines_is_taken_out_as_a_whole():
    poem = "\n".join(f"Le chat {number} dort" for number in range(300))
    parts = [passage for passage, _ in passages(poem)]
    assert len(parts) > 3 and not any(len(line) >= heldout.LEAST for line in poem.split("\n"))
    rest, removed = heldout.without(poem, heldout.Held(heldout.keys(parts[1])))
    assert removed == [parts[1]] and rest == "\n".join([parts[0], *parts[2:]])
