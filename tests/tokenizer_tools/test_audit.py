"""The audit counts what is there, its advice follows its figures, and the commands print it without langext."""

import json
import subprocess
import sys

import pytest
import spm
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from toy import ENGLISH, FRENCH, GERMAN, make_tokenizer, sentences
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tokenizer_tools import audit, byte_bpe, kinds, learner, texts
from tokenizer_tools.__main__ import main
from tokenizer_tools.audit import Kept, Matrices, Point, Use
from tokenizer_tools.vocabulary import next_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, and text of three languages."""
    path = tmp_path_factory.mktemp("audit")
    make_tokenizer().save_pretrained(path / "base")
    for code, words, number in (("fr", FRENCH, 400), ("en", ENGLISH, 200), ("de", GERMAN, 100)):
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in sentences(words, number, 3)]
        (path / f"{code}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (path / "en.txt").write_text("\n\n".join(sentences(ENGLISH, 40, 4)), encoding="utf-8-sig")
    return path


def test_words_of_scripts_with_and_without_spaces():
    assert texts.words("L'été — déjà là, 3 fois.") == (5, 0)
    assert texts.words("हिन्दी में किताब") == (3, 0)  # vowel signs are parts of words
    assert texts.words("ภาษาไทย") == (0, 7) and texts.words("日本語 in Tokyo") == (2, 3)
    assert texts.words("ที่นี่") == (0, 2)  # marks belong to their letters


def test_what_is_counted_is_there():
    tokenizer = make_tokenizer()
    found = audit.use(tokenizer, ["the dog sleeps", "é"])
    dog, accent = tokenizer(["the dog sleeps", "é"]).input_ids
    assert (found.documents, found.size_bytes, found.words, found.tokens) == (2, 16, 4, len(dog) + len(accent))
    assert found.parts == 2  # é is two tokens, of a byte each
    assert found.fertility == found.tokens / 4 and found.per_character is None
    assert found.unused_share == 1 - len({*dog, *accent}) / len(tokenizer)
    thai = audit.use(tokenizer, ["ภาษาไทย"])
    assert thai.tokens == 21 and thai.per_character == 3 and thai.fertility == 9 and thai.part_share == 1


def test_byte_fallback_and_unknown_letters_are_told_apart():
    letters = {"<unk>": 0, "▁": 1, "a": 2, "<0xC3>": 3, "<0xA9>": 4, "é": 5}
    whole = Tokenizer(models.BPE(letters, [], unk_token="<unk>", byte_fallback=True))
    whole.pre_tokenizer = pre_tokenizers.Metaspace()
    whole.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>")
    assert audit.parts(tokenizer) == {3, 4}  # é is a letter here, not a byte as byte-level BPE writes one
    found = audit.use(tokenizer, ["aa鿀"])
    assert (found.unknown, found.parts) == (1, 0)


def test_text_that_is_dropped_is_counted_as_lost_and_refused(tmp_path):
    """Without tokens for bytes a vocabulary writes Thai in nothing, or in one unknown token: it looks short."""
    thai, english = ["ภาษาไทย ที่ยาว"] * 20, sentences(ENGLISH, 20, 5)
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bare.train_from_iterator(english, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    for base, said in (
        (
            spm.load(spm.write(tmp_path, "llama2", byte_fallback=False)),
            "its BPE has no tokens of bytes .a SentencePiece trained without byte_fallback., and drops what has no piece",
        ),
        (PreTrainedTokenizerFast(tokenizer_object=bare), "its byte-level BPE has no token for"),
    ):
        found, usual = audit.use(base, thai), audit.use(base, english)
        assert found.lost_share > 0.9 and usual.lost_share < 0.01 and found.characters == 20 * 13
        assert found.fertility < audit.CLOSE * usual.fertility and audit.close(found, [usual]) is None
        with pytest.raises(ValueError, match=said):
            kinds.of(base)
    whole = make_tokenizer()
    whole.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    assert audit.use(whole, ["Éß ﬁ  ①▁", "\ufffd <|end|>\n", *thai]).lost == 0


def use(tokens: int) -> Use:
    return Use(10, 10_000, 1000, 0, tokens, 0, 0, 100, 1000, 5000, 0)


def curve(*tokens: int) -> list[Point]:
    return [
        Point(n, t, 100_000, t / 10_000, {"en": Kept(10, 9, 99, 100)}) for n, t in zip((0, *audit.SIZES), tokens, strict=False)
    ]


def test_a_base_that_writes_the_language_well_is_left_alone():
    near = audit.close(use(1500), [use(1000), use(1200)])
    assert near is not None and near.new_tokens == 0 and "1.50 x the 1.00" in near.reason
    code = use(2300)  # and whatever a base writes badly
    assert audit.close(use(1700), [use(1000), code]) is None
    assert audit.close(use(1800), [use(1000), use(1200)]) is None and audit.close(use(1500), []) is None


@pytest.mark.parametrize(
    ("tokens", "matrices", "number", "said"),
    [
        ((1000, 800, 740, 700, 690), None, 4000, "8,000 would save 1.4% more"),
        ((1000, 800, 740, 700, 650, 600), None, 16000, "16,000 is the most for which every token occurs"),
        ((1000, 980, 700), None, 0, "1,000 would save 2.0% more"),
        ((1000, 800, 740, 700, 690), Matrices(100, 10_000_000), 2000, "0.2 M parameters (2.0% of the model)"),
        ((1000,), None, 0, "no pair of tokens that may be joined occurs 100 times"),
    ],
)
def test_the_advice_ends_where_twice_the_rows_do_not_pay(tokens, matrices, number, said):
    advice = audit.advise(curve(*tokens), matrices)
    assert advice.new_tokens == number and said in advice.text
    assert advice.text.startswith(f"extend by {number:,}" if number else "leave the vocabulary as it is")


def test_what_a_row_costs_is_read_from_the_model(tmp_path):
    assert Matrices.of(tmp_path) is None
    save_file({"a": torch.zeros(10, 4), "b": torch.zeros(3)}, tmp_path / "model.safetensors")
    for tied, row in ((True, 4), (False, 8)):
        (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4, "tie_word_embeddings": tied}))
        assert Matrices.of(tmp_path) == Matrices(row, 43)


def test_a_head_among_the_weights_is_not_tied_where_the_config_does_not_say(tmp_path):
    """transformers leaves out what is the default of a model, and that is another one in each."""
    for name, row in (("model.embed_tokens.weight", 4), ("lm_head.weight", 8), ("language_model.lm_head.weight", 8)):
        save_file({name: torch.zeros(10, 4)}, tmp_path / "model.safetensors")
        for config, expected in (
            ({}, row), ({"tie_word_embeddings": None}, row), ({"tie_word_embeddings": True}, 4),
            ({"tie_word_embeddings": False}, 8), ({"text_config": {"hidden_size": 4}, "tie_word_embeddings": False}, 8),
        ):  # fmt: skip
            (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4, **config}))
            assert Matrices.of(tmp_path) == Matrices(expected, 40)


def test_every_size_of_the_curve_is_what_it_alone_would_have_learnt():
    base = make_tokenizer()
    words = byte_bpe.word_counts(base.backend_tokenizer, sentences(FRENCH, 300, 9))
    most = byte_bpe.continue_merges(base.backend_tokenizer, words, 60, 5)
    for number in (1, 17, 60):
        assert byte_bpe.continue_merges(base.backend_tokenizer, words, number, 5) == most[:number]
    new = sentences(FRENCH, 20, 10)
    old = {"en": sentences(ENGLISH, 20, 11), "new": new}
    points = audit.curve(base, {n: byte_bpe.extended(base, most[:n]) for n in (17, 60)}, new, old)
    assert [point.new_tokens for point in points] == [0, 17, 60]
    assert points[0].tokens == sum(map(len, base(new).input_ids)) > points[1].tokens > points[2].tokens
    assert points[0].identical == 1 and points[0].original_tokens == 1 and points[2].original_tokens < 1
    assert audit.sizes(0) == [] and audit.sizes(500) == [500] and audit.sizes(16000) == list(audit.SIZES)
    assert audit.sizes(2500) == [1000, 2000, 2500]


def run(capsys, *words: object) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_audit_prints_a_table_and_its_advice(folder, capsys, tmp_path):
    text = ["--text", f"fr={folder / 'fr.jsonl'}", "--text", f"en={folder / 'en.jsonl'}"]
    said = run(capsys, "audit", folder / "base", *text, "--picture", tmp_path / "curve.svg")
    assert "bytes/token" in said and "fr: extend by " in said
    assert "<svg" in (tmp_path / "curve.svg").read_text(encoding="utf-8")
    found = json.loads(run(capsys, "audit", folder / "base", *text, "--json"))
    assert found["new"] == "fr" and found["new_tokens"] == found["curve"][-1]["new_tokens"] > 20
    assert found["languages"]["fr"]["fertility"] > 1.6 * found["languages"]["en"]["fertility"]
    left = json.loads(run(capsys, "audit", folder / "base", *text, "--new", "en", "--json"))
    assert left["new_tokens"] == 0 and "below 1.6 x" in left["reason"]


def test_extend_and_compare(folder, capsys, tmp_path):
    """Text of other languages than the new one is protected, and the proof lies beside what was written."""
    out, text = tmp_path / "bigger", ["--text", f"fr={folder / 'fr.jsonl'}", "--text", f"en={folder / 'en.txt'}"]
    more = ["--new", "fr", "--protect", folder / "de.jsonl", "--new-tokens", 70, "--round-to", 64, "--out", out]
    made = json.loads(run(capsys, "extend", folder / "base", *text, *more, "--json"))
    base, bigger = (AutoTokenizer.from_pretrained(path) for path in (folder / "base", out))
    spelt = json.loads((out / "new_tokens.json").read_text())
    assert made["new_tokens"] == len(spelt) == len(bigger) - len(base) and len(bigger) % 64 == 0
    assert all(bigger.decode([int(i)]) == base.decode(ids) for i, ids in spelt.items() if "�" not in base.decode(ids))
    proof = json.loads((out / "protected.json").read_text())
    assert list(proof) == ["chat template", "en", str(folder / "de.jsonl")] and made["protected"] == 140
    assert [(found["documents"], found["identical"]) for found in proof.values()] == [(0, 0), (40, 40), (100, 100)]
    found = json.loads(run(capsys, "compare", folder / "base", out, *text, "--json"))
    assert found["en"]["extended"]["identical"] == 1 and found["fr"]["extended"]["identical"] < 0.1
    assert found["fr"]["extended"]["tokens"] < 0.7 * found["fr"]["base"]["tokens"]
    assert "100.00%" in run(capsys, "compare", folder / "base", out, "--text", f"en={folder / 'en.txt'}")
    command = ["extend", folder / "base", *text, "--new", "fr", "--out"]
    assert main([str(word) for word in (*command, tmp_path / "auto")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("extend by ") and "all 40 protected documents are encoded as before" in said.out
    assert "warning: only 40 protected documents: they say little" in said.err
    assert "as before" not in run(capsys, *command, tmp_path / "free", "--unprotected", "--new-tokens", 70)
    free = AutoTokenizer.from_pretrained(tmp_path / "free")
    english = list(texts.read(folder / "en.txt"))
    assert texts.encode(free, english) != texts.encode(base, english) == texts.encode(bigger, english)


def test_a_folder_with_a_model_of_sentencepiece_alone_is_extended(folder, capsys, tmp_path):
    """As the stage of langext does: a folder is read in one way."""
    base = spm.write(tmp_path / "base", "llama2")
    assert not (base / "tokenizer.json").exists()
    text = ["--text", f"fr={folder / 'fr.jsonl'}", "--text", f"en={folder / 'en.txt'}", "--new", "fr"]
    run(capsys, "extend", base, *text, "--new-tokens", 20, "--out", tmp_path / "out")
    assert len(spm.load(tmp_path / "out")) == len(spm.load(base)) + 20
    english = ["--text", f"fr={folder / 'fr.jsonl'}", "--text", f"en={folder / 'en.jsonl'}", "--new", "en"]
    assert "leave the vocabulary as it is" in run(capsys, "extend", base, *english, "--out", tmp_path / "left")
    assert spm.load(tmp_path / "left").get_vocab() == spm.load(base).get_vocab()


def test_auto_protects_what_it_was_measured_on_too(folder, capsys, tmp_path):
    """The first document of each twenty is only measured when a size is chosen, and protected when the tokens are learnt."""
    kept = [sentences(FRENCH, 1, 3)[0], *sentences(ENGLISH, 400, 5)]
    (tmp_path / "kept.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in kept), encoding="utf-8")
    command = ["extend", folder / "base", "--text", f"fr={folder / 'fr.jsonl'}", "--protect", tmp_path / "kept.jsonl"]
    assert main([str(word) for word in (*command, "--new", "fr", "--out", tmp_path / "out")]) == 0
    assert "extend by" in capsys.readouterr().out
    base, bigger = (AutoTokenizer.from_pretrained(path) for path in (folder / "base", tmp_path / "out"))
    assert texts.encode(bigger, kept) == texts.encode(base, kept) and len(bigger) > len(base)


def test_a_size_is_chosen_for_the_vocabulary_that_is_learnt(folder, capsys, tmp_path):
    """English with some French in it keeps most French tokens away, but not where it may change."""
    mixed = [*sentences(FRENCH, 60, 3), *sentences(ENGLISH, 400, 5)]
    (tmp_path / "en.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in mixed), encoding="utf-8")
    text = ["--text", f"fr={folder / 'fr.jsonl'}", "--text", f"en={tmp_path / 'en.jsonl'}", "--new", "fr", "--json"]
    found = {}
    for how in ([], ["--unprotected"]):
        made = run(capsys, "extend", folder / "base", *text, *how, "--out", tmp_path / f"out{len(how)}")
        found[bool(how)] = json.loads(made)["new_tokens"]
    assert found[True] > 2 * found[False]


def test_small_sets_are_judged_together_and_a_single_document_is_named(folder, capsys, tmp_path):
    for name, lines in (("a", sentences(ENGLISH, 1, 3)), ("b", sentences(GERMAN, 1, 3)), ("c", sentences(ENGLISH, 30, 3))):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(lines))
    a, b, c = (["--protect", str(tmp_path / f"{name}.txt")] for name in "abc")
    command = ["extend", str(folder / "base"), "--text", f"fr={folder / 'fr.jsonl'}", "--new", "fr", "--out"]
    for number, files in enumerate(([*a, *b], [*a, *c])):
        assert run(capsys, *command, tmp_path / str(number), *files).startswith("extend by ")
    assert main([*command, str(tmp_path / "none"), *a]) == 2
    assert f"error: {a[1]}: one document is too little" in capsys.readouterr().err
    assert learner.together({"x": ["1"] * 25, "y": ["2"], "z": []}) == {"y, x": ["2", *["1"] * 25]}


def test_curve_shows_what_protection_costs_and_keeps(folder, capsys):
    text = ["--text", f"fr={folder / 'fr.jsonl'}", "--protect", folder / "en.jsonl", "--min-count", 2]
    found = json.loads(run(capsys, "curve", folder / "base", *text, "--json"))
    assert found["fr"][-1]["identical"] == 1 > found["fr unprotected"][-1]["identical"]
    assert found["fr"][-1]["tokens"] < 0.5 * found["fr"][0]["tokens"]
    assert "fr unprotected" in run(capsys, "curve", folder / "base", *text)


EXTEND = ["extend", "{0}/base", "--text", "fr={0}/fr.jsonl", "--text", "en={0}/en.txt", "--new", "fr"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["audit", "nowhere", "--text", "fr={0}/fr.jsonl"], "no tokenizer here (looked for tokenizer.json, tokenizer.model"),
        (["audit", "nowhere", "--text", "fr={0}/fr.jsonl"], "Of a base on the hub this brings it: hf download <its id>"),
        (["audit", "{0}/base", "--text", "{0}/fr.jsonl"], "expected LANGUAGE=FILE"),
        (["audit", "{0}/base", "--text", "fr={0}/none.jsonl"], "none.jsonl: cannot be read: No such file"),
        (["audit", "{0}/base", "--text", "fr={0}/base/tokenizer.json"], "expected a file that ends with .txt, .jsonl"),
        (["audit", "{0}/base", "--text", "fr={0}/fr.jsonl", "--new", "de"], "no text of it; there is fr"),
        (["audit", "{0}/base", "--text", "x={0}/latin.txt"], "latin.txt: not UTF-8"),
        (["audit", "{0}/base", "--text", "x={0}/odd.jsonl"], "odd.jsonl:2: no field `text`"),
        (["audit", "{0}/base", "--text", "x={0}/empty.txt"], "x: no documents"),
        ([*EXTEND, "--out", "{0}/base"], "is there already"),
        ([*EXTEND, "--new-tokens", "-3", "--out", "{0}/x"], "expected a number from 1"),
        ([*EXTEND, "--new-tokens", "9", "--round-to", "64", "--out", "{0}/x"], "no room"),
        ([*EXTEND[:4], "--out", "{0}/x"], "the following arguments are required: --new"),
        ([*EXTEND[:-1], "sw", "--out", "{0}/x"], "--new sw: no text of it; there is fr, en"),
        ([*EXTEND[:4], "--new", "fr", "--out", "{0}/x"], "no text is protected: give --text of an original language"),
        (["curve", "{0}/base", "--text", "fr={0}/fr.jsonl"], "give --protect or --unseen"),
        (["compare", "{0}/base", "{0}/other", "--text", "fr={0}/fr.jsonl"], "has another id than in the base"),
        (["nonsense"], "invalid choice"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(folder, capsys, words, said):
    (folder / "latin.txt").write_bytes("été".encode("latin-1"))
    (folder / "odd.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    (folder / "empty.txt").write_text("\n")
    if not (folder / "other").exists():
        moved = make_tokenizer()
        state = json.loads(moved.backend_tokenizer.to_str())
        state["model"]["vocab"] = {text: i + (i > 300) for text, i in state["model"]["vocab"].items()}
        moved._tokenizer = Tokenizer.from_str(json.dumps(state))
        moved.save_pretrained(folder / "other")
    assert main([word.format(folder) for word in words]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]
    assert next_id(make_tokenizer()) == 320 and not (folder / "x").exists()


def test_the_command_does_without_langext():
    code = "import sys; from tokenizer_tools.__main__ import main; main(['x']); sys.exit('langext' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.startswith("error: ")
