"""FineWeb-2's values: where they are found, what is refused, and that they are applied as there."""

import pytest
from datatrove.data import Document
from fineweb import VALUES
from test_contamination import Rejects
from test_quality import UNSPACED, page
from toy import FRENCH, sentences

from langext.data import published, word_units
from langext.data.filters import Web
from langext.data.quality import describe
from langext.data.word_units import WordUnits
from langext.errors import ConfigError

FR = WordUnits("fra_Latn")


@pytest.fixture
def folder(tmp_path):
    for code in ("fra_Latn", "cmn_Hani", "srp_Cyrl"):
        (tmp_path / f"{code}.yml").write_text(VALUES)
    return tmp_path


@pytest.mark.parametrize(
    ("code", "name"),
    [("fra_Latn", "fra_Latn"), ("zho_Hans", "cmn_Hani"), ("srp_Cyrl", "srp_Cyrl"), ("srp_Latn", ""), ("swh_Latn", "")],
)
def test_a_language_is_found_by_any_of_its_codes_in_its_script(folder, code, name):
    found = published.find(folder, code)
    assert (found.stem if found else "") == name
    assert (published.of(folder, code) is None) is (not name)


def test_what_is_no_such_folder_and_what_is_incomplete_is_told(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"no folder with files as swh_Latn\.yml"):
        published.of(tmp_path / "none", "fra_Latn")
    (folder / "fra_Latn.yml").write_text(VALUES.replace("line_punct_thr: 0.2\n", ""))
    with pytest.raises(ConfigError, match=r"fra_Latn\.yml: line_punct_thr: Field required"):
        published.of(folder, "fra_Latn")
    with pytest.raises(ConfigError, match="no source has quality: web"):
        published.check(folder, [])


def test_languages_without_values_are_named(folder, capsys):
    published.check(folder, ["fra_Latn", "swh_Latn", "swh_Latn", "zho_Hans"])
    assert capsys.readouterr().out.count("has no values for") == 1


PAGE = "\n".join(" ".join(sentences(FRENCH, 3, seed)) for seed in range(12))
GOPHER = describe([PAGE] * 5, [], FR)
BAD = {
    "dup_line_frac": "\n".join([*PAGE.split("\n")[:6], *PAGE.split("\n")[:3]]),
    "top_2_gram": "le chat " * 400 + PAGE[:200],
    "line_punct_ratio": PAGE.replace(".", ""),
    "gopher_enough_stop_words": PAGE.replace("chat", "chien").replace("pluie", "neige"),
    "gopher_below_alpha_threshold": "\n".join(f"{line[:-1]} {' '.join(map(str, range(40)))}." for line in PAGE.split("\n")),
}


def judged(text, values, units=FR, known=GOPHER):
    rejects = Rejects()
    known = known.model_copy(update={"published": values})
    kept = list(Web(name="web").step(units, known, rejects).run(iter([Document(text=text, id="")])))
    return kept[0].text if kept else rejects.documents[0].metadata["filter_reason"]


@pytest.mark.parametrize("reason", BAD)
def test_each_value_is_applied(folder, reason):
    assert judged(BAD[reason], published.of(folder, "fra_Latn")) == reason


def test_rules_that_fineweb_2_does_not_have_are_not_applied(folder):
    """C4's, and the one on short lines."""
    values = published.of(folder, "fra_Latn")
    for text in (PAGE, f"{PAGE}\nfunction() {{ lorem ipsum }}.", f"{PAGE}\n" + "\n".join(f"chat {n}." for n in range(20))):
        assert judged(text, values) == text and (text == PAGE or judged(text, None) != text)


@pytest.mark.parametrize("code", UNSPACED)
def test_where_nothing_divides_words_characters_are_counted(folder, code, monkeypatch):
    monkeypatch.setattr(word_units, "_tokenizer", lambda _: None)
    units = WordUnits(code)
    text = "\n".join("".join(units.word_tokenize(line)).translate(dict.fromkeys(map(ord, "។။།。"))) + "。"
                     for line in page(code, 9).split("\n"))  # fmt: skip
    graphemes = units.word_tokenize(text)
    values = published.of(folder, "fra_Latn")
    values = values.model_copy(update={"dup_n_grams": [(5, 0.3)]})
    known = describe([text], [], units)
    bad = {
        text: text,
        "dup_line_frac": "\n".join([text] * 2),
        "line_punct_ratio": text.replace("。", ""),
        "gopher_short_doc": "".join(graphemes[: units.count(45)]) + "。",
        "gopher_too_many_bullets": "\n".join(f"- {line}" for line in text.split("\n")),
        "list_ratio": "\n".join(f"{text[at]}{chr(0x4E00 + at)}。" for at in range(200)),
        "top_2_gram": "".join(graphemes[: units.count(2)]) * 200,
        "duplicated_5_n_grams": text[:30] * 40,
    }
    assert {reason: judged(text, values, units, known) for reason, text in bad.items()} == {reason: reason for reason in bad}
