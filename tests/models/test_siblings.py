"""Which bases are siblings, and what is said of those that are none."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import make_llama, make_tokenizer

from langext.models import siblings


def save(folder, tokenizer=None, seed=0, **more):
    """A base as a folder, with weights of its own."""
    tokenizer = tokenizer or make_tokenizer()
    net = make_llama(len(tokenizer), **more)
    torch.manual_seed(seed)
    for parameter in net.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape).bfloat16()
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_other_weights_positions_and_tokens_of_a_chat_make_no_difference(pico, tmp_path):
    tokenizer = make_tokenizer()
    other = save(tmp_path / "other", tokenizer, seed=5, max_position_embeddings=512)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(other)
    assert siblings.differences(pico, other) == siblings.differences(other, pico) == []


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"hidden_size": 32}, ["hidden_size: 64 there, 32 here", "head_dim: 16 there, 8 here"]),
        ({"intermediate_size": 128}, ["intermediate_size: 96 there, 128 here"]),
        ({"num_key_value_heads": 4}, ["num_key_value_heads: 2 there, 4 here"]),
        ({"tied": False}, ["tie_word_embeddings: True there, False here"]),
        ({"hidden_act": "gelu"}, ["activation: silu there, gelu here"]),
        ({"attention_bias": True}, ["model.layers.0.self_attn.k_proj.bias: none there, 32 here (and 11 more)"]),
    ],
)
def test_each_difference_is_one_line(pico, tmp_path, more, expected):
    assert siblings.differences(pico, save(tmp_path, **more)) == expected


def test_a_tensor_of_another_shape_is_named(pico, tmp_path):
    shutil.copytree(pico, tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] = torch.ones(65)
    save_file(weights, path)
    assert siblings.differences(pico, tmp_path / "other") == ["model.norm.weight: 64 there, 65 here"]


def test_tokens_that_have_moved_are_told(pico, tmp_path):
    shutil.copytree(pico, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    state = json.loads(path.read_text())
    vocab = state["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(state))
    (line,) = siblings.differences(pico, tmp_path / "other")
    assert line == f"id of the token 'a': {vocab['b']} there, {vocab['a']} here (and 1 more)"
