"""Words, sentences and runs of words, with and without spaces."""

import numpy as np
import pytest
from datatrove.utils.text import simplify_text
from toy import FRENCH, GERMAN, documents

from langext.data import word_units
from langext.data.word_units import WordUnits, runs, simplified

SCRIPTS = {
    "tha_Thai": "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำ",
    "lao_Laoo": "ພາສາລາວເປັນພາສາທາງການຂອງປະເທດລາວ",
    "khm_Khmr": "ភាសាខ្មែរគឺជាភាសាកំណើតរបស់ជនជាតិខ្មែរ",
    "mya_Mymr": "မြန်မာဘာသာစကားသည်မြန်မာနိုင်ငံ၏ရုံးသုံးဘာသာစကားဖြစ်သည်",
    "bod_Tibt": "བོད་སྐད་ནི་བོད་མི་རིགས་ཀྱི་སྐད་ཡིན།",
    "zho_Hans": "汉语是世界上使用人数最多的语言之一，也是中国的通用语言。",
    "jpn_Jpan": "日本語は主に日本国内や日本人同士の間で使われている言語である。",
}


@pytest.mark.parametrize("code", SCRIPTS)
def test_text_without_spaces_is_compared_by_what_it_holds(code):
    """A text that differs in its first graphemes shares most runs; a text without spaces is never one single word."""
    text, units = SCRIPTS[code], WordUnits(code)
    assert len(units.word_tokenize(text)) > 8 and "".join(units.word_tokenize(text)) == text
    whole, part = runs(text, units, 3), runs(text[4:], units, 3)
    assert len(whole) > 5 and len(np.intersect1d(whole, part)) >= 0.7 * len(part)
    assert not len(np.intersect1d(whole, runs(text[::-1], units, 3)))


def test_words_are_divided_at_spaces_and_punctuation_with_their_marks():
    units = WordUnits("fra_Latn")
    assert units.word_tokenize("L'été, n'est-ce pas ?") == ["L'été", "n'est-ce", "pas"]
    assert units.word_tokenize("हिन्दी में किताब") == ["हिन्दी", "में", "किताब"]
    assert units.sent_tokenize("Il vint. Ça va ?\n« Non » 3.5 fois") == ["Il vint.", "Ça va ?", "« Non » 3.5 fois"]
    assert units == WordUnits("fra_Latn") != WordUnits("deu_Latn") and hash(units) == hash(WordUnits("fra_Latn"))


def test_texts_are_simplified_as_datatrove_does_it():
    texts = [*documents(FRENCH, 3, 1), *documents(GERMAN, 3, 2), "Prix : 3,50 € — l’ÉTÉ\t№ ٣٫٥ हिन्दी!", ""]
    for text in texts:
        assert simplified(text, WordUnits("fra_Latn")) == simplify_text(text).split()


def test_no_run_is_missed_where_a_long_text_is_cut(monkeypatch):
    units, text = WordUnits("fra_Latn"), " ".join(documents(FRENCH, 30, 1))
    whole = runs(text, units, 5)
    monkeypatch.setattr(word_units, "SLICE", 1000)
    assert np.isin(whole, runs(text, units, 5)).all() and len(whole) > 300
    assert len(runs("trois mots ici", units, 5)) == 0 == len(runs("", units, 5))
