"""`new_tokens: auto`: the vocabulary is extended where it pays, else passed on as it is, and the reason is recorded."""

import json

import pytest
from bench import Bench, extend, train
from transformers import AutoTokenizer

from langext.artifacts import BASE, Model, Tokenizer
from langext.models import loading
from langext.stages import sizing
from langext.summaries import TokenizerSummary


@pytest.fixture(scope="module")
def bench(tmp_path_factory, pico) -> Bench:
    return Bench(tmp_path_factory.mktemp("auto"), pico)


def test_a_vocabulary_is_extended_where_it_pays(bench):
    words = {"uses": "extend_tokenizer", "new_tokens": "auto", "round_to": 16}
    run = bench.run("pays", "fra_Latn", ["eng_Latn"], [words, extend(name="adapter", width=8)])
    made = Tokenizer(run / "02-extend_tokenizer")
    summary = made.manifest.summary_as(TokenizerSummary)
    assert summary is not None and summary.advice is not None and summary.protected is not None
    found = loading.read_new_tokens(made)
    assert len(found) == summary.new_tokens > 20 and (320 + len(found)) % 16 == 0
    assert summary.advice.new_tokens - 16 < len(found) <= summary.advice.new_tokens
    assert "fewer tokens" in summary.advice.reason and "of the model" in summary.advice.reason
    assert [each.new_tokens for each in summary.advice.compared] == [0, summary.advice.new_tokens]
    assert summary.protected.identical == summary.protected.documents
    assert {name.split("/")[0] for name in summary.heldout_sets} == set(summary.heldout)
    assert all(gain.documents and 0 <= gain.identical_documents_frac <= 1 for gain in summary.heldout_sets.values())


def test_a_vocabulary_that_is_good_enough_is_passed_on(bench):
    """English among French: the base was made for it. What follows works as if there were no such stage."""
    stages = [{"uses": "extend_tokenizer", "new_tokens": "auto"}, extend(name="adapter", width=8), train(steps=2, eval_every=2)]
    run = bench.run("leave", "eng_Latn", ["fra_Latn"], [*stages, {"uses": "export", "format": "delta"}])
    made = Tokenizer(run / "02-extend_tokenizer")
    summary = made.manifest.summary_as(TokenizerSummary)
    assert summary is not None and summary.advice is not None and summary.new_tokens == 0 == summary.advice.new_tokens
    assert "below 1.6 x" in summary.advice.reason and loading.read_new_tokens(made) == {}
    base, passed = (AutoTokenizer.from_pretrained(path) for path in (bench.pico, made.path / "tokenizer"))
    assert base.get_vocab() == passed.get_vocab()
    for name in (BASE, "03-extend", "04-train"):
        assert loading.tokenizer_folder(Model(run / name)) == loading.tokenizer_folder(Model(run / BASE))
    delta = json.loads((run / "05-export" / "checkpoint" / "export.json").read_text())
    assert delta and not list((run / "05-export").rglob("new_tokens.json"))


def test_sizes_when_planning_are_the_largest_possible():
    assert sizing.most("auto") == 16000 and sizing.most(300) == 300
    assert sizing.least("auto", 10) == 100 and sizing.least("auto", 500) == 500 and sizing.least(300, 10) == 10
