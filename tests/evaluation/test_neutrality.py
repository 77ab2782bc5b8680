"""What a certificate says of two models, against direct computation; and the gates that are found in checkpoints."""

import copy
import hashlib
from functools import partial

import pytest
import torch
from cases import calibrate, method, stir
from tokenizers import Tokenizer
from toy import ENGLISH, GERMAN, make_base, make_tokenizer, sentences

from langext.architectures import vocabulary
from langext.evaluation import bpb, certify, gate_stats, neutrality, open_gates
from langext.evaluation.neutrality import Mismatch, Settings, Subject
from langext.exports import checkpoint
from langext.methods import extended
from langext.models import exported, loading

SETS = {
    "eng_Latn/a": [text[:90] for text in sentences(ENGLISH, 3, 1)],
    "eng_Latn/b": [text[:150] for text in sentences(ENGLISH, 2, 2)],
    "deu_Latn/c": [text[:80] for text in sentences(GERMAN, 2, 3)],
}
QUICK = Settings(batch=3, continuations=2, new_tokens=4)


def blocks(pico, gate="hard_sigmoid", dtype=torch.float32):
    """A live model whose blocks do something, and whose gates open for some tokens."""
    live = extended.build(
        loading.load_base(pico, dtype), loading.load_tokenizer(pico),
        method({"name": "neutral_residues", "gate": gate, "width": 24, "init": "lecun", "layers": [1, 2]}),
    )  # fmt: skip
    stir(calibrate(live), 0.3)
    with torch.no_grad():
        for name, parameter in live.learning().items():
            if name.endswith("router.weight"):
                parameter.mul_(3 if "layers.2" in name else 1).sub_(0.15).copy_(parameter.bfloat16())
    live.net.eval()
    return live


@pytest.fixture(scope="module")
def base(pico):
    return Subject(loading.load_tokenizer(pico), partial(loading.load_base, pico, torch.float32))


def of(live):
    return Subject(live.tokenizer, lambda: live.net, watch=gate_stats.opened)


def test_a_model_is_its_own_base(base):
    found = neutrality.measure(base, base, SETS, QUICK)
    for row in [*found["sets"].values(), *found["languages"].values(), found["total"]]:
        assert row["kl"] == row["kl_p99"] == row["worst_kl"] == 0.0
        assert row["same_ids"] == row["hidden_identical"] == row["logits_identical"] == row["continuations_identical"] == 1.0
        assert row["closed"] is None and row["bits_per_byte"] == row["bits_per_byte_of_base"]


def test_figures_equal_their_definitions(base, pico):
    live, net = blocks(pico), base.load()
    found = neutrality.measure(base, of(live), SETS, QUICK, ["eng_Latn/a", "eng_Latn/b"])
    english = [text for name, texts in SETS.items() if name.startswith("eng") for text in texts]
    kls, open_, worst = [], [], {}
    for text in english:
        ids = torch.tensor([neutrality.encode(live.tokenizer, text)])
        with torch.no_grad():
            log_p, log_q = (of_net(input_ids=ids).logits[0].log_softmax(-1) for of_net in (net, live.net))
        kls.append((log_p.exp() * (log_p - log_q)).sum(-1))
        worst[float(kls[-1].mean())] = text
        open_.append(live.method.diagnostics(live.net)["open"][:, 0] > 0)
    total, kl = found["total"], torch.cat(kls)
    assert found["languages"]["eng_Latn"] == total != found["languages"]["deu_Latn"]
    assert total["tokens"] == total["compared"] == len(kl) and total["passages"] == 5 and total["continuations"] == 4
    assert total["kl"] == pytest.approx(float(kl.mean()), rel=1e-4)
    off = torch.stack([each.sum() - kl.mean() * len(each) for each in kls])  # of a ratio of sums: Cochran, Sampling, chapter 6
    assert total["kl_error"] == pytest.approx(float(off.std() * len(kls) ** 0.5) / len(kl), rel=1e-3)
    below = (kl < total["kl_p99"] * 0.999).float().mean()
    assert below < 0.99 <= (kl < total["kl_p99"] * 1.001).float().mean()
    assert total["worst_kl"] == pytest.approx(max(worst), rel=1e-4) and total["worst_text"] == worst[max(worst)]
    closed = torch.cat([~layers.any(0) for layers in open_])
    assert total["closed"] == pytest.approx(float(closed.float().mean()))
    for key, of_net in (("bits_per_byte_of_base", net), ("bits_per_byte", live.net)):
        assert total[key] == pytest.approx(bpb.measure(of_net, live.tokenizer, english).per_byte, rel=1e-5)


