"""GGUF files, run in llama.cpp."""

import json
import shutil

import gguf
import pytest
import torch
from cases import CASES, calibrate, method, stir
from safetensors.torch import load_file, save_file
from test_exports import CARD, TEXTS, extended_model
from tokenizers import processors
from toy import make_base, make_tokenizer

from langext.artifacts import read_json, write_json
from langext.errors import ConfigError, RunFailed
from langext.exports import checkpoint, formats, targets, verify, write
from langext.exports.gguf import check, file, reload, vocabulary
from langext.methods import NeutralResidues, extended
from langext.models import loading

BY_GATE = {case["gate"]: case for case in CASES if case["name"] == "neutral_residues"}
MADE = [
    ("llama", "sigmoid", "GraniteMoeSharedForCausalLM"),
    ("mistral", "sigmoid", "GraniteMoeHybridForCausalLM"),
    ("mistral", "threshold", "Glm4MoeForCausalLM"),
    ("qwen2", "sigmoid", "Qwen2MoeForCausalLM"),
    ("qwen3", "hard_sigmoid", "Glm4MoeForCausalLM"),
    ("gemma", "none", "GemmaForCausalLM"),
    ("gemma2", "none", "Gemma2ForCausalLM"),
    ("gemma3_text", "none", "Gemma3ForCausalLM"),
]


