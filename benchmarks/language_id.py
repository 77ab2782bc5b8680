"""How well text is kept by language: langext's rule, the plain first choice, and datatrove's LanguageFilter with its default.

    python benchmarks/language_id.py asset:lid.176 --text texts --labelled sentences.jsonl.gz noisy.jsonl.gz

`--text` is a folder of clean corpora, <language>.<name>.jsonl[.gz], one document {"text"} a line. `--labelled` are sets of
{"text", "lang"} and, if you like, {"kind"}; lang is a code that langext knows, or und for what is no language. Five tables:

- precision, recall and F1 for each language of each set. One language after the other is taken to be the source, with all texts
  of it and the same number of others, drawn at random: langext finds its cut in that mixture. The figures are of the whole set.
- for each language of the first set, how often the first choice is right: single texts, and four in a row. Those of which it
  is for at least 95 % of the fours are `TOLD` in langext/cli/first_language.py.
- for pairs of near neighbours of the first set, the same with the one mixed into the other: single texts, and four in a row.
- characters kept of every clean corpus.
- mixtures: every corpus with 10, 30 and 50 % of documents from each other language of the corpora, and from all languages of
  the first set: characters of its own that are kept, and of the others that are dropped.

datatrove's rule keeps a text whose first choice is the language with a probability of more than 0.65
(https://github.com/huggingface/datatrove/blob/main/src/datatrove/pipeline/filters/language_filter.py); the same predictions,
of the same text, serve for all three.
"""

import argparse
import contextlib
import gzip
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from langext import languages
from langext.data import assets, cuts, neighbours, rules
from langext.data.halves import mend
from langext.data.language_id import Guesses, LanguageId
from langext.data.verdict import Rule
from langext.errors import ConfigError

DATATROVE = 0.65
MIXED = (0.1, 0.3, 0.5)
TOGETHER = (1, 4)
"""How many texts are joined to one, where near neighbours are told apart."""
COUNT = 4
"""Guesses for each text: as many as a rule may need."""


@dataclass(frozen=True)
class Text:
    """A text that the model has seen."""

    language: str
    kind: str
    text: str
    guesses: Guesses

    @property
    def size(self) -> int:
        return len(self.text)


