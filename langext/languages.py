"""Language codes. langext uses FLORES-200 codes (`fra_Latn`) everywhere; users may also write `fr`, `fra` or `French`.

The first table follows FLORES-200 (https://github.com/facebookresearch/flores/tree/main/flores200), the second has the other
languages of ISO 639-1 (https://www.loc.gov/standards/iso639-2/php/code_list.php) and of the model lid.176. Each entry has the
code, the ISO 639-1 code (or -) and the English name.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from langext.errors import ConfigError
from langext.spec import near

_TABLE = """
ace_Latn - Acehnese|acm_Arab - Mesopotamian Arabic|afr_Latn af Afrikaans|aka_Latn ak Akan|als_Latn sq Albanian
amh_Ethi am Amharic|arb_Arab ar Arabic|arz_Arab - Egyptian Arabic
asm_Beng as Assamese|ast_Latn - Asturian|awa_Deva - Awadhi|ayr_Latn ay Aymara
azb_Arab - South Azerbaijani|azj_Latn az Azerbaijani|bak_Cyrl ba Bashkir|bam_Latn bm Bambara|ban_Latn - Balinese
bel_Cyrl be Belarusian|bem_Latn - Bemba|ben_Beng bn Bengali|bho_Deva - Bhojpuri|bod_Tibt bo Tibetan|bos_Latn bs Bosnian
bul_Cyrl bg Bulgarian|cat_Latn ca Catalan|ceb_Latn - Cebuano|ces_Latn cs Czech|ckb_Arab - Central Kurdish|cym_Latn cy Welsh
dan_Latn da Danish|deu_Latn de German|dyu_Latn - Dyula|dzo_Tibt dz Dzongkha|ell_Grek el Greek|eng_Latn en English
epo_Latn eo Esperanto|est_Latn et Estonian|eus_Latn eu Basque|ewe_Latn ee Ewe|fao_Latn fo Faroese|fij_Latn fj Fijian
fin_Latn fi Finnish|fon_Latn - Fon|fra_Latn fr French|fur_Latn - Friulian|fuv_Latn ff Fulfulde|gaz_Latn om Oromo
gla_Latn gd Scottish Gaelic|gle_Latn ga Irish|glg_Latn gl Galician|grn_Latn gn Guarani|guj_Gujr gu Gujarati
hat_Latn ht Haitian Creole|hau_Latn ha Hausa|heb_Hebr he Hebrew|hin_Deva hi Hindi|hrv_Latn hr Croatian|hun_Latn hu Hungarian
hye_Armn hy Armenian|ibo_Latn ig Igbo|ilo_Latn - Ilocano|ind_Latn id Indonesian|isl_Latn is Icelandic|ita_Latn it Italian
jav_Latn jv Javanese|jpn_Jpan ja Japanese|kab_Latn - Kabyle|kan_Knda kn Kannada|kas_Arab ks Kashmiri|kat_Geor ka Georgian
kaz_Cyrl kk Kazakh|khk_Cyrl mn Mongolian|khm_Khmr km Khmer|kik_Latn ki Kikuyu|kin_Latn rw Kinyarwanda|kir_Cyrl ky Kyrgyz
kmb_Latn - Kimbundu|kmr_Latn ku Northern Kurdish|kon_Latn kg Kikongo|kor_Hang ko Korean|lao_Laoo lo Lao|lij_Latn - Ligurian
lim_Latn li Limburgish|lin_Latn ln Lingala|lit_Latn lt Lithuanian|lmo_Latn - Lombard|ltz_Latn lb Luxembourgish|lug_Latn lg Ganda
luo_Latn - Luo|lus_Latn - Mizo|lvs_Latn lv Latvian|mag_Deva - Magahi|mai_Deva - Maithili|mal_Mlym ml Malayalam
mar_Deva mr Marathi|min_Latn - Minangkabau|mkd_Cyrl mk Macedonian|mlt_Latn mt Maltese|mni_Beng - Meitei|mos_Latn - Mossi
mri_Latn mi Maori|mya_Mymr my Burmese|nld_Latn nl Dutch|nno_Latn nn Norwegian Nynorsk|nob_Latn no Norwegian Bokmal
npi_Deva ne Nepali|nso_Latn - Northern Sotho|nus_Latn - Nuer|nya_Latn ny Nyanja|oci_Latn oc Occitan|ory_Orya or Odia
pag_Latn - Pangasinan|pan_Guru pa Punjabi|pap_Latn - Papiamento|pbt_Arab ps Pashto|pes_Arab fa Persian|plt_Latn mg Malagasy
pol_Latn pl Polish|por_Latn pt Portuguese|prs_Arab - Dari|quy_Latn qu Quechua|ron_Latn ro Romanian|run_Latn rn Rundi
rus_Cyrl ru Russian|sag_Latn sg Sango|san_Deva sa Sanskrit|sat_Olck - Santali|scn_Latn - Sicilian|shn_Mymr - Shan
sin_Sinh si Sinhala|slk_Latn sk Slovak|slv_Latn sl Slovenian|smo_Latn sm Samoan|sna_Latn sn Shona|snd_Arab sd Sindhi
som_Latn so Somali|sot_Latn st Southern Sotho|spa_Latn es Spanish|srd_Latn sc Sardinian|srp_Cyrl sr Serbian|ssw_Latn ss Swati
sun_Latn su Sundanese|swe_Latn sv Swedish|swh_Latn sw Swahili|szl_Latn - Silesian|tam_Taml ta Tamil|tat_Cyrl tt Tatar
tel_Telu te Telugu|tgk_Cyrl tg Tajik|tgl_Latn tl Tagalog|tha_Thai th Thai|tir_Ethi ti Tigrinya|tpi_Latn - Tok Pisin
tsn_Latn tn Tswana|tso_Latn ts Tsonga|tuk_Latn tk Turkmen|tum_Latn - Tumbuka|tur_Latn tr Turkish|twi_Latn tw Twi
uig_Arab ug Uyghur|ukr_Cyrl uk Ukrainian|umb_Latn - Umbundu|urd_Arab ur Urdu|uzn_Latn uz Uzbek|vec_Latn - Venetian
vie_Latn vi Vietnamese|war_Latn - Waray|wol_Latn wo Wolof|xho_Latn xh Xhosa|ydd_Hebr yi Yiddish|yor_Latn yo Yoruba
ace_Arab - Acehnese (Arabic script)|acq_Arab - Ta'izzi-Adeni Arabic|aeb_Arab - Tunisian Arabic|ajp_Arab - South Levantine Arabic
apc_Arab - North Levantine Arabic|arb_Latn - Arabic (romanised)|ars_Arab - Najdi Arabic|ary_Arab - Moroccan Arabic
bjn_Arab - Banjar (Arabic script)|bjn_Latn - Banjar|bug_Latn - Buginese|cjk_Latn - Chokwe|crh_Latn - Crimean Tatar
dik_Latn - Southwestern Dinka|hne_Deva - Chhattisgarhi|kac_Latn - Jingpho|kam_Latn - Kamba|kas_Deva - Kashmiri (Devanagari)
kbp_Latn - Kabiye|kea_Latn - Kabuverdianu|knc_Arab - Central Kanuri (Arabic script)|knc_Latn - Central Kanuri
lua_Latn - Luba-Kasai|ltg_Latn - Latgalian|min_Arab - Minangkabau (Arabic script)|taq_Latn - Tamasheq
taq_Tfng - Tamasheq (Tifinagh)|tzm_Tfng - Central Atlas Tamazight
yue_Hant - Cantonese|zho_Hans zh Chinese (Simplified)|zho_Hant - Chinese (Traditional)|zsm_Latn ms Malay|zul_Latn zu Zulu
"""

_MORE = """
aar_Latn aa Afar|abk_Cyrl ab Abkhazian|arg_Latn an Aragonese|ava_Cyrl av Avaric|ave_Avst ae Avestan|bis_Latn bi Bislama
bre_Latn br Breton|cha_Latn ch Chamorro|che_Cyrl ce Chechen|chu_Cyrl cu Church Slavic|chv_Cyrl cv Chuvash|cor_Latn kw Cornish
cos_Latn co Corsican|cre_Cans cr Cree|div_Thaa dv Dhivehi|fry_Latn fy Western Frisian|glv_Latn gv Manx
hbs_Latn sh Serbo-Croatian|her_Latn hz Herero|hmo_Latn ho Hiri Motu|ido_Latn io Ido|iii_Yiii ii Nuosu|ike_Cans iu Inuktitut
ile_Latn ie Interlingue|ina_Latn ia Interlingua|ipk_Latn ik Inupiaq|kal_Latn kl Kalaallisut|kom_Cyrl kv Komi
kua_Latn kj Kuanyama|lat_Latn la Latin|lub_Latn lu Luba-Katanga|mah_Latn mh Marshallese|nau_Latn na Nauru|nav_Latn nv Navajo
nbl_Latn nr South Ndebele|nde_Latn nd North Ndebele|ndo_Latn ng Ndonga|oji_Cans oj Ojibwa|oss_Cyrl os Ossetian
pli_Deva pi Pali|roh_Latn rm Romansh|sme_Latn se Northern Sami|tah_Latn ty Tahitian|ton_Latn to Tongan|ven_Latn ve Venda
vol_Latn vo Volapük|wln_Latn wa Walloon|zha_Latn za Zhuang|bar_Latn - Bavarian|bcl_Latn - Central Bikol|bpy_Beng - Bishnupriya
bxr_Cyrl - Buryat|cbk_Latn - Chavacano|diq_Latn - Zazaki|dsb_Latn - Lower Sorbian|dty_Deva - Doteli
eml_Latn - Emilian-Romagnol|frr_Latn - North Frisian|gom_Deva - Goan Konkani|gsw_Latn - Alemannic|hif_Latn - Fiji Hindi
hsb_Latn - Upper Sorbian|jbo_Latn - Lojban|krc_Cyrl - Karachay-Balkar|lez_Cyrl - Lezgian|lrc_Arab - Northern Luri
mhr_Cyrl - Meadow Mari|mrj_Cyrl - Hill Mari|mwl_Latn - Mirandese|myv_Cyrl - Erzya|mzn_Arab - Mazanderani|nah_Latn - Nahuatl
nap_Latn - Neapolitan|nds_Latn - Low German|new_Deva - Newar|pam_Latn - Kapampangan|pfl_Latn - Palatine German
pms_Latn - Piedmontese|pnb_Arab - Western Punjabi|rue_Cyrl - Rusyn|sah_Cyrl - Yakut|sco_Latn - Scots|tyv_Cyrl - Tuvan
vep_Latn - Veps|vls_Latn - West Flemish|wuu_Hans - Wu Chinese|xal_Cyrl - Kalmyk|xmf_Geor - Mingrelian
"""

_SAME = """
zho cmn chi|est ekk|zsm msa may|arb ara|nob nor nb|swh swa|lvs lav|pes fas per|uzn uzb|plt mlg|ory ori|azj aze|als sqi alb
kmr kur|khk mon|npi nep|gaz orm|pbt pus|quy que|ydd yid|fuv ful|ayr aym|grn gug|knc kau kr|dik din|twi aka|tgl fil|srd sro
kon kng|bik bcl|iku ike|lah pnb|kok gom|mya bur|ces cze|cym wel|deu ger|ell gre|eus baq|fra fre|hye arm|isl ice|kat geo
mkd mac|mri mao|nld dut|ron rum|slk slo|bod tib|kom kpv|oji ojg|bxr bua|diq zza|mhr chm
"""
"""ISO 639 codes of one language: the individual language that stands for a macrolanguage (ISO 639-3), the bibliographic code
(ISO 639-2/B), and nb and kr. Models and datasets write either.
See https://iso639-3.sil.org/code_tables/macrolanguage_mappings/data."""
_GROUPS = [tuple(group.split()) for group in _SAME.strip().replace("\n", "|").split("|")]

