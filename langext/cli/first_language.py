"""What `langext init` asks of language identification: which model knows the languages, and whether text is in its language.

The one rule: nothing is fetched for it; without a model on this machine only the script of the text is looked at.
"""

from collections import Counter
from collections.abc import Sequence

from langext import languages as table
from langext.data import assets, rules, verdict
from langext.data.language_id import LanguageId
from langext.errors import ConfigError
from langext.languages import Language

GLOTLID, LID_176 = "asset:glotlid", "asset:lid.176"
JUDGED = 200
"""Most texts that are judged."""


def has_label(model: str, languages: Sequence[Language]) -> bool:
    """Whether a model for language identification is on this machine and knows all of these languages."""
    try:
        labels = LanguageId(assets.resolve(model), "auto").labels()
        for language in languages:
            table.label_of(language, labels)
    except ConfigError:  # not fetched, or without a label for one of them
        return False
    return True


def doubt(texts: Sequence[str], language: Language) -> str:
    """What speaks against texts being in a language, by their script and by a model's first choices; "" when nothing does."""
    some = list(texts[:JUDGED])
    script = language.code[4:]
    strange = [text for text in some if verdict.parts(script) and not verdict.in_script(text, script)]
    if 2 * len(strange) > len(some):
        return f"{len(strange) / len(some):.0%} of its texts are not in the script of {language.name} ({script})"
    model = next((name for name in (LID_176, GLOTLID) if has_label(name, [language])), None)
    if model is None:
        return ""
    lid = LanguageId(assets.resolve(model), "auto")
    own = rules.own(language.code, lid.labels())
    found = Counter(guesses[0][0] for guesses in lid.guesses(some, 1) if guesses)
    if not found or 2 * sum(found[label] for label in own) >= found.total():
        return ""
    label, most = found.most_common(1)[0]
    return f"{model} takes {most / found.total():.0%} of its texts for {label}, not for {language.name}"
