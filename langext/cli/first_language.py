"""What `langext init` asks of language identification: which model knows the languages, and whether text is in its language.

The one rule: nothing is fetched for it; without a model on this machine only the script of the text is looked at.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from langext.data import assets, rules, verdict
from langext.data.language_id import LanguageId
from langext.errors import ConfigError
from langext.languages import Language

GLOTLID, LID_176 = "asset:glotlid", "asset:lid.176"
JUDGED = 200
"""Most texts that are judged."""
TOLD = frozenset(
    "als_Latn amh_Ethi arb_Arab azj_Latn bel_Cyrl ben_Beng bul_Cyrl cat_Latn ces_Latn cym_Latn dan_Latn deu_Latn "
    "ell_Grek eng_Latn epo_Latn est_Latn eus_Latn fin_Latn fra_Latn gle_Latn guj_Gujr heb_Hebr hin_Deva hrv_Latn "
    "hun_Latn hye_Armn ind_Latn isl_Latn ita_Latn jpn_Jpan kat_Geor kaz_Cyrl khk_Cyrl kor_Hang lat_Latn lit_Latn "
    "lvs_Latn mar_Deva mkd_Cyrl nld_Latn nob_Latn pan_Guru pes_Arab pol_Latn por_Latn ron_Latn rus_Cyrl sin_Sinh "
    "slk_Latn slv_Latn spa_Latn srp_Cyrl swe_Latn swh_Latn tam_Taml tel_Telu tgl_Latn tha_Thai tur_Latn ukr_Cyrl "
    "urd_Arab vie_Latn zho_Hans".split()
)
"""Languages that lid.176 tells from others: its first choice was right for at least 95 % of texts of four sentences. That a
model has a label says little: of Yoruba it is right for 6 % (docs/data.md#measured)."""


def model_for(languages: Sequence[Language]) -> str:
    """The smallest model for language identification that tells all of these languages."""
    return LID_176 if all(language.code in TOLD for language in languages) else GLOTLID


def _judge(language: Language) -> tuple[str, LanguageId, frozenset[str]] | None:
    """The name of a model on this machine that tells a language, the model, and its labels for it; None where none is here."""
    for name in dict.fromkeys((model_for([language]), GLOTLID)):
        with suppress(ConfigError):  # not fetched, or without a label
            lid = LanguageId(assets.resolve(name), "auto")
            return name, lid, rules.own(language.code, lid.labels())
    return None


def doubt(texts: Sequence[str], language: Language) -> str:
    """What speaks against texts being in a language, by their script and by a model's first choices; "" when nothing does."""
    some = list(texts[:JUDGED])
    script = language.code[4:]
    strange = [text for text in some if verdict.parts(script) and not verdict.in_script(text, script)]
    if 2 * len(strange) > len(some):
        return f"{len(strange) / len(some):.0%} of its texts are not in the script of {language.name} ({script})"
    judge = _judge(language)
    if judge is None:
        return ""
    model, lid, own = judge
    found = Counter(guesses[0][0] for guesses in lid.guesses(some, 1) if guesses)
    right = sum(found.pop(label, 0) for label in own)
    if right >= found.total():
        return ""
    label, most = found.most_common(1)[0]
    judged = right + found.total()
    return f"{model} takes {right / judged:.0%} of its texts for {language.name}, and {most / judged:.0%} for {label}"
