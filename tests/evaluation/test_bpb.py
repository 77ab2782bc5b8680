import numpy as np
import pytest
import torch

from langext.evaluation import bpb
from langext.models import loading


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
    texts = ["one two three four five six " * 30, "short text"]
    cut = bpb.passages(texts, 100, 10_000)
    assert cut[1] == "short text"
    assert "".join("".join(p.split()) for p in [cut[0], *cut[2:]]) == "".join(texts[0].split())
    assert sum(len(p.encode()) for p in bpb.passages(texts, 100, 150)) < 260


def test_standard_error_shrinks_with_the_number_of_passages():
    generator = np.random.default_rng(0)
    few, many = (bpb.PassageBits(generator.normal(100, 10, n), np.full(n, 50)) for n in (20, 2000))
    assert many.stderr() < few.stderr() / 5
    assert many.stderr() == pytest.approx(10 / 50 / 2000**0.5, rel=0.1)
