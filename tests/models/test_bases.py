"""Base models: what is accepted, what is refused, and with which words."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file
from toy import make_llama

from langext.errors import ConfigError
from langext.models import bases, loading


@pytest.fixture
def copy(pico, tmp_path):
    return shutil.copytree(pico, tmp_path / "model")


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_local_folder_is_recorded_and_prepared_once(copy, tmp_path):
    out = tmp_path / "run" / "base"
    model = bases.prepare(str(copy), None, out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert {file["name"] for file in manifest["files"]} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert loading.read_record(model).base == copy
    config = copy / "config.json"
    was, when = config.read_text(), config.stat()
    config.write_text(was + "\n")
    os.utime(config, ns=(when.st_atime_ns, when.st_mtime_ns))  # as programs do that keep the times of what they copy
    with pytest.raises(ConfigError, match="config.json has changed since this run was made"):
        bases.check_same(out.parent, str(copy), None)
    config.write_text(was)
    bases.check_same(out.parent, str(copy), None)  # the same bytes at another time
    stamp = (out / "manifest.json").stat().st_mtime_ns
    bases.prepare(str(copy), None, out)
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="Choose another --out"):
        bases.check_same(out.parent, "other/model", None)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda d: shutil.rmtree(d), "no such file or folder"),
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer here"),
        (lambda d: edit(d, architectures=["LlamaForSequenceClassification"]), "not a causal language model"),
        (
            lambda d: edit(d, model_type="bert", architectures=["BertForCausalLM"]),
            "'bert' is not supported.*Known: gemma",
        ),
        (lambda d: edit(d, model_type="nonsense"), "config.json"),
    ],
)
def test_folders_that_cannot_be_a_base(copy, damage, expected):
    damage(copy)
    with pytest.raises(ConfigError, match=expected):
        bases.check(str(copy))


def test_weights_that_are_missing_or_damaged(copy):
    (copy / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ConfigError, match="cannot be read as weights in safetensors"):
        loading.load_base(copy, torch.float32)
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ConfigError, match="no model.safetensors and no model.safetensors.index.json here"):
        loading.load_base(copy, torch.float32)


@pytest.mark.parametrize(("wide", "found"), [(1, torch.bfloat16), (2, torch.float32), (90, torch.float32)])
def test_a_few_tensors_in_float32_do_not_decide_the_precision_of_a_base(tmp_path, wide, found):
    save_file({"a": torch.zeros(wide), "b": torch.zeros(10, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert loading.stored(tmp_path) == found


def test_another_file_is_no_base(tmp_path):
    (tmp_path / "model.bin").write_text("x")
    with pytest.raises(ConfigError, match=r"expected a Hugging Face folder or a \.gguf file"):
        bases.check(str(tmp_path / "model.bin"))
    (tmp_path / "model.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ConfigError, match="model.gguf: this is a Git LFS pointer"):
        bases.check(str(tmp_path / "model.gguf"))
    (tmp_path / "model.gguf").write_text("not gguf")
    with pytest.raises(ConfigError, match="not a GGUF file"):
        bases.prepare(str(tmp_path / "model.gguf"), None, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_hub_model_without_a_connection(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConfigError, match="no such folder here, and the hub could not be reached"):
        bases.prepare("nobody/nothing", None, tmp_path / "base")
    assert bases.config_if_here("nobody/nothing", None) is None


def test_gguf_is_dequantised_to_the_same_model(tmp_path):
    """A GGUF file written here with the gguf package, in float32, loads equal to the model it came from."""
    import gguf

    net = make_llama(260).float()
    path = tmp_path / "pico.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    config = net.config
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_block_count(3)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(260)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    from tokenizers import pre_tokenizers

    tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "abc", "12"]
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * 259)
    writer.add_token_merges(["a b", "ab c", "1 2"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    for name, tensor in net.state_dict().items():
        if name == "lm_head.weight":
            continue
        if "q_proj" in name or "k_proj" in name:  # llama.cpp keeps rotary pairs side by side
            heads = 4 if "q_proj" in name else 2
            tensor = tensor.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    for name in ("a kind of scaling", "factors"):
        scaled = gguf.GGUFWriter(str(tmp_path / f"{name}.gguf"), "llama")
        if name == "factors":
            scaled.add_tensor("rope_freqs.weight", torch.ones(8).numpy())
        else:
            scaled.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            scaled.add_tensor("output_norm.weight", torch.ones(8).numpy())
        scaled.write_header_to_file()
        scaled.write_kv_data_to_file()
        scaled.write_tensors_to_file()
        scaled.close()
        with pytest.raises(ConfigError, match="its rope is scaled .*give the Hugging Face folder"):
            bases.check(str(tmp_path / f"{name}.gguf"))
    model = bases.prepare(str(path), None, tmp_path / "base")
    folder = loading.read_record(model).base
    again = loading.load_base(folder, torch.float32)
    ids = torch.randint(0, 260, (1, 12))
    with torch.no_grad():
        assert torch.allclose(net(input_ids=ids).logits, again(input_ids=ids).logits, atol=1e-5)
    tokenizer = loading.load_tokenizer(folder)
    assert tokenizer("abc").input_ids == [tokens.index("abc")]
    assert len(tokenizer("12").input_ids) == 2  # SmolLM's pre-tokenizer splits digits; GGUF only names it