def made(family, gate, folder):
    """A stock checkpoint of an extended pico model, and what it computes."""
    tokenizer = make_tokenizer()
    make_base(family, len(tokenizer)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    net = loading.load_base(folder / "base", torch.float32)
    live = calibrate(extended.build(net, tokenizer, method(BY_GATE[gate])))
    stir(live)
    net = live.methods[-1].fold(live.net).model(whole=True, rounded=True)
    expected = verify.expect(net, tokenizer, TEXTS, folder / "logits")
    (folder / "stock").mkdir()
    checkpoint.save(live, live.methods[-1].fold(live.net), folder / "stock")
    return folder / "stock", expected


@pytest.mark.parametrize(("family", "gate", "architecture"), MADE)
def test_llama_cpp_computes_what_transformers_computes(family, gate, architecture, tmp_path):
    stock, expected = made(family, gate, tmp_path)
    assert read_json(stock / "config.json")["architectures"] == [architecture]
    for precision, most in (("f32", 1e-5), ("q8_0", 2e-3)):
        path = tmp_path / f"{precision}.gguf"
        file.write(stock, path, precision)
        found = check.compare(path, precision, expected)
        assert abs(found["kl_per_token_nats"]) < most and found["tokenized_equal"] == len(TEXTS)
        assert precision == "q8_0" or found["top1_agreement"] > 0.9


def test_a_file_whose_tokenizer_ends_every_text_can_be_run(tmp_path):
    tokenizer = make_tokenizer()
    ends = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", tokenizer.eos_token_id)])
    tokenizer._tokenizer.post_processor = ends
    make_base("llama", len(tokenizer)).save_pretrained(tmp_path / "stock")
    tokenizer.save_pretrained(tmp_path / "stock")
    net = loading.load_base(tmp_path / "stock", torch.float32)
    text = f"{TEXTS[0][:60]} <|end|>"  # and what spells a special token is text there, too
    expected = verify.expect(net, loading.load_tokenizer(tmp_path / "stock"), [text], tmp_path / "logits")
    assert expected.whole[0] == [*expected.ids[0], 0] and 0 not in expected.ids[0]
    file.write(tmp_path / "stock", tmp_path / "f32.gguf", "f32")
    found = check.compare(tmp_path / "f32.gguf", "f32", expected)
    assert found["tokenized_equal"] == 1 and abs(found["kl_per_token_nats"]) < 1e-5


def test_an_export_of_two_files_with_card_and_modelfile(tmp_path, pico):
    model = extended_model(tmp_path, pico, NeutralResidues(name="neutral_residues", gate="hard_sigmoid", width=32))
    record = write.write(model, tmp_path / "out", "gguf", TEXTS, CARD, formats.GGUF(("q8_0", "bf16")))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model-q8_0.gguf", "model-bf16.gguf", "Modelfile", "README.md", "export.json"}
    assert [file.verified for file in record.files] == [True, True]
    assert record.files[0].bytes < record.files[1].bytes
    assert "model-q8_0.gguf" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("top", [8, 512])
@pytest.mark.parametrize("wrong", ["rows", "router", "rope", "merges"])
def test_a_wrong_file_is_not_kept(wrong, top, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "TOP", top)  # 8 of 320 tokens, as 512 are of a real vocabulary
    stock, expected = made("llama", "sigmoid", tmp_path)
    if wrong == "rows":
        monkeypatch.setattr(file, "_interleave", lambda weight, heads: weight)
    if wrong == "router":
        tensors = load_file(stock / "model.safetensors")
        for name in tensors:
            if "router" in name:
                tensors[name] = tensors[name].flip(0).contiguous()
        save_file(tensors, stock / "model.safetensors", metadata={"format": "pt"})
    if wrong == "rope":
        monkeypatch.setattr(file, "_rope_factors", lambda config: torch.ones(8))
    if wrong == "merges":
        state = read_json(stock / "tokenizer.json")
        state["model"]["merges"] = state["model"]["merges"][:-10]
        write_json(stock / "tokenizer.json", state)
    file.write(stock, tmp_path / "wrong.gguf", "f32")
    said = "other tokens" if wrong == "merges" else "KL is above"
    with pytest.raises(RunFailed, match=said):
        check.compare(tmp_path / "wrong.gguf", "f32", expected)


def test_the_divergence_over_some_tokens_is_a_lower_bound():
    torch.manual_seed(0)
    for scale in (0.1, 1.0, 8.0):
        want, got = (torch.randn(300, dtype=torch.double).mul(scale).log_softmax(-1) for _ in range(2))
        whole = (want.exp() * (want - got)).sum().item()
        chosen = got.topk(10).indices
        part = reload.divergence(want[chosen], got[chosen], rest=True)
        assert 0 < part <= whole
        assert reload.divergence(want, got, rest=False) == pytest.approx(whole)
    assert reload.divergence(want[chosen], want[chosen], rest=True) == pytest.approx(0, abs=1e-9)


def test_without_the_runner_files_are_written_and_called_unverified(tmp_path, pico, monkeypatch, capsys):
    monkeypatch.setattr(check, "RUNNER", "no_such_module")
    model = extended_model(tmp_path, pico, NeutralResidues(name="neutral_residues", gate="none", width=32))
    record = write.write(model, tmp_path / "out", "gguf", TEXTS, CARD)
    assert [file.verified for file in record.files] == [False]
    assert "not run in llama.cpp" in capsys.readouterr().err


def test_what_llama_cpp_computes_otherwise_is_refused_when_planning(tmp_path):
    make_base("llama", 320).save_pretrained(tmp_path)
    config = loading.load_config(tmp_path)
    hard = NeutralResidues(name="neutral_residues", gate="hard_sigmoid")
    with pytest.raises(ConfigError, match="glm4moe has no llama3 rope; possible: native, remote"):
        targets.choose(config, [hard], "gguf")
    config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ConfigError, match="rope of type yarn"):
        targets.choose(config, [method({"name": "full"})], "gguf")
    make_base("gemma2", 320).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="every layer number divisible by 2"):
        targets.choose(loading.load_config(tmp_path), [method({"name": "expansion_blocks", "every": 2})], "gguf")
    assert targets.choose(loading.load_config(tmp_path), [method({"name": "grow"})], "gguf") == "gguf"


def test_an_unknown_pre_tokenizer_must_be_named(tmp_path, pico):
    shutil.copytree(pico, tmp_path / "pico")
    state = read_json(tmp_path / "pico" / "tokenizer.json")
    state["pre_tokenizer"] = {"type": "Whitespace"}
    write_json(tmp_path / "pico" / "tokenizer.json", state)
    with pytest.raises(ConfigError, match="gguf_pre: llama-bpe"):
        file.write(tmp_path / "pico", tmp_path / "x.gguf", "f32")
    file.write(tmp_path / "pico", tmp_path / "x.gguf", "f32", pre="gpt-2")
    assert gguf.GGUFReader(tmp_path / "x.gguf").get_field("tokenizer.ggml.pre").contents() == "gpt-2"


