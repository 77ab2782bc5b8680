from types import SimpleNamespace

import numpy as np
import pytest
import regex
import torch

from langext.context import Context
from langext.data import batches, documents
from langext.errors import ConfigError, RunFailed
from langext.evaluation import bpb, generation
from langext.evaluation.kl import BaseKL
from langext.models import loading
from langext.training import setup


def test_bits_per_byte_equals_the_definition(pico):
    net, tokenizer = loading.load_base(pico, torch.float32), loading.load_tokenizer(pico)
    text = "The small cat sleeps. Le garçon déjà aimé."  # two-byte letters are several tokens here
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]])
    with torch.no_grad():
        log_p = net(input_ids=ids).logits[0, :-1].log_softmax(-1)
    bits = -log_p.gather(1, ids[0, 1:, None]).sum().item() / np.log(2)
    measured = bpb.measure(net, tokenizer, [text, "Rain."])
    assert measured.bits[0] == pytest.approx(bits, rel=1e-5)
    assert measured.num_bytes.tolist() == [len(text.encode()), 5]


def test_a_long_text_is_scored_whole_and_once(pico):
    """Windows score each token once: in a model without attention the sum does not depend on the window."""
    net, tokenizer = loading.load_base(pico, torch.float32), loading.load_tokenizer(pico)
    for layer in net.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    text = "The cat sees the dog in the street and the pupil speaks with the boy. " * 10
    short, long = (bpb.measure(net, tokenizer, [text], window=w).bits[0] for w in (16, 4096))
    assert short == pytest.approx(long, rel=1e-5)


def test_padding_does_not_change_a_text(pico):
    net, tokenizer = loading.load_base(pico, torch.float32), loading.load_tokenizer(pico)
    texts = ["Rain.", "The pupil speaks English in the forest with the boy. " * 3]
    together = bpb.measure(net, tokenizer, texts).bits
    apart = [bpb.measure(net, tokenizer, [t]).bits[0] for t in texts]
    assert together == pytest.approx(apart, rel=1e-5)


def test_passages_take_turns_and_keep_every_character():
    words = [f"word{number}" for number in range(200)]
    texts = [" ".join(words), "short text"]
    cut = bpb.passages(texts, 100, 10_000)
    assert "short text" in cut[:2]
    assert sorted(word for passage in cut if passage != "short text" for word in passage.split()) == sorted(words)
    assert sum(len(p.encode()) for p in bpb.passages(texts, 100, 150)) < 260


def test_passages_are_spread_over_all_documents_whatever_the_order_of_files():
    texts = [" ".join(f"{name}{number}" for number in range(300)) for name in "abcdefghij"]
    chosen = bpb.passages(texts, 200, 2000)
    assert chosen == bpb.passages(texts[::-1] + texts[:3], 200, 2000)  # and what is there twice counts once
    assert {passage[0] for passage in chosen} == set("abcdefghij")
    assert sum(passage.startswith(f"{passage[0]}0 ") for passage in chosen) < 5, "most are not the beginning of a document"
    assert [passage[0] for passage in chosen] != sorted(passage[0] for passage in chosen)
    others = bpb.passages(texts, 200, 2000, last=True)
    assert len(others) == len(chosen) and not set(others) & set(chosen), "what chooses a setting is not what judges it"


@pytest.mark.parametrize(
    "unit",
    ["ที่นี้", "漢字", "\u1100\u1161\u11a8", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "e\u0301\u0323", "a"],
    ids=["Thai", "Chinese", "decomposed Korean", "a family", "two accents", "Latin"],
)  # fmt: skip
def test_passages_are_of_bytes_and_end_between_characters_as_readers_see_them(unit):
    text = unit * 1000
    cut = bpb._cut(text, 1000)
    assert "".join(cut) == text
    assert all(900 < len(passage.encode()) <= 1000 for passage in cut[:-1])
    whole = regex.findall(r"\X", text)
    assert [grapheme for passage in cut for grapheme in regex.findall(r"\X", passage)] == whole


def test_no_window_is_longer_than_the_model_has_positions(pico):
    net, tokenizer = loading.load_base(pico, torch.float32), loading.load_tokenizer(pico)
    text = "The cat sees the dog in the street and the pupil speaks with the boy. " * 4
    wanted = bpb.measure(net, tokenizer, [text], window=24).bits[0]
    assert bpb.measure(net, tokenizer, [text]).bits[0] != wanted
    net.config.max_position_embeddings = 24
    assert bpb.measure(net, tokenizer, [text]).bits[0] == wanted
    assert [len(row) for row in BaseKL(net, tokenizer, [text]).rows] == [24]
    with pytest.raises(ConfigError, match=r"prompts: 'The cat .*has \d+ tokens, and the model 24 positions"):
        generation.generate(net, tokenizer, text, 4)
    with pytest.raises(ConfigError, match="tokens, and the model 24 positions"):
        generation.refuse_long(net, tokenizer, {"eng_Latn": ["The cat", text]})
    assert generation.generate(net, tokenizer, "The cat", 100).tokens < 24
    assert generation.fits(net, tokenizer, "The cat") and not generation.fits(net, tokenizer, text)


def test_kl_of_a_text_is_the_same_in_any_batch_and_reads_it_whole(pico, monkeypatch):
    net, other = loading.load_base(pico, torch.float32), loading.load_base(pico, torch.float32)
    for parameter in other.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    tokenizer = loading.load_tokenizer(pico)
    for one in (net, other):
        one.config.max_position_embeddings = 1024
    texts = ["The cat. ", "The cat sees the dog in the street. " * 3, "A pupil speaks with the boy. " * 80, "x"]
    alone = [BaseKL(net, tokenizer, [text]) for text in texts]
    assert len(alone[2].rows[0]) > 512
    monkeypatch.setattr(batches, "TOKENS", 150)
    together = BaseKL(net, tokenizer, texts)
    assert together.each(other) == pytest.approx([one.each(other)[0] for one in alone], rel=1e-4)


def test_a_setting_is_not_judged_by_the_passages_it_was_chosen_on(tmp_path, monkeypatch):
    domains = {f"{code}/book": [f"{code} {number}. " * 150 for number in range(20)] for code in ("fra_Latn", "eng_Latn")}
    monkeypatch.setattr(documents, "heldout", lambda *_: domains)
    ctx = Context(tmp_path, 1, "fra_Latn", ("eng_Latn",))
    settings = SimpleNamespace(eval_bytes=5000, check_heldout=lambda *_: None)
    for chosen in (bpb.Ruler(ctx, None, 5000).passages, setup._probes(settings, ctx, None)):
        for name, texts in domains.items():
            assert len(chosen[name]) >= 5 and not set(chosen[name]) & set(bpb.passages(texts, 1000, 5000))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_setting_that_is_no_number_is_never_the_best(bad):
    rows = [{"score": bad, "alpha": 1.0}, {"score": 0.5, "alpha": 0.5}, {"score": bad, "alpha": 0.0}]
    assert bpb.best(rows)["alpha"] == 0.5 and bpb.best(rows[::-1])["alpha"] == 0.5
    with pytest.raises(RunFailed, match="no setting gives bits per byte that are a finite number"):
        bpb.best(rows[::2])


def test_standard_error_shrinks_with_the_number_of_passages():
    generator = np.random.default_rng(0)
    few, many = (bpb.PassageBits(generator.normal(100, 10, n), np.full(n, 50)) for n in (20, 2000))
    assert many.stderr() < few.stderr() / 5
    assert many.stderr() == pytest.approx(10 / 50 / 2000**0.5, rel=0.1)
