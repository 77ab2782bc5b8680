import pytest

from langext import languages
from langext.errors import ConfigError


@pytest.mark.parametrize("code", ["fra_Latn", "fr", "fra", "French", "french", "FRA_LATN"])
def test_every_spelling_is_the_same_language(code):
    assert languages.find(code).code == "fra_Latn"


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("zh-Hant", "zho_Hant"), ("wo_Latn", "wol_Latn"), ("kmr-Latn", "kmr_Latn"), ("ku_Arab", "ckb_Arab"),
        ("fr_Arab", "fra_Arab"), ("quz_Latn", "quz_Latn"), ("Kurmanji", "kmr_Latn"),
        ("Farsi", "pes_Arab"), ("filipino", "tgl_Latn"),
    ],
)  # fmt: skip
def test_tags_and_other_names_that_people_write(written, code):
    assert languages.find(written).code == code


def test_codes_are_unique_and_well_formed():
    codes = list(languages.LANGUAGES)
    assert len(codes) == len(set(codes)) > 204
    iso1 = [row.iso1 for row in languages.LANGUAGES.values() if row.iso1]
    assert len(iso1) == len(set(iso1))


ISO_639_1 = """
aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es et eu fa
ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko
kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa
pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty
ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
""".split()


@pytest.mark.parametrize("code", ISO_639_1)
def test_every_code_of_two_letters_is_known(code):
    assert languages.find(code).single


def test_a_language_beyond_the_table_is_taken_as_it_is():
    assert languages.find("ksh_Latn").code == "ksh_Latn"
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


LID176 = """
en ru de fr it ja es ceb tr pt uk eo pl sv nl he zh hu ar ca fi cs fa sr el vi bg ko no mk ro id th hy da ta hi hr sh be ka te
kk war lt gl sk bn eu sl kn ml mr et az ms sq la bs nn ur lv my tt af oc nds ky ast tl is ia si gu km br ba uz bo pa vo als ne
cy jbo fy mn lb ce ug tg sco sa cv jv min io or as new ga mg an ckb sw bar lmo yi arz mhr azb sah pnb su bpy pms ilo wuu ku ps
ie xmf yue gom li mwl kw sd hsb scn gd pam bh mai vec mt dv wa mzn am qu eml cbk tk rm os vls yo lo lez so myv diq mrj dsb frr
ht gn bxr kv sc nah krc bcl nap gv av rue xal pfl dty hif co lrc vep tyv
""".split()
"""All labels of the model lid.176."""


@pytest.mark.parametrize("label", LID176)
def test_every_label_of_lid_176_is_reached_by_the_code_of_its_language(label):
    found = languages.of_label(label, LID176)
    assert found is not None and languages.label_of(found, LID176) == label and languages.find(found.iso3) == found
    if len(label) == 2 and label != "bh":  # the code of ISO 639-1, and the name
        assert languages.find(label) == found == languages.find(found.name)


@pytest.mark.parametrize(
    ("code", "label"),
    [
        ("gsw_Latn", "als"), ("als_Latn", "sq"), ("bho_Deva", "bh"), ("egl_Latn", "eml"), ("nhn_Latn", "nah"),
        ("kpv_Cyrl", "kv"), ("lah_Arab", "pnb"), ("lat", "la"), ("Breton", "br"), ("zza_Latn", "diq"),
    ],
)  # fmt: skip
def test_codes_of_languages_that_a_model_of_wikipedias_calls_otherwise(code, label):
    assert languages.label_of(languages.find(code), LID176) == label


def test_a_label_that_stands_for_no_known_language():
    assert languages.of_label("klingon", ["klingon", "fr"]) is None and languages.of_label("", LID176) is None
    assert languages.of_label("als_Latn", ["als_Latn", "gsw_Latn"]) == languages.find("als")
    assert languages.of_label("__label__fr", ["__label__fr"]) == languages.find("fr")


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
