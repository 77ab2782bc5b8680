"""Bases whose files do not belong together: refused from headers, with both numbers, before anything is loaded."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import make_base, make_tokenizer
from transformers import AddedToken

from langext.errors import ConfigError
from langext.models import base_files, bases, loading

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def base(pico, tmp_path):
    return shutil.copytree(pico, tmp_path / "model")


def edit(folder, name="config.json", **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reweigh(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def split(folder, **index):
    """The weights in two files with an index; `index` are changes of it."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, held in parts.items() for name in held} | index
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def recast(folder, dtype):
    reweigh(folder, lambda tensors: tensors.update({UP: tensors[UP].to(dtype)}))


def remove(name):
    return lambda folder: reweigh(folder, lambda tensors: tensors.pop(name))


def add_tokens(folder):
    tokenizer = loading.load_tokenizer(folder)
    tokenizer.add_tokens([AddedToken("<|new|>", special=True)])
    tokenizer.save_pretrained(folder)


UP = "model.layers.1.mlp.up_proj.weight"
WRONG = {
    "a matrix is missing": (remove(UP), "missing from the weights: model.layers.1.mlp.up_proj.weight"),
    "a norm is missing": (remove("model.norm.weight"), "missing from the weights: model.norm.weight"),
    "the head is missing": (
        lambda d: edit(d, tie_word_embeddings=False),
        "tie_word_embeddings is false in config.json; missing from the weights: lm_head.weight",
    ),
    "the embeddings are missing": (remove("model.embed_tokens.weight"), "0 tensors called embed_tokens.weight"),
    "a tensor too many": (
        lambda d: reweigh(d, lambda t: t.update({"model.layers.1.mlp.extra": torch.ones(2)})),
        "tensors that LlamaForCausalLM does not have: model.layers.1.mlp.extra",
    ),
    "another name": (
        lambda d: reweigh(d, lambda t: t.update({UP.replace("up_proj", "upproj"): t.pop(UP)})),
        "missing from the weights: model.layers.1.mlp.up_proj.weight; is it model.layers.1.mlp.upproj.weight",
    ),
    "another shape": (
        lambda d: reweigh(d, lambda t: t.update({UP: torch.ones(7, 64)})),
        "model.layers.1.mlp.up_proj.weight is 7 x 64 in the weights, and 96 x 64 by config.json",
    ),
    "more layers in the config": (lambda d: edit(d, num_hidden_layers=5), "num_hidden_layers is 5, and there are 3 layers"),
    "fewer layers in the config": (lambda d: edit(d, num_hidden_layers=2), "num_hidden_layers is 2, and there are 3 layers"),
    "a billion layers": (lambda d: edit(d, num_hidden_layers=10**9), "num_hidden_layers is 1000000000, and there are 3"),
    "a huge width": (lambda d: edit(d, hidden_size=10**12), "hidden_size is 1000000000000, and there are 64"),
    "a huge feed-forward network": (lambda d: edit(d, intermediate_size=10**12), "larger than any matrix in the weights"),
    "a stale vocab_size": (lambda d: edit(d, vocab_size=300), "vocab_size is 300, and there are 320 rows"),
    "tokens without rows": (add_tokens, r"ids up to 320 \('<\|new\|>'\), and the embedding matrix has 320 rows"),
    "pad outside": (lambda d: edit(d, pad_token_id=320), "config.json: pad_token_id is 320, and the embedding matrix has 320"),
    "end outside": (lambda d: edit(d, eos_token_id=[0, 999]), "config.json: eos_token_id is 999"),
    "end outside, when writing": (
        lambda d: edit(d, "generation_config.json", eos_token_id=999),
        "generation_config.json: eos_token_id is 999",
    ),
    "no end": (lambda d: edit(d, "tokenizer_config.json", eos_token=None), r"no end-of-text token.*for example '<\|end\|>'"),
    "quantised": (
        lambda d: edit(d, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"quantised \(bitsandbytes\), and a quantised base cannot be extended",
    ),
    "a pointer": (lambda d: (d / "model.safetensors").write_text(LFS), "model.safetensors: this is a Git LFS pointer"),
    "zeros": (lambda d: (d / "model.safetensors").write_bytes(bytes(100)), "model.safetensors: cannot be read as safetensors"),
    "cut off": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-64]),
        "cannot be read as safetensors: .*(incomplete|Incomplete)",
    ),
    "an absurd header": (
        lambda d: (d / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}"),
        "cannot be read as safetensors",
    ),
    "a part is missing": (lambda d: (split(d), (d / "b.safetensors").unlink()), "b.safetensors: no such file"),
    "a path in the index": (lambda d: split(d, x="../../etc/passwd"), "names a file outside of its folder: '../../etc/passwd'"),
    "no index": (
        lambda d: (d / "model.safetensors").rename(d / "x.bin"),
        "no model.safetensors .* here; there is x.bin. Other weight formats are not read",
    ),
    "an adapter": (
        lambda d: (
            (d / "model.safetensors").rename(d / "adapter_model.safetensors"),
            (d / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}'),
        ),
        r"an adapter \(PEFT\) of some/base, not a model",
    ),
    "an adapter beside the weights": (
        lambda d: (d / "adapter_config.json").write_text("{}"),
        "an adapter .* lies beside the weights; if it is merged into them, remove adapter_config.json",
    ),
    "a head of its own, and a config that says tied": (
        lambda d: reweigh(d, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})),
        "two different matrices; set tie_word_embeddings to false",
    ),
    "a long name in the index": (lambda d: split(d, x="x" * 5000), "names a file outside of its folder"),
    "a comma too many": (
        lambda d: (d / "config.json").write_text('{"model_type": "llama",\n}'),
        "config.json: line 2, column 1: not valid JSON",
    ),
    "a list": (lambda d: (d / "config.json").write_text("[]"), "config.json: expected a JSON object, and it holds list"),
    "nested": (lambda d: (d / "config.json").write_text("[" * 100_000), "nested too deeply"),
    "UTF-16": (lambda d: (d / "config.json").write_text("{}", encoding="utf-16"), "not UTF-8 text"),
    "a wrong type": (lambda d: edit(d, hidden_size="many"), "config.json"),
    "another tokenizer": (lambda d: edit(d, "tokenizer.json", model={"type": "Newer"}), "cannot be read as a tokenizer by"),
    "a page": (lambda d: (d / "model.safetensors").write_text("<!doctype html>"), "model.safetensors: this is a web page"),
    "a pointer for its config": (lambda d: (d / "config.json").write_text(LFS), "config.json: this is a Git LFS pointer"),
    "a pointer for its tokenizer": (lambda d: (d / "tokenizer.json").write_text(LFS), "tokenizer.json: this is a Git LFS"),
    "a pointer for a model of SentencePiece": (
        lambda d: (d / "tokenizer.json").rename(d / "tokenizer.model").write_text(LFS),
        "tokenizer.model: this is a Git LFS pointer",
    ),
    "no model of SentencePiece": (
        lambda d: (d / "tokenizer.json").rename(d / "tokenizer.model").write_text("x"),
        "tokenizer.model: cannot be read as a model of SentencePiece",
    ),
    "half a tokenizer": (lambda d: (d / "tokenizer.json").rename(d / "vocab.json"), "merges.txt, which belongs to it, is not"),
    "broken special tokens": (
        lambda d: (d / "special_tokens_map.json").write_text("{"),
        "special_tokens_map.json: line 1, column 2: not valid JSON",
    ),
    "a template in another encoding": (
        lambda d: (d / "chat_template.jinja").write_bytes(b"\xff"),
        "chat_template.jinja: cannot be read as a chat template: not UTF-8",
    ),
    "a byte order mark": (
        lambda d: (d / "config.json").write_text("{}", encoding="utf-8-sig"),
        "config.json: begins with a byte order mark",
    ),
    "a number for architectures": (lambda d: edit(d, architectures=1), "architectures must be a list of names .got 1"),
    "several pads": (
        lambda d: edit(d, "generation_config.json", pad_token_id=[0, 1]),
        r"generation_config.json: pad_token_id is \[0, 1\]",
    ),
    "quantised, and nobody says how": (lambda d: edit(d, quantization_config={}), r"quantised \(\?\)"),
    "eight bits": (lambda d: recast(d, torch.int8), f"{re.escape(UP)} is stored as I8: quantised weights"),
    "a float of eight bits": (lambda d: recast(d, torch.float8_e4m3fn), f"{re.escape(UP)} is stored as F8_E4M3: quantised"),
    "parts without an index": (
        lambda d: (d / "model.safetensors").rename(d / "model-00001-of-00002.safetensors"),
        "no model.safetensors.index.json here, which says what is in model-00001-of-00002",
    ),
    "a link to nowhere": (
        lambda d: ((d / "model.safetensors").unlink(), (d / "model.safetensors").symlink_to("../blobs/x")),
        "model.safetensors is a link to ../blobs/x, which is not there",
    ),
    "an adapter alone": (
        lambda d: ((d / "config.json").unlink(), (d / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')),
        r"an adapter \(PEFT\) of a/b, not a model",
    ),
    "a folder of checkpoints": (
        lambda d: ((d / "step-9").mkdir(), (d / "config.json").rename(d / "step-9" / "config.json")),
        "no config.json here.*; give .*/model/step-9\\?",
    ),
    "weights of the decoder alone": (
        lambda d: reweigh(d, lambda t: [t.update({n.removeprefix("model."): t.pop(n)}) for n in list(t)]),
        "no tensor is called model.layers.0...; there is norm.weight",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_files_that_do_not_belong_together(base, kind):
    damage, expected = WRONG[kind]
    bases.check(str(base))
    damage(base)
    with pytest.raises(ConfigError, match=expected) as caught:
        bases.check(str(base))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


FORMS = {
    "tekken.json": ('{"config": {}}', "tekken.json has another form; take tokenizer.json and tokenizer_config.json"),
    "tokenizer.model.v3": ("x", r"tokenizer.model.v3 is called tokenizer.model where it is read"),
    "spiece.model": ("x", "spiece.model is called tokenizer.model"),
    "tokenizer.model": ("IQ== 0\nIg== 1\n", "is in the form of tiktoken, not of SentencePiece; take tokenizer.json"),
    "tokenizer.model of zeros": ("", "tokenizer.model: is empty"),
    "tokenizer.model of Git": (LFS, "tokenizer.model: this is a Git LFS pointer"),
    "tokenizer.json": (LFS, "tokenizer.json: this is a Git LFS pointer"),
    "vocab.json": ('{"a": 0}', "merges.txt, which belongs to it, is not"),
    "readme.txt": ("x", r"no tokenizer here \(looked for tokenizer.json, tokenizer.model, vocab.json\)$"),
}


@pytest.mark.parametrize("name", FORMS)
def test_tokenizers_of_other_forms_are_named_with_what_to_do(tmp_path, name):
    content, expected = FORMS[name]
    (tmp_path / name.split(" ")[0]).write_text(content)
    with pytest.raises(ConfigError, match=expected):
        loading.load_tokenizer(tmp_path)


def test_what_is_harmless_is_accepted(base):
    """Files in parts, buffers that old versions wrote, and a head that is written although it is tied."""
    split(base)
    bases.check(str(base))
    weights = load_file(base / "a.safetensors") | load_file(base / "b.safetensors")
    for name in ("a.safetensors", "b.safetensors", "model.safetensors.index.json"):
        (base / name).unlink()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    bases.check(str(base))
    net = loading.load_base(base, torch.float32)
    assert torch.equal(net.lm_head.weight, weights["model.embed_tokens.weight"].float())


def test_values_that_are_no_numbers_are_found_before_any_stage(base, tmp_path):
    reweigh(base, lambda tensors: tensors[UP][3].fill_(float("nan")))
    bases.check(str(base))  # reads headers only
    with pytest.raises(ConfigError, match=f"{re.escape(UP)} holds values that are infinite or no numbers"):
        bases.prepare(str(base), None, tmp_path / "run" / "base")


def test_loading_checks_again(base):
    reweigh(base, lambda tensors: tensors.pop(UP))
    with pytest.raises(ConfigError, match="missing keys: .*up_proj"):
        loading.load_base(base, torch.float32)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_family_is_recognised_by_its_tensors(tmp_path, family, tied):
    tokenizer = make_tokenizer()
    make_base(family, len(tokenizer) + 1, tied=tied).save_pretrained(tmp_path)  # Qwen2Tokenizer adds a token of its own
    tokenizer.save_pretrained(tmp_path)
    bases.check(str(tmp_path))


def test_files_that_decide_nothing_do_not_belong_to_a_base(base, tmp_path):
    """As in a clone of a repository: its history, its texts, another form of the weights."""
    (base / ".git").mkdir()
    (base / ".git" / "index").write_text("1")
    (base / "README.md").write_text("1")
    (base / "consolidated.pth").write_text("1")
    bases.prepare(str(base), None, tmp_path / "run" / "base")
    recorded = {file["name"] for file in json.loads((tmp_path / "run" / "base" / "manifest.json").read_text())["files"]}
    assert recorded == {path.name for path in base_files.read(base)} >= {"config.json", "model.safetensors", "tokenizer.json"}
    for name in (".git/index", "README.md", "consolidated.pth"):
        assert name not in recorded
        (base / name).write_text("other")
    bases.check_same(tmp_path / "run", str(base), None)
    edit(base, rms_norm_eps=1e-3)
    with pytest.raises(ConfigError, match="config.json has changed"):
        bases.check_same(tmp_path / "run", str(base), None)


def test_of_two_copies_of_the_weights_that_one_is_taken_which_transformers_reads(tmp_path):
    net = make_base("llama", 320)
    net.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(base_files.weight_files(tmp_path)) > 1
    net.save_pretrained(tmp_path / "whole")
    shutil.copy(tmp_path / "whole" / "model.safetensors", tmp_path)
    assert base_files.weight_files(tmp_path) == [tmp_path / "model.safetensors"]