Judge = Callable[[Text], bool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a fastText file, asset:lid.176 or asset:glotlid")
    parser.add_argument("--text", type=Path, help="folder of clean corpora")
    parser.add_argument("--labelled", type=Path, nargs="*", default=[], help="sets of texts with their languages")
    parser.add_argument("--most", type=int, default=2000, help="most documents of a corpus, its first ones")
    asked = parser.parse_args()
    named = asked.model.startswith(assets.PREFIX)
    lid = LanguageId(assets.resolve(asked.model) if named else Path(asked.model))
    sets = {path.name: list(read(lid, path)) for path in asked.labelled}
    corpora = {}
    for path in sorted(asked.text.glob("*.jsonl*")) if asked.text else []:
        corpora[path.name.split(".jsonl")[0]] = list(read(lid, path, path.name.split(".")[0], asked.most))
    for name, texts in sets.items():
        print(f"\n## {name}: precision / recall / F1\n")
        scores(lid, texts)
        recalls(lid, texts)
    if sets:
        print("\n## First choice right, % of single texts, and of four in a row\n")
        told(lid, next(iter(sets.values())))
        print("\n## Near neighbours, 30 % mixed in: % of the characters of its own kept / of the neighbour's dropped\n")
        pairs(lid, next(iter(sets.values())))
    if corpora:
        print("\n## Characters kept of clean corpora, %\n")
        clean(lid, corpora)
        print("\n## Mixtures: % of its own characters kept / of the others dropped\n")
        mixtures(lid, corpora, next(iter(sets.values()), []))


def read(lid: LanguageId, path: Path, language: str | None = None, most: int | None = None) -> Iterator[Text]:
    """The first `most` texts of a file, or all, with what the model takes them for."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, most)]
    for start in range(0, len(rows), cuts.BATCH):
        batch = rows[start : start + cuts.BATCH]
        for row, guesses in zip(batch, lid.guesses([mend(row["text"]) for row in batch], COUNT), strict=True):
            yield Text(code(language or row["lang"]), row.get("kind", ""), row["text"], guesses)


def code(language: str) -> str:
    """The code of a language; `und` and languages that langext does not know stay what they are."""
    with contextlib.suppress(ConfigError):
        return languages.find(language).code
    return language


def judges(lid: LanguageId, language: str, source: Sequence[Text]) -> dict[str, Judge]:
    """The three rules for a language; the first finds its cut in `source`. Raises ConfigError for one that is unknown."""
    found = rules.labels_of([language], lid.labels())
    rule = rules.rule_of(language, found, lid.labels(), [])
    cut = cuts.find(rule, "auto", [(text.size, text.guesses) for text in source])
    return {"langext": kept_by(cuts.applied(rule, cut)), "first choice": kept_by(Rule(rule.own)),
            "datatrove": kept_by(Rule(rule.own, score=DATATROVE))}  # fmt: skip


def kept_by(rule: Rule) -> Judge:
    return lambda text: rule.verdict(text.text, text.guesses).kept


def scores(lid: LanguageId, texts: Sequence[Text]) -> None:
    """Print precision, recall and F1 of each language, and their means."""
    dice, means, unknown = random.Random(1), defaultdict(list), []
    print("| language | langext | first choice | datatrove |\n| --- | --- | --- | --- |")
    for language in sorted({text.language for text in texts} - {"und"}):
        own = [text for text in texts if text.language == language]
        others = [text for text in texts if text.language != language]
        try:
            made = judges(lid, language, [*own, *dice.sample(others, min(len(own), len(others)))])
        except ConfigError:
            unknown.append(language)
            continue
        cells = []
        for name, keep in made.items():
            right, wrong = sum(map(keep, own)), sum(map(keep, others))
            precision, recall = right / max(1, right + wrong), right / len(own)
            f1 = 2 * right / (len(own) + right + wrong)
            means[name].append((precision, recall, f1))
            cells.append(f"{precision:.3f} / {recall:.3f} / {f1:.3f}")
        print(f"| {language} | {' | '.join(cells)} |")
    shown = [" / ".join(f"{sum(column) / len(rows):.3f}" for column in zip(*rows, strict=True)) for rows in means.values()]
    print(f"| **mean of {len(next(iter(means.values()), []))}** | {' | '.join(shown)} |")
    if unknown:
        print(f"\nThe model has no label for {', '.join(unknown)}: their texts only count as others.")


def recalls(lid: LanguageId, texts: Sequence[Text]) -> None:
    """Print, for a set with kinds, what is kept of each kind by the rules of its language; of `und`, by any language's."""
    kinds = Counter(text.kind for text in texts)
    if len(kinds) < 2:
        return
    made = {}
    for language in sorted({text.language for text in texts} - {"und"}):
        with contextlib.suppress(ConfigError):
            made[language] = judges(lid, language, [text for text in texts if text.language == language])
    print("\n| kind | texts | langext | first choice | datatrove |\n| --- | --- | --- | --- | --- |")
    for kind in sorted(kinds):
        of_kind = [text for text in texts if text.kind == kind and (text.language in made or text.language == "und")]
        cells = []
        for name in ("langext", "first choice", "datatrove"):
            kept = sum(
                any(rule[name](text) for rule in made.values()) if text.language == "und" else made[text.language][name](text)
                for text in of_kind
            )
            noise = of_kind[0].language == "und"
            cells.append(f"{100 * kept / len(of_kind):.1f} %" + " (noise, kept by the source of any language)" * noise)
        print(f"| {kind} | {len(of_kind)} | {' | '.join(cells)} |")


def told(lid: LanguageId, texts: Sequence[Text]) -> None:
    """Print how often the first choice is right, for each language that the model has a label for."""
    print(f"| language | {' | '.join(map(str, TOGETHER))} |\n| --- | --- | --- |")
    for language in sorted({text.language for text in texts} - {"und"}):
        with contextlib.suppress(ConfigError):
            own, cells = rules.own(language, lid.labels()), []
            for number in TOGETHER:
                joined = in_a_row(lid, texts, language, number)
                cells.append(f"{100 * sum(text.guesses[0][0] in own for text in joined) / len(joined):.1f}")
            print(f"| {language} | {' | '.join(cells)} |")


def pairs(lid: LanguageId, texts: Sequence[Text]) -> None:
    """Print what the margins do, for each pair of which the first choice lets through more than 1 % of the neighbour."""
    dice = random.Random(3)
    print("| language + neighbour | texts | langext | first choice | datatrove |\n| --- | --- | --- | --- | --- |")
    for number in TOGETHER:
        joined = {language: in_a_row(lid, texts, language, number) for language in sorted({text.language for text in texts})}
        for language, own in joined.items():
            with contextlib.suppress(ConfigError):
                near = neighbours.near(languages.find(language), lid.labels())
                found = rules.labels_of([language], lid.labels())
                rivals = [other for other in joined if named(lid, other) in near - {found[language]}]
                for rival in rivals:
                    made = judges(lid, language, [*own, *mixed_in(own, joined[rival], 0.3, dice)])
                    if share(joined[rival], made["first choice"]) > 1:
                        cells = [f"{share(own, keep):.1f} / {100 - share(joined[rival], keep):.1f}" for keep in made.values()]
                        print(f"| {language} + {rival} | {number} | {' | '.join(cells)} |")


def named(lid: LanguageId, language: str) -> str:
    """The model's label of a language; empty when it has none."""
    with contextlib.suppress(ConfigError):
        return rules.labels_of([language], lid.labels()).get(language, "")
    return ""


def in_a_row(lid: LanguageId, texts: Sequence[Text], language: str, number: int) -> list[Text]:
    """The texts of a language, every `number` of them joined to one."""
    own = [text.text for text in texts if text.language == language]
    joined = ["\n".join(own[start : start + number]) for start in range(0, len(own), number)]
    return [Text(language, "", text, guesses) for text, guesses in zip(joined, lid.guesses(joined, COUNT), strict=True)]


def share(texts: Sequence[Text], keep: Judge) -> float:
    """Share of the characters that is kept, in percent."""
    return 100 * sum(text.size for text in texts if keep(text)) / max(1, sum(text.size for text in texts))


def clean(lid: LanguageId, corpora: dict[str, list[Text]]) -> None:
    """Print what is kept of each corpus, with the cut that was found in it."""
    print("| corpus | documents | langext | first choice | datatrove |\n| --- | --- | --- | --- | --- |")
    for name, texts in corpora.items():
        cells = [f"{share(texts, keep):.2f}" for keep in judges(lid, texts[0].language, texts).values()]
        print(f"| {name} | {len(texts)} | {' | '.join(cells)} |")


def mixtures(lid: LanguageId, corpora: dict[str, list[Text]], labelled: Sequence[Text]) -> None:
    """Print the worst and the mean corpus for each pair of a language and what is mixed into it."""
    dice = random.Random(2)
    pools: dict[str, list[Text]] = defaultdict(list)
    for texts in corpora.values():
        pools[texts[0].language] += texts
    print("| language + what | part | langext: worst, mean | first choice | datatrove |\n| --- | --- | --- | --- | --- |")
    for language in sorted(pools):
        others = {name: pool for name, pool in pools.items() if name != language}
        if labelled:
            others["labelled set"] = [text for text in labelled if text.language not in (language, "und")]
        for other, pool in others.items():
            for part in MIXED:
                found: dict[str, list[tuple[float, float]]] = defaultdict(list)
                for texts in (texts for texts in corpora.values() if texts[0].language == language):
                    foreign = mixed_in(texts, pool, part, dice)
                    for name, keep in judges(lid, language, [*texts, *foreign]).items():
                        found[name].append((share(texts, keep), 100 - share(foreign, keep)))
                cells = []
                for pairs in found.values():
                    worst, mean = ([f(column) for column in zip(*pairs, strict=True)] for f in (min, lambda c: sum(c) / len(c)))
                    cells.append(f"{worst[0]:.1f} / {worst[1]:.1f}, {mean[0]:.1f} / {mean[1]:.1f}")
                print(f"| {language} + {other} | {part:.0%} | {' | '.join(cells)} |")


def mixed_in(texts: Sequence[Text], pool: Sequence[Text], part: float, dice: random.Random) -> list[Text]:
    """Documents of other languages that make `part` of all documents, but no more than there are."""
    return dice.sample(pool, min(len(pool), max(1, round(len(texts) * part / (1 - part)))))


if __name__ == "__main__":
    main()