_WIKIPEDIAS = {"als": ("gsw",), "bh": ("bho", "bih"), "eml": ("eml", "egl", "rgn"), "nah": ("nah", "nci", "nhe", "nhn", "nch")}
"""Labels that are names of Wikipedias, as in lid.176, and no codes of ISO 639-3, or those of another language -> the codes of
the languages that they stand for. See https://meta.wikimedia.org/wiki/Special_language_codes."""
_MACRO = {"hbs": ("srp", "hrv", "bos", "cnr")}
"""Macrolanguage of which no single language is the usual one -> the languages in it. A model may have labels for both."""
_SCRIPTS = (("Hani", "Hans", "Hant"), ("Jpan", "Hrkt", "Kana", "Hira"), ("Kore", "Hang"), ("Arab", "Aran"), ("Latn", "Latf"))
"""ISO 15924: the first script of a group contains the others, so its label stands for text in any of them, and the reverse."""
_RIGHT_TO_LEFT = {"Arab", "Hebr", "Thaa", "Syrc", "Nkoo"}
_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
_TAG = re.compile(r"([a-z]{2,3})_([a-z]{4})")
_IN_SCRIPT = {"ku_Arab": "ckb_Arab", "az_Arab": "azb_Arab", "pa_Arab": "pnb_Arab"}
"""Code of a macrolanguage with a script -> the language of it that is written so, where another one is usual without."""
_ALSO = {
    "kurdish": "kmr_Latn", "kurmanji": "kmr_Latn", "sorani": "ckb_Arab", "chinese": "zho_Hans", "mandarin": "zho_Hans",
    "farsi": "pes_Arab", "filipino": "tgl_Latn", "azeri": "azj_Latn", "sinhalese": "sin_Sinh", "norwegian": "nob_Latn",
    "kirundi": "run_Latn", "chichewa": "nya_Latn", "setswana": "tsn_Latn", "sesotho": "sot_Latn", "sepedi": "nso_Latn",
    "isizulu": "zul_Latn", "isixhosa": "xho_Latn", "kiswahili": "swh_Latn", "luganda": "lug_Latn", "oriya": "ory_Orya",
    "uighur": "uig_Arab", "uyghur": "uig_Arab", "flemish": "nld_Latn", "castilian": "spa_Latn", "bangla": "ben_Beng",
    "fula": "fuv_Latn", "fulani": "fuv_Latn", "myanmar": "mya_Mymr", "yakut": "sah_Cyrl", "sakha": "sah_Cyrl",
    "maldivian": "div_Thaa", "sami": "sme_Latn", "saami": "sme_Latn", "greenlandic": "kal_Latn",
}  # fmt: skip
"""Other names that people write, in small letters."""