DIGITS = {"type": "Digits", "individual_digits": True}
PLAIN = {"type": "ByteLevel", "use_regex": False}
SPLIT = {"type": "Split", "behavior": "Isolated", "pattern": {"Regex": vocabulary.LLAMA3}}


@pytest.mark.parametrize(
    ("steps", "skips_merges", "expected"),
    [
        ([DIGITS, {"type": "ByteLevel", "use_regex": True}], False, "smollm"),
        ([SPLIT, PLAIN], True, "llama-bpe"),
        ([SPLIT, PLAIN], False, None),
        ([SPLIT | {"invert": True}, PLAIN], True, None),
        ([SPLIT, PLAIN | {"add_prefix_space": True}], True, None),
        ([DIGITS | {"individual_digits": False}, {"type": "ByteLevel"}], False, None),
    ],
)
def test_pre_tokenizers_are_recognised_by_their_rules(steps, skips_merges, expected):
    state = {"model": {"ignore_merges": skips_merges}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    assert vocabulary.pre_tokenizer(state) == expected


@pytest.mark.parametrize("spaces", ["prepended by the normalizer", "by the pre-tokenizer", "not prepended"])
def test_sentencepiece_like_vocabularies_split_alike(tmp_path, spaces):
    """A byte-fallback BPE with ▁ for spaces, as Llama 2, Mistral and Gemma have."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from toy import ENGLISH, sentences
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend("▁")] if spaces == "prepended by the normalizer" else []
    if spaces == "by the pre-tokenizer":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text.replace(" ", "▁") for text in sentences(ENGLISH, 200, 1)], trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    net = make_base("gemma", len(made))
    net.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    texts = ["the big cat sleeps under the sun", "forêt déjà 123"]
    expected = verify.expect(loading.load_base(tmp_path, torch.float32), made, texts, tmp_path / "logits")
    file.write(tmp_path, tmp_path / "x.gguf", "f32")
    check.compare(tmp_path / "x.gguf", "f32", expected)


@pytest.mark.parametrize("name", ["llama2", "gemma", "byte-level", "with special tokens behind"])
def test_an_extended_vocabulary_splits_alike(name, tmp_path):
    """New pieces of SentencePiece get scores below those of the base, in their order, and new merges follow those of the base:
    llama.cpp, too, writes a text in the same tokens.
    """
    import spm
    from toy import FRENCH, make_tokenizer, sentences

    from tokenizer_tools import kinds

    base = spm.load(spm.write(tmp_path / "base", name)) if name in spm.SETTINGS else make_tokenizer()
    if "behind" in name:  # as in Llama 3 and Qwen
        base.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    kind, backend = kinds.of(base), base.backend_tokenizer
    found = kind.learn(backend, kind.word_counts(backend, sentences(FRENCH, 100, 9)), 40, 5)
    made = kind.extended(base, found)
    make_base("llama", len(made)).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    texts = [*sentences(FRENCH, 3, 10), "the big cat sleeps, 123 forêt garçon", "le chat  <b>dort</b>\n\nla 日本"]
    expected = verify.expect(loading.load_base(tmp_path, torch.float32), made, texts, tmp_path / "logits")
    assert any(i >= len(base) for row in expected.ids for i in row)
    file.write(tmp_path, tmp_path / "x.gguf", "f32")
    assert check.compare(tmp_path / "x.gguf", "f32", expected)["tokenized_equal"] == len(texts)


@pytest.mark.parametrize("name", ["llm-jp", "t5"])
def test_an_extended_unigram_vocabulary_is_refused_as_its_base_is(name, tmp_path):
    """Before anything is trained: the base gives the same reason."""
    import spm
    from toy import FRENCH, sentences

    from tokenizer_tools import kinds

    base = spm.load(spm.write(tmp_path / "base", name))
    kind, backend = kinds.of(base), base.backend_tokenizer
    kind.extended(base, kind.learn(backend, kind.word_counts(backend, sentences(FRENCH, 100, 9)), 20, 5)).save_pretrained(
        tmp_path
    )
    reasons = {vocabulary.obstacle(folder, None) for folder in (tmp_path / "base", tmp_path)}
    assert reasons == {"a tokenizer of type Unigram is not written; BPE is"}
