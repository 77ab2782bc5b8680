"""What a language-identification model calls the languages of a run, and the rule for each of them.

The one rule: the labels are looked up when the run is planned. An unknown code, or a label that cannot tell two languages of
the run apart, is an error there, not a filter that drops or keeps everything.
"""

from collections.abc import Iterable, Sequence

from langext import languages
from langext.data import neighbours
from langext.data.neighbours import PREFIX
from langext.data.verdict import Rule, parts
from langext.errors import ConfigError


def labels_of(codes: Iterable[str], labels: Sequence[str]) -> dict[str, str]:
    """The label, without its prefix, of each language; many languages together, and none, have no label.

    Raises ConfigError when the model has none for a language, or one for two that are not written in different scripts.
    """
    every = [language for language in map(languages.find, dict.fromkeys(codes)) if language.single]
    found = {language.code: languages.label_of(language, labels).removeprefix(PREFIX) for language in every}
    for code, label in found.items():
        rivals = _sharing(code, found)
        if rivals and any(not _apart(code, other) for other in rivals):
            raise ConfigError(
                f"the language-ID model has one label, {label}, for {' and '.join([code, *rivals])}, and their script does not "
                f"tell them apart; {_advice(code, rivals)}"
            )
    return found


def own(code: str, labels: Sequence[str]) -> frozenset[str]:
    """All labels of the model that stand for a language. Raises ConfigError when it has none."""
    return neighbours.twins(labels_of([code], labels)[languages.find(code).code], labels)


def rule_of(code: str, found: dict[str, str], labels: Sequence[str], run: Iterable[str]) -> Rule:
    """The rule for a language before any cut: its labels, its near neighbours, and the other languages of the `run`.

    Its script counts where the label of the model does not say it.
    """
    language, run = languages.find(code), list(run)
    own = neighbours.twins(found[code], labels) | neighbours.wholes(language, labels, run)
    near = neighbours.near(language, labels) - own
    others = {found[other] for other in run if other in found} - own
    says = "_" in languages.plain(found[code]) and not _sharing(code, found)
    return Rule(own, near, near | others, script=code[4:] if parts(code[4:]) and not says else "")


def _sharing(code: str, found: dict[str, str]) -> list[str]:
    return [other for other, label in found.items() if label == found[code] and other != code]


def _advice(code: str, rivals: Sequence[str]) -> str:
    """What to do where text of a language would be taken for text of its `rivals`."""
    if any(code[:3] != other[:3] for other in rivals):
        return "take a model that knows each of them (lid_model: asset:glotlid), or leave one out"
    return (
        f"asset:glotlid has one label for them, too. Give all of it the one code {code}, and it is one language here, or take "
        "text of one of them alone"
    )


def _apart(code: str, other: str) -> bool:
    """Whether text shows which of two languages it is by its script."""
    here, there = set(parts(code[4:])), set(parts(other[4:]))
    return bool(here) and bool(there) and not here & there