def test_what_no_open_gate_has_influenced_has_the_bits_of_the_base(base, pico):
    total = neutrality.measure(base, of(blocks(pico)), SETS, QUICK)["total"]
    assert 0 < total["as_base"] < total["closed"] < 1
    assert total["hidden_identical"] == total["logits_identical"] == total["as_base"] and total["as_base_logit_difference"] == 0


@pytest.mark.parametrize(
    ("gate", "form", "closes"),
    [
        ("hard_sigmoid", "native", True),
        ("sigmoid", "native", False),
        ("relu", "remote", True),
        ("elu", "remote", False),
        ("threshold", "native", True),
        ("threshold", "remote", True),
    ],
)
def test_the_gates_of_an_export_are_found(tmp_path, base, pico, gate, form, closes):
    live = blocks(pico, gate)
    wanted = neutrality.measure(base, of(live), SETS, QUICK)
    checkpoint.save(live, live.method.fold(live.net) if form == "native" else None, tmp_path)
    there = Subject(live.tokenizer, lambda: exported.load(tmp_path, torch.float32, "cpu", trust=form == "remote"))
    got = neutrality.measure(base, there, SETS, QUICK)
    for name, row in got["sets"].items():
        then = wanted["sets"][name]
        assert row["closed"] == then["closed"] and row["as_base"] == then["as_base"] and (row["closed"] is not None) == closes
        assert row["kl"] == pytest.approx(then["kl"], rel=1e-3) and row["bits_per_byte"] == pytest.approx(then["bits_per_byte"])
        assert not closes or row["as_base_logit_difference"] < 1e-5


def test_experts_in_a_list_as_transformers_4_has_them():
    experts = torch.nn.ModuleList([torch.nn.Linear(3, 3, bias=False) for _ in range(2)])
    experts[1].weight.data.zero_()
    assert open_gates._does_something(experts).tolist() == [True, False]
    found = []
    open_gates._of_router(found, 1, torch.tensor([True, False]))(None, None, (torch.tensor([[0], [1]]), torch.ones(2, 1)))
    assert found[0][0] == 1 and found[0][1].tolist() == [True, False]


def test_new_tokens_are_compared_up_to_where_ids_differ(base, pico):
    tokenizer = copy.deepcopy(base.tokenizer)
    net, word = base.load(), "speaks"
    assert tokenizer.add_tokens([word]) == 1
    pieces = base.tokenizer(word, add_special_tokens=False).input_ids
    vocabulary.extend(net, first_new=len(base.tokenizer), num_new=1)
    vocabulary.fill(net, {len(base.tokenizer): pieces})
    sets = {"eng_Latn/a": [f"The cat {word} with the dog.", "The small house."]}
    total = neutrality.measure(base, Subject(tokenizer, lambda: net), sets, QUICK)["total"]
    first, second = (neutrality.encode(base.tokenizer, text) for text in sets["eng_Latn/a"])
    other = neutrality.encode(tokenizer, sets["eng_Latn/a"][0])
    alike = max(count for count in range(len(first)) if first[:count] == other[:count])
    assert 2 < alike < len(first) and total["tokens"] == len(first) + len(second)
    assert total["compared"] == alike + len(second)
    assert total["compared"] / total["tokens"] < total["same_ids"] < 1
    assert total["hidden_identical"] == 1.0 and 0 < total["kl"] < 0.1, "one more id in every softmax"
    assert total["closed"] is None