MUL, ZXX = "mul_Zyyy", "zxx_Zyyy"
"""Codes of text in many languages, and of text in none (code, formulas), as in ISO 639-2; Zyyy is any script (ISO 15924).
See https://www.loc.gov/standards/iso639-2/php/code_list.php."""


@dataclass(frozen=True)
class Language:
    """One language in one script; or many, or none, see `MUL` and `ZXX`."""

    code: str
    """FLORES-200 code, for example fra_Latn."""
    iso1: str | None
    """Two-letter ISO 639-1 code; None when the language has none."""
    name: str

    @property
    def iso3(self) -> str:
        """Three-letter ISO 639-3 code."""
        return self.code[:3]

    @property
    def tag(self) -> str:
        """Value of HTML's `lang` attribute (BCP 47): the two-letter code, or else the three-letter code, and the script."""
        return f"{self.iso1 or self.iso3}-{self.code[4:]}"

    @property
    def direction(self) -> str:
        """Value of HTML's `dir` attribute, the writing direction: ltr or rtl."""
        return "rtl" if self.code[4:] in _RIGHT_TO_LEFT else "ltr"

    @property
    def single(self) -> bool:
        """True of a language; False of many together, and of none."""
        return self.code not in (MUL, ZXX)


def _row(entry: str) -> Language:
    code, iso1, name = entry.strip().split(" ", 2)
    return Language(code, None if iso1 == "-" else iso1, name)


