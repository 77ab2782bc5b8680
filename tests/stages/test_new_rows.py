"""Stage extend_tokenizer chooses the rows of new tokens, and every later stage starts from them."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from toy import ENGLISH, FRENCH, documents, make_base, make_llama, make_tokenizer, write_jsonl

from langext.architectures import vocabulary
from langext.artifacts import Corpus, Model, Tokenizer, read_object, sha256_file, write_json
from langext.context import Context
from langext.data import documents as read
from langext.errors import ConfigError
from langext.evaluation import bpb
from langext.evaluation.kl import BaseKL
from langext.methods import extended
from langext.models import bases, loading
from langext.stages import new_rows, tokenizer
from langext.stages.extend import Extend
from langext.stages.tokenizer import ExtendTokenizer
from tokenizer_tools.start import STARTS, subtoken_mean

CODES: dict[str, list[str]] = {"fra_Latn": FRENCH, "eng_Latn": ENGLISH}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("corpus")
    for seed, (code, words) in enumerate(CODES.items()):
        for split, count in (("train", 60), ("valid", 12)):
            write_jsonl(root / "documents" / split / code / "book.jsonl.gz", documents(words, count, 10 * seed + count))
    return Corpus(root)


def base(root: Path, tied: bool) -> Model:
    tokenizer = make_tokenizer()
    make_llama(len(tokenizer) + 7, tied).save_pretrained(root / "pico")  # with rows that are padding
    tokenizer.save_pretrained(root / "pico")
    return bases.prepare(str(root / "pico"), None, root / "base")


def context(out: Path) -> Context:
    out.mkdir(parents=True, exist_ok=True)
    return Context(out, 1, "fra_Latn", ("eng_Latn",))


def stage(**more: object) -> ExtendTokenizer:
    return ExtendTokenizer.model_validate({"uses": "extend_tokenizer", "new_tokens": 30, "min_count": 2} | more)


def made(root: Path, model: Model, corpus: Corpus, name: str = "02-tokens", **more: object):
    ctx = context(root / name)
    return stage(**more).run(ctx, model, corpus), ctx.summary[-1].rows  # type: ignore[attr-defined]


@pytest.mark.parametrize("tied", [True, False])
def test_training_starts_from_the_rows_of_the_stage_and_the_base_keeps_its_own(tmp_path, corpus, tied):
    model = base(tmp_path, tied)
    tokens, record = made(tmp_path, model, corpus, start="composition")
    rows = load_file(tokens.path / loading.NEW_ROWS)
    assert rows.keys() == ({"input"} if tied else {"input", "output"})
    extended_model = Extend.model_validate({"uses": "extend", "method": "full"}).run(context(tmp_path / "03"), model, tokens)
    live = loading.load(extended_model, torch.float32, trained=False)
    for net in (live.net, loading.load(extended_model, torch.float32).net):
        assert all(torch.equal(rows[name], found) for name, found in vocabulary.new_rows(net).items())
    plain = loading.load_base(loading.read_record(model).base, torch.float32)
    assert torch.equal(live.net.model.embed_tokens.weight, plain.model.embed_tokens.weight)
    assert torch.equal(live.net.lm_head.weight, plain.lm_head.weight)
    again, _ = made(tmp_path, model, corpus, "04-again", start="composition")
    assert sha256_file(again.path / loading.NEW_ROWS) == sha256_file(tokens.path / loading.NEW_ROWS)
    texts = [text for found in read.heldout(corpus, ["eng_Latn"]).values() for text in found]
    kl = BaseKL(plain, make_tokenizer(), bpb.passages(texts, new_rows.PASSAGE_BYTES, new_rows.SEEN_BYTES))
    # The reference normalises over the padding of the base too, which new tokens replace.
    kl.weight = kl.weight[: len(make_tokenizer())]
    assert record.tried["composition"].kl == pytest.approx(kl.measure(live.net), rel=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_reserved_tokens_give_their_rows_away_and_the_model_does_not_grow(tmp_path, corpus, tied):
    tokenizer = make_tokenizer()
    names = [f"<|reserved_special_token_{i}|>" for i in range(40)]
    tokenizer.add_special_tokens({"additional_special_tokens": [*names, "<|eot_id|>"]})
    net = make_llama(len(tokenizer), tied)
    net.config.bos_token_id = tokenizer.convert_tokens_to_ids(names[0])  # a config uses this one, so it is not free
    net.generation_config.bos_token_id = net.config.bos_token_id
    net.save_pretrained(tmp_path / "pico")
    tokenizer.save_pretrained(tmp_path / "pico")
    model = bases.prepare(str(tmp_path / "pico"), None, tmp_path / "base")
    ctx = context(tmp_path / "02-tokens")
    tokens = stage(reuse_slots=True, start="focus").run(ctx, model, corpus)
    spelt, summary = loading.read_new_tokens(tokens), ctx.summary[-1]
    assert list(spelt) == list(range(321, 351)) and summary.reused == summary.new_tokens == 30  # type: ignore[attr-defined]
    bigger = loading.load_tokenizer(tokens.path / "tokenizer")
    assert len(bigger) == len(tokenizer) == 361 and bigger.get_vocab()["<|eot_id|>"] == 360
    extended_model = Extend.model_validate({"uses": "extend", "method": "full"}).run(context(tmp_path / "03"), model, tokens)
    live, rows = loading.load(extended_model, torch.float32), load_file(tokens.path / loading.NEW_ROWS)
    assert live.net.config.vocab_size == 361 and live.net.get_input_embeddings().slots == tuple(spelt)
    whole, plain = vocabulary.matrices(live.net), loading.load_base(loading.read_record(model).base, torch.float32)
    kept = [i for i in range(361) if i not in spelt]
    for matrix, module, name in zip(
        whole, (plain.get_input_embeddings(), plain.get_output_embeddings()), ("input", "output"), strict=True
    ):
        if matrix is not None:
            assert torch.equal(matrix[list(spelt)], rows[name]) and torch.equal(matrix[kept], module.weight[kept])
    config = loading.load_config(loading.read_record(model).base)
    stage(reuse_slots=True).check_model((), config)
    config.name_or_path = str(base(tmp_path / "without", tied).path.parent / "pico")
    with pytest.raises(ConfigError, match="has no reserved token that is free"):
        stage(reuse_slots=True).check_model((), config)


def test_a_token_of_the_base_without_a_row_gets_one(tmp_path, corpus):
    """Gemma 3 has a token for images whose id is one more than its last row; new ids follow it."""
    tokenizer = make_tokenizer()
    make_base("gemma3_text", len(tokenizer)).save_pretrained(tmp_path / "pico")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(tmp_path / "pico")
    model = bases.prepare(str(tmp_path / "pico"), None, tmp_path / "base")
    stage().check_model((), loading.load_config(loading.read_record(model).base))
    tokens, _ = made(tmp_path, model, corpus)
    spelt = loading.read_new_tokens(tokens)
    assert list(spelt) == list(range(320, 351)) and len(spelt[320]) > 1 and max(spelt[320]) < 320
    extended_model = Extend.model_validate({"uses": "extend", "method": "full"}).run(context(tmp_path / "03"), model, tokens)
    live = loading.load(extended_model, torch.float32)
    assert vocabulary.matrices(live.net)[0].shape[0] == 351 == live.net.config.vocab_size
    assert live.tokenizer.get_vocab()["<image_soft_token>"] == 320
    config = loading.load_config(loading.read_record(model).base)
    config.vocab_size = 300
    stage().check_model((), config)
    state = json.loads((tmp_path / "pico" / "tokenizer.json").read_text())
    state["model"]["vocab"] = {text: i + 5 * (i == 319) for text, i in state["model"]["vocab"].items()}
    (tmp_path / "pico" / "tokenizer.json").write_text(json.dumps(state))
    config.name_or_path = str(tmp_path / "pico")
    with pytest.raises(ConfigError, match="some ids between have no token"):
        stage().check_model((), config)


def test_a_model_keeps_the_rows_that_it_was_trained_with(tmp_path, corpus):
    """Models of langext 0.1.0 end with the last new token, whatever rows of padding the base has; their records say nothing."""
    model = base(tmp_path, tied=False)
    tokens, _ = made(tmp_path, model, corpus, new_tokens=3)
    extended_model = Extend.model_validate({"uses": "extend", "method": {"name": "full"}}).run(
        context(tmp_path / "03-extend"), model, tokens
    )
    ids, logits = torch.arange(320)[None], {}
    for padded in (True, False):
        if not padded:
            record = read_object(extended_model.path / "model.json")
            assert record.pop("padded") is True
            write_json(extended_model.path / "model.json", record)
        assert loading.read_record(extended_model).padded == padded
        for load in (loading.on_disk, lambda found: loading.load(found, torch.float32)):
            net = load(extended_model).net.float()
            rows = [len(each) for each in vocabulary.matrices(net) if each is not None]
            assert rows == [327 if padded else 323] * 2 and net.config.vocab_size == rows[0]
            logits[padded] = net(input_ids=ids).logits
    assert torch.equal(logits[True][..., :323], logits[False])
    again = loading.write_record(context(tmp_path / "04-copy").out, loading.read_record(extended_model))
    assert "padded" not in read_object(again.path / "model.json")


def test_a_shift_keeps_to_the_budget_or_says_that_none_does(tmp_path, corpus):
    model = base(tmp_path, tied=False)
    _, plain = made(tmp_path, model, corpus, start="mean")
    budget = plain.tried["mean"].kl / 2
    _, record = made(tmp_path, model, corpus, "03-quiet", start="mean", output="shifted", kl_budget=budget)
    told = record.tried["mean"]
    assert 0.6 * budget < told.kl <= budget  # held-out text; training text says how far rows are shifted
    assert told.kl_unshifted == plain.tried["mean"].kl and told.shift > 0
    rows, before = (load_file(tmp_path / name / loading.NEW_ROWS) for name in ("03-quiet", "02-tokens"))
    assert torch.equal(rows["input"], before["input"]) and not torch.equal(rows["output"], before["output"])
    with pytest.raises(ConfigError, match="no shift of the new rows keeps the KL"):
        made(tmp_path, model, corpus, "04-quieter", start="mean", output="shifted", kl_budget=1e-9)


def test_what_original_text_pays_is_said(tmp_path, corpus, capsys, monkeypatch):
    """Also where a shift that keeps to the budget on training text does not on held-out text."""
    model = base(tmp_path, tied=False)
    _, plain = made(tmp_path, model, corpus, start="mean")
    said = capsys.readouterr().err
    assert plain.tried["mean"].kl > new_rows.QUIET and "nats per token from original text until they are trained" in said
    monkeypatch.setattr("tokenizer_tools.start.softmax.MARGIN", 1.5)
    budget = plain.tried["mean"].kl / 2
    made(tmp_path, model, corpus, "03-quiet", start="mean", output="shifted", kl_budget=budget)
    assert "is above kl_budget" in capsys.readouterr().err


def test_a_shift_is_never_fitted_on_the_text_that_it_is_reported_on(tmp_path, corpus, capsys):
    """Without training text of an original language, parts of held-out text are told apart, and that is said."""
    model, alone = base(tmp_path, tied=False), Corpus(tmp_path / "alone")
    for split, code in (("train", "fra_Latn"), ("valid", "fra_Latn"), ("valid", "eng_Latn")):
        write_jsonl(alone.path / "documents" / split / code / "book.jsonl.gz", documents(CODES[code], 60, len(split)))
    _, plain = made(tmp_path, model, alone, start="mean")
    capsys.readouterr()
    budget = plain.tried["mean"].kl / 2
    _, record = made(tmp_path, model, alone, "03", start="mean", output="shifted", kl_budget=budget)
    assert "is fitted on a part of held-out text" in capsys.readouterr().err and record.tried["mean"].shift > 0
    bench = new_rows.Bench.__new__(new_rows.Bench)
    bench.base = make_tokenizer()
    for training in ([], documents(ENGLISH, 20, 7)):
        bench.texts = new_rows.Texts(lambda: [], lambda found=training: found, documents(ENGLISH, 20, 8))
        bench.__dict__.pop("sides", None)
        fit, judged = bench.sides
        assert fit and judged and not [passage for passage in judged if passage in fit]


def test_no_start_is_made_of_the_documents_that_choose_one():
    texts = new_rows.Texts(lambda: map(str, range(1, 101)), list, [])
    assert list(texts.judges()) == ["1", "21", "41", "61", "81"]
    assert set(texts.new()) == set(map(str, range(1, 101))) - set(texts.judges())


def test_without_the_file_rows_are_means_and_a_wrong_file_is_refused(tmp_path, corpus):
    model = base(tmp_path, tied=True)
    tokens, _ = made(tmp_path, model, corpus, start="mean")
    net = loading.load_base(loading.read_record(model).base, torch.bfloat16)
    spelt = loading.read_new_tokens(tokens)
    extended.build(net, loading.load_tokenizer(tokens.path / "tokenizer"), None, spelt.keys())
    loading.fill(net, tokens)
    chosen = net.model.embed_tokens.new_weight.clone()
    path = tokens.path / loading.NEW_ROWS
    path.unlink()
    loading.fill(net, tokens)
    assert torch.equal(chosen, net.model.embed_tokens.new_weight)
    assert torch.equal(chosen, subtoken_mean(net.model.embed_tokens.weight, [spelt[i] for i in sorted(spelt)]))
    save_file({"input": torch.zeros(3, 64)}, path)
    with pytest.raises(ConfigError, match="rows of other shapes"):
        loading.fill(net, tokens)
    path.write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="safetensors"):
        loading.fill(net, Tokenizer(tokens.path))


def test_a_probe_takes_the_start_that_has_learnt_best(tmp_path, corpus, monkeypatch):
    planted = {
        "far": lambda given: STARTS["sample"](given).map(lambda part: 20 * part),
        "near": STARTS["mean"],
    }
    monkeypatch.setattr("tokenizer_tools.start.STARTS", {**planted, "mean": STARTS["mean"]})
    monkeypatch.setattr(new_rows, "PROBE_STEPS", 4)
    monkeypatch.setattr(new_rows, "JUDGED_WINDOWS", 4)
    _, record = made(tmp_path, base(tmp_path, tied=False), corpus, start="probe")
    losses = {name: tried.loss_after for name, tried in record.tried.items()}
    assert record.start == "near" and losses["near"] == losses["mean"] < losses["far"]
    assert record.tried["near"].loss_after < record.tried["near"].loss
    assert json.loads(record.model_dump_json())["tried"].keys() == losses.keys()


@pytest.mark.parametrize("books", [1, 3])
def test_a_few_books_are_enough_to_choose_a_size_and_a_start(tmp_path, books, monkeypatch):
    """A book is one document of training text: a part of each is measured, and all others are learnt from."""
    texts = documents(FRENCH, 600, 3)
    novels = ["\n\n".join(texts[i::books]) for i in range(books)]
    for split in ("train", "valid"):
        write_jsonl(tmp_path / "documents" / split / "eng_Latn" / "book.jsonl.gz", documents(ENGLISH, 60, 4))
        write_jsonl(tmp_path / "documents" / split / "fra_Latn" / "book.jsonl.gz", novels)
    monkeypatch.setattr(new_rows, "PROBE_STEPS", 2)
    monkeypatch.setattr("tokenizer_tools.start.STARTS", {"mean": STARTS["mean"]})
    ctx, few = context(tmp_path / "02-tokens"), Corpus(tmp_path)
    stage(new_tokens="auto", start="probe").run(ctx, base(tmp_path, tied=True), few)
    assert ctx.summary[-1].new_tokens > 20 and ctx.summary[-1].rows.tried["mean"].loss_after is not None
    parts = list(stage()._learnt_from(few, ["fra_Latn"], divided=True))
    assert len(parts) > 40 and "".join("".join(parts).split()) == "".join("".join(novels).split())
    assert list(stage()._learnt_from(few, ["fra_Latn"])) == novels
    # sources take turns by their bytes: one of long documents does not use up what is learnt from
    turns = tokenizer._in_turns([iter([["x" * 1000] * 9]), iter([["y" * 100] * 40])])
    first = list(islice(turns, 22))
    assert [first.count(c * size) for c, size in (("x", 1000), ("y", 100))] == [2, 20] and len(list(turns)) == 9 + 40 - 22


def test_old_runs_are_the_same_recipe_and_a_budget_needs_a_shift():
    keys = json.loads((Path(__file__).parent.parent / "keys_of_identity.json").read_text())["ExtendTokenizer"]
    assert stage().recipe().keys() == set(keys)
    assert stage(start="sample").recipe().keys() - set(keys) == {"start"}
    with pytest.raises(ValidationError, match="is for output: shifted"):
        stage(kl_budget=1e-3)
