"""What two collections of text on the hub call languages: FineWeb-2 and Wikipedia. Both have text in hundreds of them."""

from langext.languages import Language

_FINEWEB = {
    "zho_Hans": "cmn_Hani", "zho_Hant": "cmn_Hani", "est_Latn": "ekk_Latn", "pes_Arab": "fas_Arab", "tgl_Latn": "fil_Latn",
    "grn_Latn": "gug_Latn", "kom_Cyrl": "kpv_Cyrl", "kon_Latn": "kng_Latn", "aka_Latn": "twi_Latn",
}  # fmt: skip
_OTHERWISE = {"nob": "no", "zho": "zh", "yue": "zh-yue", "gsw": "als", "cbk": "cbk-zam", "bho": "bh"}
"""Code of ISO 639-3 -> that of the Wikipedia, where neither this nor the code of two letters is that."""
_BY_ISO3 = frozenset(
    "ace arz ary ast awa azb ban bar bcl bjn bpy bug bxr ceb ckb crh diq dsb dty eml frr fur gom hif hsb ilo jbo kab kbp krc "
    "lez lij lmo ltg mai mhr min mni mrj mwl myv mzn nah nap nds new nso pag pam pap pfl pms pnb rue sah sat scn sco shn szl "
    "tpi tum tyv vec vep vls war wuu xal xmf".split()
)
"""Codes of ISO 639-3 that are those of Wikipedias."""
_NONE = frozenset("aa ae cr ho hz ii kj kr lu mh nd ng nr oj".split())
"""Codes of two letters without a Wikipedia, or with one that was closed."""


def fineweb(code: str) -> str:
    """The configuration of a language in https://huggingface.co/datasets/HuggingFaceFW/fineweb-2."""
    return _FINEWEB.get(code, code)


def wikipedia(language: Language) -> str | None:
    """The code of a language in https://huggingface.co/datasets/wikimedia/wikipedia (as of 2023-11-01); None without one.

    See https://meta.wikimedia.org/wiki/List_of_Wikipedias.
    """
    if language.iso3 in _OTHERWISE:
        return _OTHERWISE[language.iso3]
    if language.iso3 in _BY_ISO3:
        return language.iso3
    return None if language.iso1 in _NONE else language.iso1