LANGUAGES = {row.code: row for table in (_TABLE, _MORE) for row in map(_row, table.strip().replace("\n", "|").split("|"))}
_NOT_ONE = (Language(MUL, None, "Many languages"), Language(ZXX, None, "Code"))


def find(code: str) -> Language:
    """The language for a code, a BCP 47 tag of language and script (zh-Hant), or an English name.

    A well-formed code (xxx_Scrp) that is not in the table is accepted unchanged. Raises ConfigError, with similar names, for
    anything else.
    """
    tag = code.strip().replace("-", "_")
    code = tag if _TAG.fullmatch(tag.lower()) else code
    if code in LANGUAGES:
        return LANGUAGES[code]
    wanted = code.strip().lower()
    if wanted in _ALSO:
        return LANGUAGES[_ALSO[wanted]]
    for language in (*LANGUAGES.values(), *_NOT_ONE):  # one ISO code can stand for several scripts; the first in the table wins
        if wanted in (language.iso1, language.iso3, language.name.lower(), language.code.lower()):
            return language
    if _CODE.fullmatch(code):
        return Language(code, None, code)
    if (parts := _TAG.fullmatch(wanted)) and len(parts[1]) == 2:
        short, script = parts[1], parts[2].title()
        return find(_IN_SCRIPT.get(f"{short}_{script}") or f"{find(short).iso3}_{script}")
    for other in same(wanted)[1:]:
        if row := next((row for row in LANGUAGES.values() if row.iso3 == other), None):
            return row
    names = {w for row in LANGUAGES.values() for w in (row.code, row.iso3, row.name.lower()) if w} | _ALSO.keys()
    raise ConfigError(
        f"unknown language {code!r:.60}.{near(wanted, names)} Write fra_Latn (FLORES-200), fr, fra or French, or any code of "
        "ISO 639-3 with its script (ISO 15924), such as quz_Latn."
    )


