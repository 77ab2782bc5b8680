"""What is kept as text of a language: by the first choice, the cut of the source itself, and the margin to neighbours."""

import math
import random
import sys

import pytest

from langext.data import cuts, neighbours, rules, verdict
from langext.data.language_filter import units
from langext.data.verdict import Rule, in_script, together
from langext.errors import ConfigError
from langext.languages import find

LID176 = ["sw", "en", "fr", "cs", "sk", "no", "nn", "da", "sv", "hr", "sr", "sh", "bs", "zh", "ja", "de", "eu"]
GLOTLID = [
    "swh_Latn",
    "swa_Latn",
    "cmn_Hani",
    "yue_Hani",
    "ekk_Latn",
    "eng_Latn",
    "ces_Latn",
    "slk_Latn",
    "nob_Latn",
    "dan_Latn",
]


def guess(label, score, other="en", rest=None):
    return [(label, score), (other, (1 - score) / 2 if rest is None else rest)]


def source(median, spread, count, seed=1, label="sw"):
    """A sample of a source: scores that are normal in log odds, as those of real sources are."""
    dice = random.Random(seed)
    middle = math.log(median / (1 - median))
    return [(1000, guess(label, 1 / (1 + math.exp(-dice.gauss(middle, spread))), "xx", 0.0)) for _ in range(count)]


SW = Rule(frozenset({"sw"}), frozenset({"swc"}), frozenset({"swc", "en"}))


@pytest.mark.parametrize(("median", "spread"), [(0.45, 0.25), (0.37, 0.4), (0.9, 0.8), (0.99, 0.5)])
@pytest.mark.parametrize("mixed", [0.0, 0.1, 0.3])
def test_the_cut_keeps_a_source_and_drops_what_is_mixed_in(median, spread, mixed):
    """Text of a language that the model does not know is taken for the source's at a low score."""
    own = source(median, spread, 600)
    other = source(0.04, 0.3, int(600 * mixed / (1 - mixed)), seed=2)  # all of it taken for sw: the worst case
    cut = cuts.find(SW, "auto", [*own, *other])
    rule = cuts.applied(SW, cut)
    kept = [sum(rule.verdict("text", guesses).kept for _, guesses in part) for part in (own, other)]
    assert kept[0] >= 0.97 * len(own)
    assert cut.score <= cuts.MOST_SCORE and kept[1] <= 0.03 * len(other)


def test_a_file_of_another_kind_in_a_source_is_not_lost_for_being_less_sure():
    """A tenth of the text; what the model takes for another language, in a file of its own, does not lower the cut."""
    usual, other = source(0.6, 0.3, 900), source(0.35, 0.3, 100, seed=2)
    foreign = [*source(0.9, 0.3, 300, seed=3, label="en"), *source(0.04, 0.3, 60, seed=4)]
    for wrong in ([], foreign):
        parts = [usual, other, *([wrong] if wrong else [])]
        rows = [row for part in parts for row in part]
        kept = []
        for cut in (cuts.find(SW, "auto", rows), cuts.find(SW, "auto", *parts)):
            rule = cuts.applied(SW, cut)
            kept.append([sum(rule.verdict("text", guesses).kept for _, guesses in part) / len(part) for part in parts])
        assert kept[0][1] < 0.95 and min(kept[1][:2]) >= 0.97
        assert not wrong or kept[1][2] < 0.03
    same = [source(0.6, 0.3, 200, seed=seed) for seed in range(4)]
    rows = [row for part in same for row in part]
    assert cuts.find(SW, "auto", *same) == cuts.find(SW, "auto", rows)


def test_an_absolute_threshold_of_before_throws_the_unsure_language_away_and_is_stopped():
    own = source(0.45, 0.25, 300)
    cut = cuts.find(SW, 0.65, own)
    assert (cut.rule, cut.score, cut.margins, cut.right_frac) == ("threshold", 0.65, {}, 1.0) and cut.kept_frac < 0.03
    with pytest.raises(ConfigError, match=r"source news: .*swh_Latn, only \d % is kept \(min_kept: 0.5\).*leave threshold out"):
        cuts.demand("news", "swh_Latn", cut, cut.kept_frac, 0.5)
    cuts.demand("news", "swh_Latn", cut, cut.kept_frac, 0.0)
    cuts.demand("news", "swh_Latn", cuts.find(SW, 0.65, source(0.5, 1, 9, label="en")), 0.0, 0.5)  # nothing is right


def test_the_cut_of_a_clean_source_may_always_cost_a_hundredth_of_it_and_no_more():
    """Scores of short text are wide: three standard deviations below the median there is code and noise too."""
    own = source(0.9, 1.8, 1000)
    cut = cuts.find(SW, "auto", own)
    assert 0.985 <= cut.kept_frac < 0.995 and 0.05 < cut.score < cuts.MOST_SCORE
    wide = [(1_000_000 if number == 0 else size, guesses) for number, (size, guesses) in enumerate(sorted(own, key=str))]
    assert cuts.find(SW, "auto", wide).kept_frac > 0.99  # characters count, not documents