def test_an_id_that_became_another_token_is_not_compared():
    """As with `reuse_slots`: two reserved tokens of the base are new tokens of the model."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<|reserved_{i}|>" for i in range(4)], special_tokens=True)
    renamed = copy.deepcopy(tokenizer)
    text = tokenizer.backend_tokenizer.to_str().replace("<|reserved_2|>", "forêt").replace("<|reserved_3|>", "garçon")
    renamed._tokenizer = Tokenizer.from_str(text)
    first, count = make_base("llama", len(tokenizer)).float().eval(), len(tokenizer)
    net = copy.deepcopy(first)
    vocabulary.extend(net, count, 2, [count - 2, count - 1])
    net.get_input_embeddings().new_weight.data.normal_(0, 0.1)
    closed = Subject(renamed, lambda: net, watch=lambda _: lambda b, t: torch.zeros(4, b, t, dtype=torch.bool))
    found = neutrality.measure(Subject(tokenizer, lambda: first), closed, {"eng_Latn/a": sentences(ENGLISH, 4, 3)}, QUICK)[
        "total"
    ]
    assert found["as_base"] == found["hidden_identical"] == found["logits_identical"] == 1.0
    assert found["as_base_logit_difference"] == 0.0


def test_what_cannot_be_measured_is_said(base, pico):
    with pytest.raises(Mismatch, match="a passage has .* tokens, and LlamaForCausalLM has 256 positions"):
        neutrality.measure(base, base, {"eng_Latn/a": ["cat " * 400]}, QUICK)
    narrow = make_base("llama", len(base.tokenizer), hidden_size=32, rope_parameters=None).float().eval()
    with pytest.raises(Mismatch, match="hidden states of different widths"):
        neutrality.measure(base, Subject(base.tokenizer, lambda: narrow), SETS, QUICK)
    other = make_tokenizer()
    other.eos_token = "a"
    with pytest.raises(Mismatch, match="begin a text with different tokens"):
        neutrality.measure(base, Subject(other, base.load), SETS, QUICK)
    broken = base.load()
    broken.model.norm.weight.data.fill_(float("nan"))
    broken.get_output_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(ArithmeticError, match="no finite number"):
        neutrality.measure(base, Subject(base.tokenizer, lambda: broken), SETS, QUICK)
    capped = base.load()
    capped.config.final_logit_softcapping = 0.5  # a Llama does not know this setting
    with pytest.raises(Mismatch, match="more than its head"):
        neutrality.measure(base, Subject(base.tokenizer, lambda: capped), SETS, QUICK)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"kl": 0.0102, "closed": 0.9985, "bits_per_byte": 0.5}, []),
        ({"kl": 0.0103}, ["kl 0.010000 -> 0.010300"]),
        ({"kl": float("nan")}, ["kl 0.010000 -> nan"]),
        ({"same_ids": 0.9999}, ["same_ids 100.00% -> 99.99%"]),
        ({"closed": None}, ["closed 100.00% -> none"]),
        ({"continuations_identical": 0.9}, ["continuations_identical 100% -> 90%"]),
    ],
)
def test_what_is_worse_than_certified(change, expected):
    then = {"kl": 0.01, "kl_p99": 0.1, "bits_per_byte": 1.0, "same_ids": 1.0, "closed": 1.0, "as_base": None,
            "continuations_identical": 1.0}  # fmt: skip
    assert certify.worse(then, then | change, certify.ALLOWED) == expected


def test_text_is_shown_on_one_line_and_cut():
    assert neutrality.shown("a\n\x1b[0m\u202eb") == "a\\n\\x1b[0m\\u202eb"
    assert len(neutrality.shown("long " * 100)) == neutrality.TEXT_CUT and neutrality.shown("long " * 100).endswith("...")


def test_files_of_a_base_on_the_hub_are_those_of_its_commit(tmp_path, monkeypatch):
    asked = []
    (tmp_path / "there").write_bytes(b"weights")

    def cached(*args, **more):
        asked.append((*args, more))
        return str(tmp_path / "there")

    monkeypatch.setattr("transformers.utils.hub.cached_file", cached)
    said = {"name": "some/base", "files": [{"name": "a.safetensors", "sha256": hashlib.sha256(b"weights").hexdigest()}]}
    certify.check_files(said, "some/base", "c0ffee")
    assert asked == [("some/base", "a.safetensors", {"revision": "c0ffee"})]
    (tmp_path / "there").write_bytes(b"others")
    with pytest.raises(ValueError, match=r"some/base is not what neutrality.json names as some/base: a.safetensors differs"):
        certify.check_files(said, "some/base", None)