def same(iso3: str) -> tuple[str, ...]:
    """All codes of a language in `_SAME`, the one that is given first."""
    others = next((group for group in _GROUPS if iso3 in group), ())
    return (iso3, *(other for other in others if other != iso3))


def members(iso3: str) -> frozenset[str]:
    """The codes of all languages of the macrolanguages that a language, which may be one itself, is in; empty when in none."""
    codes = set(same(iso3))
    return frozenset(code for macro, inner in _MACRO.items() if codes & {macro, *inner} for code in (macro, *inner))


def is_macro(iso3: str) -> bool:
    """Whether a code is that of a macrolanguage of which no single language is the usual one."""
    return iso3 in _MACRO


def plain(label: str) -> str:
    """A label without its prefix, with _ before the script."""
    return label.removeprefix("__label__").replace("-", "_")


def by_wikipedia(labels: Iterable[str]) -> bool:
    """Whether the labels of a model are the names of Wikipedias: two letters where ISO 639-1 has them."""
    return any(len(plain(label)) == 2 for label in labels)


def code_in(label: str, wikipedias: bool) -> str:
    """The language code that a label, without its script, stands for in a model (see `by_wikipedia`)."""
    base = plain(label).split("_")[0]
    return _WIKIPEDIAS.get(base, (base,))[0] if wikipedias else base


def of_label(label: str, labels: Iterable[str]) -> Language | None:
    """The language that a label of a model stands for, so that `label_of` finds the label; None when it is not known."""
    every = list(labels)
    _, _, script = plain(label).partition("_")
    base = code_in(label, by_wikipedia(every))
    try:
        found = find(f"{base}_{script}" if script else base)
        return found if plain(label_of(found, every)) == plain(label) else None
    except ConfigError:
        return None


def label_of(language: Language, labels: Iterable[str]) -> str:
    """The label of `labels` that a language-ID model uses for `language`, possibly with a prefix.

    Known forms are fra_Latn, fr_Latn, fra and fr, with any code of the language (zho or cmn), and with the script or one that
    contains it (Hans or Hani). Raises ConfigError, with similar labels, when there is none or more than one fits equally well.
    """
    known = {plain(label): label for label in labels}
    codes, script = same(language.iso3), language.code[4:]
    named = {name: set(codes) & set(mine) for name, mine in _WIKIPEDIAS.items() if by_wikipedia(known)}
    known = {name: label for name, label in known.items() if named.get(name, True)}  # without those of other languages
    # Two-letter codes are those of the table, also for another script or variety of a language there, such as zho_Hant.
    short = [language.iso1] if language.iso1 else [row.iso1 for row in LANGUAGES.values() if row.iso3 in codes and row.iso1]
    short += [name for name, mine in named.items() if mine]
    scripts = [other for group in _SCRIPTS if script in group for other in group if script == group[0] or other == group[0]]
    tiers = [
        [f"{code}_{script}" for code in codes],
        [f"{code}_{script}" for code in short],
        [f"{code}_{other}" for code in (*codes, *short) for other in scripts if other != script],
        short,
        codes,
    ]
    for tier in tiers:
        fits = [name for name in tier if name in known]
        if len(fits) > 1 and fits[0] != language.code and len({name[-4:] for name in fits if "_" in name}) > 1:
            raise ConfigError(f"the language-ID model has {' and '.join(fits)} for {language.code}; name one of them")
        if fits:
            return known[fits[0]]
    others = [name for name in known if name.split("_")[0] in (*codes, *short)]
    hint = f" It has: {', '.join(others[:5])}." if others else near(language.code, known) or near(language.iso3, known)
    raise ConfigError(
        f"the language-ID model has no label for {language.code} ({language.name}).{hint} asset:glotlid has 2,102; if no model "
        "has one, identify: false at its sources keeps all of their text"
    )
