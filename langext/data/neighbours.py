"""Languages so close that a language-identification model takes one for the other, and what a model calls them.

The one rule: a group holds languages in one script that share most of their frequent words. What models really take for one
another of these is measured by benchmarks/language_id.py; the shared tasks on similar languages are the background
(https://aclanthology.org/2022.vardial-1.9).
"""

from collections.abc import Iterable

from langext import languages
from langext.languages import LANGUAGES, Language

PREFIX = "__label__"
_CLOSE = """
ces slk|nob nno dan swe fao|hrv srp bos hbs slv|mkd bul|rus ukr bel|pol szl csb|ind zsm jav min bjn ban sun
spa glg cat ast oci arg|por glg spa|cat oci fra|fra oci wln pcd frp|ita scn vec lmo lij pms nap fur srd cos
afr nld lim fry|deu ltz gsw bar nds lim
ekk fin vro|lvs ltg lit|tur azj gag crh tuk|uzn tuk kaz|tat bak kaz kir|hin mar npi bho mai mag awa hne san|ben asm|urd pnb hin
pes prs tgk|arb arz ary aeb acm apc ajp acq ars|amh tir|zul xho ssw nbl|sot tsn nso|kin run|swh swc|tso ssw|lug nyn
tgl ceb ilo war hil bcl|cmn yue wuu lzh|jpn cmn|bod dzo|kmr diq|lua kon lin|aka twi|smo ton|nya tum|eng sco|gle gla|quy quz
"""
_GROUPS = [frozenset(group.split()) for group in _CLOSE.strip().replace("\n", "|").split("|")]
_SHORT = {row.iso1: row.iso3 for row in LANGUAGES.values() if row.iso1}


def language_of(label: str, wikipedias: bool = False) -> str:
    """The code that stands for the language of a model's label: the same for `no`, `nb` and `nor_Latn`.

    `wikipedias` is what `languages.by_wikipedia` says of the model.
    """
    base = languages.code_in(label, wikipedias)
    return _one(_SHORT.get(base, base))


def _one(iso3: str) -> str:
    """One code for all codes of a language: the first of `languages.same`, in the order of the alphabet."""
    return min(languages.same(iso3))


def _close(iso3: str) -> set[str]:
    wanted = set(languages.same(iso3))
    return {_one(code) for group in _GROUPS if wanted & group for code in group} - {_one(iso3)}


def near(language: Language, labels: Iterable[str]) -> frozenset[str]:
    """Those of a model's labels that stand for near neighbours of `language`, without their prefix."""
    close, every = _close(language.iso3), list(labels)
    wikipedias = languages.by_wikipedia(every)
    return frozenset(label.removeprefix(PREFIX) for label in every if language_of(label, wikipedias) in close)


def wholes(language: Language, labels: Iterable[str], run: Iterable[str]) -> frozenset[str]:
    """Those of a model's labels that stand for the macrolanguage of `language` as a whole, without their prefix.

    None where another language of it is of the `run`: then such a label does not say which of them it is.
    """
    mine = languages.members(language.iso3)
    if any(languages.find(code).iso3 in mine and languages.find(code).iso3 != language.iso3 for code in run):
        return frozenset()
    wanted = {_one(code) for code in mine if languages.is_macro(code)}
    script = language.code[4:]
    named = (label.removeprefix(PREFIX) for label in labels if language_of(label) in wanted)
    return frozenset(label for label in named if languages.plain(label).partition("_")[2] in ("", script))


def twins(label: str, labels: Iterable[str]) -> frozenset[str]:
    """`label` and the labels of the same model that stand for the same language in the same script, without their prefix.

    A model may have swh_Latn and swa_Latn. Two-letter labels have no twins: what they say is one language each.
    """
    own = label.removeprefix(PREFIX)
    base, _, script = own.partition("_")
    if len(base) == 2:
        return frozenset([own])
    named = (other.removeprefix(PREFIX) for other in labels)
    same = {other for other in named if len(other.split("_")[0]) == 3 and other.partition("_")[2] == script}
    return frozenset(other for other in same if language_of(other) == language_of(own)) | {own}