def test_few_texts_are_judged_by_the_first_choice_alone():
    cut = cuts.find(SW, "auto", source(0.9, 0.8, cuts.ENOUGH - 1))
    assert (cut.score, cut.margins, cut.sampled) == (0.0, {}, cuts.ENOUGH - 1)


def near(ratios, label="cs", other="sk", size=1000):
    return [(size, [(label, 0.6), (other, 0.6 / ratio)]) for ratio in ratios]


def test_a_margin_costs_a_source_little_and_is_wide_where_the_model_is_sure():
    rule = rules.rule_of("ces_Latn", {"ces_Latn": "cs"}, LID176, [])
    dice = random.Random(3)
    sure = cuts.find(rule, "auto", near([math.exp(dice.gauss(4, 0.5)) for _ in range(400)]))
    unsure = cuts.find(rule, "auto", near([math.exp(abs(dice.gauss(0, 1))) for _ in range(400)]))
    assert sure.margins == {"sk": cuts.MOST_MARGIN} and 1 < unsure.margins["sk"] < 1.1 and unsure.kept_frac >= 0.98
    judge = cuts.applied(rule, sure).verdict
    assert judge("x", [("cs", 0.5), ("sk", 0.2)]).reason == "close_to_sk"
    assert judge("x", [("cs", 0.5), ("pl", 0.2)]).kept  # Polish is no neighbour
    lost = judge("x", [("sk", 0.5), ("cs", 0.4)])
    assert (lost.reason, lost.right, lost.label, lost.runner_up, lost.runner_up_score) == (
        "neighbour_sk",
        False,
        "sk",
        "cs",
        0.4,
    )
    assert judge("x", [("de", 0.5), ("cs", 0.4)]).reason == "language_de"


def test_the_order_of_reasons():
    rule = Rule(frozenset({"sw"}), score=0.3, script="Latn")
    assert rule.verdict(" \n", guess("sw", 0.9)).reason == "empty"
    assert rule.verdict("1 2", []).reason == "language_none"
    assert rule.verdict("мтото", guess("sw", 0.9)).reason == "script"
    assert rule.verdict("mtoto", guess("sw", 0.29, rest=0.1)).reason == "low_score"
    assert rule.verdict("mtoto", guess("sw", 0.31, rest=0.1)).kept


def test_all_labels_of_one_language_count_together():
    found = rules.labels_of(["sw", "zho_Hans", "et"], GLOTLID)
    assert found == {"swh_Latn": "swh_Latn", "zho_Hans": "cmn_Hani", "est_Latn": "ekk_Latn"}
    rule = rules.rule_of("swh_Latn", found, GLOTLID, found)
    assert rule.own == {"swh_Latn", "swa_Latn"} and rule.count == 3 and rule.rivals >= {"cmn_Hani", "ekk_Latn"}
    assert rule.verdict("x", [("eng_Latn", 0.4), ("swa_Latn", 0.35), ("swh_Latn", 0.2)]).kept
    assert rule.verdict("x", [("eng_Latn", 0.4), ("swa_Latn", 0.25)]).reason == "language_eng_Latn"


@pytest.mark.parametrize(
    ("code", "labels", "expected"),
    [
        ("ces_Latn", LID176, {"sk"}),
        ("nob_Latn", LID176, {"nn", "da", "sv"}),
        ("hrv_Latn", LID176, {"sr", "sh", "bs"}),
        ("dan_Latn", GLOTLID, {"nob_Latn"}),
        ("zho_Hans", GLOTLID, {"yue_Hani"}),
        ("swh_Latn", LID176, set()),
    ],
)
def test_neighbours_are_found_whatever_the_model_calls_them(code, labels, expected):
    assert neighbours.near(find(code), labels) == expected


def test_two_languages_with_one_label_are_told_apart_by_script_or_refused():
    found = rules.labels_of(["srp_Cyrl", "srp_Latn", "en"], LID176)
    assert rules.rule_of("srp_Cyrl", found, LID176, found).script == "Cyrl"
    assert rules.rule_of("eng_Latn", found, LID176, found).script == "Latn"
    for labels, label in ((LID176, "zh"), (GLOTLID, "cmn_Hani")):
        with pytest.raises(ConfigError, match=f"one label, {label}, for zho_Hans and zho_Hant.* the one code zho_Hans") as told:
            rules.labels_of(["zho_Hans", "zho_Hant"], labels)
        assert "take a model" not in str(told.value)  # none that comes with langext has two
        assert set(rules.labels_of(["zho_Hans"], labels).values()) == {label}
    with pytest.raises(ConfigError, match="one label, aka, for aka_Latn and twi_Latn.*lid_model: asset:glotlid"):
        rules.labels_of(["aka_Latn", "twi_Latn"], [*LID176, "aka"])
    assert in_script("Добро jutro", "Cyrl") and not in_script("Dobro jutro", "Cyrl") and in_script("12 !", "Cyrl")
    assert in_script("東京タワー", "Jpan") and not in_script("东京", "Cyrl")


