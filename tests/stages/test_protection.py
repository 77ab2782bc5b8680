"""What stage extend_tokenizer protects is compared whole before anything follows from it, and missing protection is said."""

from dataclasses import replace

import pytest
from test_new_rows import base, context, stage
from toy import ENGLISH, FRENCH, documents, sentences, write_jsonl

from langext.artifacts import Corpus
from langext.data import documents as read
from langext.errors import ConfigError
from langext.stages import new_rows, sizing
from tokenizer_tools import kinds

CODE = ["def chat(le):\n    return le == 'chien'", "for jour in nuit: print(jour)"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("corpus") / "documents"
    for code, words in (("fra_Latn", FRENCH), ("eng_Latn", ENGLISH)):
        write_jsonl(root / "train" / code / "book.jsonl.gz", documents(words, 60, 3))
        write_jsonl(root / "valid" / code / "book.jsonl.gz", documents(words, 12, 4))
    write_jsonl(root / "train" / "eng_Latn" / "news.jsonl.gz", sentences(ENGLISH, 25, 5))
    write_jsonl(root / "train" / "mul" / "code.jsonl.gz", CODE)
    return Corpus(root.parent)


def test_the_manifest_says_which_sets_were_compared(tmp_path, corpus, capsys):
    ctx = context(tmp_path / "02-tokens")
    stage().run(ctx, base(tmp_path, tied=True), corpus)
    found = ctx.summary[-1].protected
    assert found.sets == {"eng_Latn/book": 60, "eng_Latn/news": 25, "mul/code": 2}
    assert found.documents == found.identical == 87 and found.replaced == 0
    said = capsys.readouterr()
    assert "all 87 protected documents are encoded as before (eng_Latn/book 60, " in said.out
    assert "warning: only 87 protected documents" in said.err


def test_protected_text_that_changes_is_refused_before_rows_are_made(tmp_path, corpus, monkeypatch):
    first = replace(kinds.KINDS[0], guarded=lambda tokenizer, words: set())
    monkeypatch.setattr(kinds, "KINDS", (first, *kinds.KINDS[1:]))
    monkeypatch.setattr(new_rows, "bench", lambda *given: pytest.fail("rows were made"))
    with pytest.raises(ConfigError, match=r"in another way: \d+ of \d+ documents of (eng_Latn/book|mul/code), such as"):
        stage().run(context(tmp_path / "02-tokens"), base(tmp_path, tied=True), corpus)


def test_protection_without_text_to_protect_is_said(tmp_path, corpus, capsys):
    for code in ("train", "valid"):
        write_jsonl(tmp_path / "alone" / "documents" / code / "fra_Latn" / "book.jsonl.gz", documents(FRENCH, 60, 3))
    for name, asked, said in (("02", True, True), ("03", False, False)):
        ctx = context(tmp_path / name)
        stage(protect=asked).run(ctx, base(tmp_path / f"{name}-model", tied=True), Corpus(tmp_path / "alone"))
        warned = "warning: protect: there is no training text of an original language" in capsys.readouterr().err
        assert warned == said and ctx.summary[-1].protected is None


def test_a_size_is_chosen_by_training_text_that_nothing_is_learnt_from(tmp_path, corpus, monkeypatch):
    """Held-out text is what gains are reported on, so it chooses nothing."""
    monkeypatch.setattr(read, "heldout_texts", lambda *given: pytest.fail("held-out text was read"))
    texts = {"fra_Latn": [f"le {i}" for i in range(50)], "eng_Latn": ["the", "a"]}

    def training(codes):
        return [text for code in codes for text in texts[code]]

    ctx = context(tmp_path)
    found = sizing.audited("auto", training, ctx, corpus)
    assert found == {"fra_Latn": ["le 0", "le 20", "le 40"], "eng_Latn": ["the", "a"]}
    assert set(sizing.rest(found, texts["fra_Latn"])) == set(texts["fra_Latn"]) - set(found["fra_Latn"])
    assert sizing.audited(30, training, ctx, corpus) == {} and len(list(sizing.rest({}, texts["fra_Latn"]))) == 50
    monkeypatch.setattr(sizing, "AUDITED_BYTES", 6)
    assert sizing.audited("auto", training, ctx, corpus)["fra_Latn"] == ["le 0", "le 20"]


def test_rounding_that_does_nothing_is_said(tmp_path, corpus, capsys):
    """The base has 7 rows of padding; new tokens that fit in there give it no more rows."""
    ctx = context(tmp_path / "02-tokens")
    stage(new_tokens=5, round_to=64).run(ctx, base(tmp_path, tied=True), corpus)
    assert ctx.summary[-1].new_tokens == 5
    assert "warning: round_to: rounding to a multiple of 64 does nothing: new tokens take rows" in capsys.readouterr().err
