import pytest

from langext import languages
from langext.spec import ConfigError


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


def test_a_label_that_is_not_there():
    with pytest.raises(ConfigError, match=r"no label for fra_Latn \(French\).*frp"):
        languages.label_of(languages.find("fr"), ["__label__frp", "__label__de"])
