"""The quality rules: what they need to know of a language, and what they drop."""

import random

import pytest
import regex
from datatrove.data import Document
from datatrove.pipeline.filters import GopherRepetitionFilter
from pydantic import TypeAdapter
from test_contamination import Rejects
from test_word_units import SCRIPTS
from toy import FRENCH, sentences

from langext.data.filters import AnyFilter, Length, Web, web
from langext.data.filters.web import LINE_ENDS, SHORT_LINES, STOP_WORDS, WORDS, rules
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


@pytest.mark.parametrize("code", SCRIPTS)
def test_rules_that_need_words_are_left_out_where_nothing_divides_words(code):
    units = WordUnits(code)
    text = "\n".join(SCRIPTS[code] + mark for mark in "一二三四五六七八")
    known = describe([text], [], units)
    assert (WORDS in known.left_out) is not units.are_words
    if not units.are_words:
        assert judged(text, units, known) == text and len(rules(units, known)) == 2
        assert judged("\n".join([text] * 3), units, known) == "dup_line_frac"


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
