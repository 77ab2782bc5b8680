import pytest

from langext import languages
from langext.errors import ConfigError


@pytest.mark.parametrize("code", ["fra_Latn", "fr", "fra", "French", "french", "FRA_LATN"])
def test_every_spelling_is_the_same_language(code):
    assert languages.find(code).code == "fra_Latn"


def test_codes_are_unique_and_well_formed():
    codes = list(languages.LANGUAGES)
    assert len(codes) == len(set(codes)) == 204
    iso1 = [row.iso1 for row in languages.LANGUAGES.values() if row.iso1]
    assert len(iso1) == len(set(iso1))


def test_a_language_beyond_the_table_is_taken_as_it_is():
    assert languages.find("gsw_Latn").code == "gsw_Latn"
    assert languages.find("arb_Arab").direction == "rtl"


@pytest.mark.parametrize(
    ("written", "code", "single"),
    [
        ("mul", "mul_Zyyy", False),
        ("many languages", "mul_Zyyy", False),
        ("zxx", "zxx_Zyyy", False),
        ("code", "zxx_Zyyy", False),
        ("fr", "fra_Latn", True),
    ],
)
def test_many_languages_and_none_have_codes_too(written, code, single):
    found = languages.find(written)
    assert (found.code, found.single) == (code, single) and languages.find(code) == found


def test_unknown_names_fail_with_near_matches():
    with pytest.raises(ConfigError, match="swahili"):
        languages.find("Swahilli")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["__label__fr", "__label__en"], "__label__fr"),
        (["__label__fra_Latn", "__label__eng_Latn"], "__label__fra_Latn"),
        (["__label__fra", "__label__eng"], "__label__fra"),
    ],
)
def test_labels_of_different_models(labels, expected):
    assert languages.label_of(languages.find("French"), labels) == expected


def test_another_script_of_a_known_language():
    assert languages.label_of(languages.find("zho_Hant"), ["__label__zh", "__label__en"]) == "__label__zh"


@pytest.mark.parametrize(
    ("code", "labels", "expected"),
    [
        ("zho_Hans", ["cmn_Hani", "eng_Latn"], "cmn_Hani"),
        ("zho_Hant", ["cmn_Hani"], "cmn_Hani"),
        ("zho_Hant", ["cmn_Hans", "cmn_Hant"], "cmn_Hant"),
        ("zho_Hans", ["zh", "en"], "zh"),
        ("zho_Hans", ["zh-Hans", "zh-Hant"], "zh-Hans"),
        ("yue_Hant", ["yue_Hani"], "yue_Hani"),
        ("Estonian", ["ekk_Latn"], "ekk_Latn"),
        ("ekk_Latn", ["et"], "et"),
        ("zsm", ["msa_Latn"], "msa_Latn"),
        ("msa", ["zsm_Latn"], "zsm_Latn"),
        ("ara", ["arb_Arab", "arz_Arab"], "arb_Arab"),
        ("nb", ["nor_Latn", "nno_Latn"], "nor_Latn"),
        ("nob_Latn", ["nb", "nn"], "nb"),
        ("swa", ["swh_Latn"], "swh_Latn"),
        ("lav", ["lvs_Latn"], "lvs_Latn"),
        ("Persian", ["fas_Arab"], "fas_Arab"),
        ("uzn_Latn", ["uzb_Latn", "uzn_Cyrl"], "uzb_Latn"),
        ("mlg", ["plt_Latn"], "plt_Latn"),
        ("ory_Orya", ["ori_Orya"], "ori_Orya"),
        ("jpn_Jpan", ["jpn_Jpan"], "jpn_Jpan"),
        ("kor_Hang", ["kor_Kore"], "kor_Kore"),
        ("deu_Latn", ["ger"], "ger"),
        ("als_Latn", ["als", "sq"], "sq"),  # in two-letter models als is another language
    ],
)
def test_other_codes_of_the_same_language(code, labels, expected):
    assert languages.label_of(languages.find(code), [f"__label__{label}" for label in labels]) == f"__label__{expected}"


def test_other_languages_and_scripts_are_named_and_not_taken():
    for code, labels, said in (
        ("zho_Hans", ["cmn_Latn", "jpn_Jpan"], "It has: cmn_Latn"),
        ("cmn_Hani", ["zho_Hans", "zho_Hant"], "zho_Hans and zho_Hant for cmn_Hani"),
        ("arz_Arab", ["ara_Arab"], "Did you mean ara_Arab"),
    ):
        with pytest.raises(ConfigError, match=said):
            languages.label_of(languages.find(code), labels)


def test_no_code_stands_for_two_languages():
    codes = [code for group in languages._GROUPS for code in group]
    assert len(codes) == len(set(codes)) > 100


def test_a_label_that_is_not_there():
    with pytest.raises(ConfigError, match=r"no label for fra_Latn \(French\).*frp"):
        languages.label_of(languages.find("fr"), ["__label__frp", "__label__de"])