@pytest.mark.parametrize(
    ("code", "labels", "script"),
    [
        ("srp_Cyrl", LID176, "Cyrl"), ("srp_Latn", LID176, "Latn"), ("jpn_Jpan", LID176, "Jpan"), ("zho_Hans", LID176, ""),
        ("swh_Latn", GLOTLID, ""), ("zho_Hans", GLOTLID, ""), ("fra_Latn", ["fra", "eng"], "Latn"),
    ],
)  # fmt: skip
def test_the_script_counts_where_the_label_does_not_say_it(code, labels, script):
    rule = rules.rule_of(code, rules.labels_of([code], labels), labels, [code])
    assert rule.script == script
    if code == "srp_Cyrl":
        assert rule.verdict("Ово је текст", guess("sr", 0.9)).kept
        assert rule.verdict("Ovo je tekst", guess("sr", 0.9)).reason == "script"


def test_no_letter_is_beyond_the_table_of_scripts():
    assert not any(chr(point).isalpha() for point in range(verdict._LAST, sys.maxunicode + 1))


@pytest.mark.parametrize(
    ("code", "run", "more"),
    [
        ("srp_Latn", ["srp_Latn", "eng_Latn"], {"sh"}), ("hrv_Latn", ["hrv_Latn", "srp_Cyrl"], set()),
        ("bos_Latn", ["hrv_Latn", "bos_Latn"], set()), ("srp_Cyrl", ["srp_Cyrl", "srp_Latn"], {"sh"}), ("ces_Latn", [], set()),
    ],
)  # fmt: skip
def test_the_label_of_a_macrolanguage_is_that_of_the_only_one_of_it_in_the_run(code, run, more):
    found = rules.labels_of([code, *run], LID176)
    rule = rules.rule_of(code, found, LID176, run)
    assert rule.own == {found[code]} | more and not rule.own & rule.rivals
    assert rule.verdict("Ovo je tekst", [("sh", 0.5), (found[code], 0.3), ("en", 0.1)]).kept == (code == "srp_Latn")


def test_where_the_script_decides_the_cut_is_that_of_the_text_in_it():
    rule = Rule(frozenset({"sr"}), script="Cyrl")

    class Says:
        def guesses(self, texts, count):
            return [guess("sr", 0.9 if in_script(text, "Cyrl") else 0.2, "hr") for text in texts]

    texts = ["ово је текст"] * 30 + ["ovo je tekst"] * 30
    cut = cuts.find(rule, "auto", cuts.seen(Says(), texts, "document", rule))
    assert (cut.sampled, cut.usual, cut.kept_frac) == (30, 0.9, 1.0)
    assert not cuts.applied(rule, cut).verdict(texts[-1], guess("sr", 0.9)).kept


def test_all_labels_of_a_language_are_its_own():
    assert rules.own("swh_Latn", [f"__label__{label}" for label in GLOTLID]) == {"swh_Latn", "swa_Latn"}


def test_parts_of_a_document_that_say_little_go_by_the_rest():
    rule = Rule(frozenset({"sw"}), score=0.1, silent=0.5)
    own, short, foreign = (rule.verdict("x", g) for g in (guess("sw", 0.6), guess("eu", 0.2, "sw", 0.1), guess("en", 0.9)))
    assert [v.kept for v in together([own, short, foreign], [100, 10, 50])] == [True, True, False]
    assert [v.kept for v in together([own, short, foreign], [50, 10, 100])] == [True, False, False]
    assert [v.kept for v in together([short], [10])] == [False]
    sure = Rule(frozenset({"sw"}), score=0.1)  # a language that the model is sure of: any other first choice counts
    assert not together([own, sure.verdict("x", guess("eu", 0.2, "sw", 0.1))], [100, 10])[1].kept


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("document", [("", "a\nb\n\n \n\nc")]),
        ("paragraph", [("", "a\nb"), ("\n\n \n\n", "c")]),
        ("line", [("", "a"), ("\n", "b"), ("\n\n", "c")]),
    ],
)
def test_units_of_each_level(level, expected):
    found = units("a\nb\n\n \n\nc", level)
    assert [part for _, part in found] == [part for _, part in expected]
    assert [gap.count("\n") > 1 for gap, _ in found] == [gap.count("\n") > 1 for gap, _ in expected]


class Read:
    """A reader whose tasks have texts."""

    def __init__(self, tasks):
        self.tasks = tasks

    def run(self, data, rank, world_size):
        from datatrove.data import Document

        assert world_size == len(self.tasks)
        yield from (Document(text=text, id="") for text in self.tasks[rank])


def test_a_sample_is_bounded_and_always_the_same(monkeypatch):
    tasks = [[f"{rank} {number}" for number in range(300)] for rank in range(20)]
    monkeypatch.setattr(cuts, "MOST_READ", 5000)
    monkeypatch.setattr(cuts, "MOST_JUDGED", 500)
    first = cuts.sampled([Read(tasks)], 20)
    assert first == cuts.sampled([Read(tasks)], 20) and 400 < sum(len(text) for _, text in first) <= 500
    assert len({text.split()[0] for _, text in first}) > 3 and all(text.startswith(f"{rank} ") for rank, text in first)
    assert cuts.sampled([Read([["", "only one"]])], 1) == [(0, "only one")]
