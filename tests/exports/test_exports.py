"""Every gate, exported and reloaded by stock transformers where langext cannot be imported."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forks import reloaded
from run_folders import bits
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from toy import make_base, make_tokenizer

from langext.architectures import precision
from langext.artifacts import Model, write_json
from langext.errors import ConfigError, RunFailed
from langext.evaluation.scores import ScoresFile
from langext.exports import checkpoint, hub, modelcard, shards, targets, verify, write
from langext.exports.modelcard import Card
from langext.methods import Full, Grow, Lora, NeutralResidues, extended
from langext.methods.residue import stacks
from langext.models import loading
from langext.summaries import History, Training

TEXTS = ["The small cat sleeps in the house with a dog. " * 4, "Le petit chat dort dans la maison avec un chien. " * 4]
CARD = Card(
    languages=("fra_Latn", "eng_Latn"), base="pico", licence=None, licence_id=None, public=None, base_public=False,
    base_architecture="LlamaForCausalLM", method=NeutralResidues(name="neutral_residues"),
    history=History(training=Training(tokens=1, steps=1, shares={}, epochs={}), afterwards=[]), funnel=[],
    base_scores=None, model_scores=None,
)  # fmt: skip


def extended_model(tmp_path: Path, pico: Path, method) -> Model:
    """An extended model whose blocks do something: random output weights, as after training."""
    net = loading.load_base(pico, torch.bfloat16)
    live = extended.build(net, loading.load_tokenizer(pico), method)
    torch.manual_seed(5)
    if isinstance(method, NeutralResidues):
        for block in stacks(net)[0].values():
            block.down_proj.weight.data.normal_(0, 0.3)
            if block.router is not None:
                block.router.weight.data.normal_(0, 1)
                if block.router.bias is not None:
                    block.router.bias.data.normal_(0, 5)
    else:
        for parameter in net.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.02)
    out = tmp_path / "model"
    out.mkdir()
    loading.save_delta(out, live.delta())
    write_json(out / "x.json", {})
    return loading.write_record(out, loading.Record(pico, method))


@pytest.fixture(autouse=True)
def reloaded_in_a_fork(request, monkeypatch):
    """Exports are reloaded in a fork, but for those of the first test: by a new interpreter, as for users."""
    if request.node.originalname != "test_export_equals_the_trained_model":
        monkeypatch.setattr(verify, "run", reloaded)


@pytest.mark.parametrize(
    ("gate", "form", "expected"),
    [
        ("hard_sigmoid", "native", "Glm4MoeForCausalLM"),
        ("sigmoid", "native", "GraniteMoeHybridForCausalLM"),
        ("threshold", "native", "Glm4MoeForCausalLM"),
        ("none", "native", "LlamaForCausalLM"),
        ("threshold", "remote", "NeutralResidueForCausalLM"),
        ("relu", "remote", "NeutralResidueForCausalLM"),
        ("hard_sigmoid", "remote", "NeutralResidueForCausalLM"),
    ],
)
def test_export_equals_the_trained_model(tmp_path, pico, gate, form, expected):
    method = NeutralResidues(name="neutral_residues", gate=gate, width=40)
    record = write.write(extended_model(tmp_path, pico, method), tmp_path / "out", form, TEXTS, replace(CARD, method=method))
    assert record.loads_as == expected
    assert max(record.max_abs_difference, record.max_abs_difference_cached) < 1e-4 < record.logit_std
    assert gate != "threshold" or record.rounding.max_abs_difference < 1e-4  # rows and thresholds lose nothing when stored
    assert record.top1_agreement == 1.0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlanguage:\n- fr\n- en\n")
    assert ("routers and their biases in float32" in card) == (gate == "threshold")


@pytest.mark.parametrize(
    ("form", "name"), [("native", "threshold"), ("native", "lora"), ("native", "grow"), ("remote", "hard_sigmoid")]
)
def test_a_model_that_does_not_fit_into_memory_is_exported_alike(tmp_path, pico, monkeypatch, form, name):
    methods = {"lora": Lora(name="lora", rank=4), "grow": Grow(name="grow")}
    method = methods.get(name) or NeutralResidues(name="neutral_residues", gate=name, width=40)
    model = extended_model(tmp_path, pico, method)
    record, keep = write.write(model, tmp_path / "whole", form, TEXTS, CARD), precision.in_float32
    monkeypatch.setattr(write, "available", lambda: 0)
    seen = []
    monkeypatch.setattr(
        precision, "in_float32", lambda modules, whole, *more: seen.append(whole) or keep(modules, whole, *more)
    )
    in_parts = write.write(model, tmp_path / "in parts", form, TEXTS, CARD)
    assert seen and not any(seen)
    whole, parts = ({k: v for k, v in found.model_dump().items() if isinstance(v, str | int)} for found in (record, in_parts))
    assert whole == parts and in_parts.max_abs_difference < 1e-4
    for path in (tmp_path / "whole").iterdir():
        if path.suffix == ".safetensors":
            assert path.read_bytes() == (tmp_path / "in parts" / path.name).read_bytes()


@pytest.mark.parametrize("family", ["qwen2", "gemma", "gemma3_text"])
@pytest.mark.parametrize("available", [0, 1 << 40])
def test_bases_of_other_precisions_widths_and_settings(tmp_path, monkeypatch, capsys, family, available):
    """A float32 base as wide as no square of a bf16 number, that says bf16 of itself and whose texts are to be penalised."""
    monkeypatch.setattr(write, "available", lambda: available)
    tokenizer = make_tokenizer()
    net = make_base(family, len(tokenizer), hidden_size=48).float()
    for parameter in net.parameters():
        parameter.data += 1e-3 * torch.randn(parameter.shape)
    net.config.dtype = torch.bfloat16
    net.generation_config.repetition_penalty, net.generation_config.eos_token_id = 1.3, [0, 5]
    net.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    tokenizer.save_pretrained(tmp_path / "base")
    record = write.write(
        extended_model(tmp_path, tmp_path / "base", Lora(name="lora", rank=4)), tmp_path / "out", "auto", TEXTS, CARD
    )
    assert record.max_abs_difference < 1e-4 and record.greedy_equal == record.texts
    assert record.rounding.max_abs_difference > 1e-4  # of the base itself
    assert "the base is stored in float32, this export in bfloat16" in "".join(capsys.readouterr())
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved["repetition_penalty"] == 1.3 and saved["eos_token_id"] == [0, 5]


def test_what_is_no_number_and_what_only_the_cache_gets_wrong_is_refused(tmp_path):
    good = {"max_abs_difference": 1e-6, "max_abs_difference_cached": 1e-6, "logit_std": 1.0, "greedy_equal": 2,
            "tokenized_equal": 2, "texts": 2}  # fmt: skip
    verify.judged(good)
    nan = float("nan")
    for wrong in ({"max_abs_difference": nan}, {"max_abs_difference_cached": nan}, {"max_abs_difference_cached": 0.1}):
        with pytest.raises(RunFailed, match="differs from the trained model"):
            verify.judged(good | wrong)
    files = []
    for name, value in (("a", 0.0), ("b", nan), ("c", 0.0)):
        logits = torch.randn(3, 5)
        logits[1, 2] += value
        files.append(tmp_path / name)
        save_file({"logits": logits}, files[-1])
    for one, other in ((files[:1] * 2, [files[1], files[0]]), (files[:1] * 2, [files[0], files[1]])):
        with pytest.raises(RunFailed, match="a logit by nan"):
            verify.same(one, other)


def test_texts_in_which_rounding_decides_a_gate_are_not_compared(tmp_path, pico, capsys):
    model = extended_model(tmp_path, pico, NeutralResidues(name="neutral_residues", gate="threshold", width=40))
    live = loading.load(model, torch.float32)
    assert verify.decided(live, TEXTS) == TEXTS
    router = stacks(live.net)[0][0].router
    seen = []
    hook = router.register_forward_hook(lambda _, given, z: seen.append(z))
    live.net(input_ids=torch.tensor(verify.encode(live.tokenizer, TEXTS[1:])))
    hook.remove()
    router.bias.data -= seen[0][0, 7]  # now z is 0, or all but 0, for a token of the second text
    assert verify.decided(live, TEXTS) == TEXTS[:1] and "1 of 2 texts are not compared" in capsys.readouterr().err
    assert verify.decided(live, TEXTS[1:]) == TEXTS[1:]


def test_several_blocks_with_thresholds_have_no_stock_form(pico):
    config = loading.load_config(pico)
    one, other = (NeutralResidues(name="neutral_residues", gate=gate) for gate in ("threshold", "hard_sigmoid"))
    assert targets.choose(config, [one], "auto") == "native" and targets.choose(config, [one, one], "auto") == "remote"
    for given, reason in (([one, one], "several blocks with thresholds need one each"), ([one, other], "side by side")):
        for known in (config, None):
            with pytest.raises(ConfigError, match=f"{reason}; possible: remote, delta"):
                targets.choose(known, given, "native")


def test_weights_of_several_files_load_as_one_would(tmp_path, pico, monkeypatch):
    model = extended_model(tmp_path, pico, NeutralResidues(name="neutral_residues", gate="hard_sigmoid", width=40))
    monkeypatch.setattr(shards, "LIMIT", 100_000)
    write.write(model, tmp_path / "out", "auto", TEXTS, CARD)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(files) > 3 and sorted(set(index["weight_map"].values())) == files
    sizes = [sum(t.nbytes for t in load_file(tmp_path / "out" / name).values()) for name in files]
    assert sum(sizes) == index["metadata"]["total_size"]


@pytest.mark.parametrize("shut", [True, False])
def test_remote_code_does_no_work_for_closed_tokens(tmp_path, pico, shut):
    """Counted in FLOPs: with all gates closed the blocks' matrix products are not done, and else they are."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    model = extended_model(tmp_path, pico, NeutralResidues(name="neutral_residues", gate="relu", width=40))
    write.write(model, tmp_path / "out", "remote", TEXTS, CARD)
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, trust_remote_code=True).eval()
    base = loading.load_base(pico, torch.float32)
    for layer in net.model.layers:
        block = layer.mlp.residues["0"]
        block.router.weight.data.zero_()
        if not shut:
            block.forward = lambda x, out, act, block=block: out + block.block(x, act)
    ids = torch.arange(1, 21)[None]
    counts = []
    with torch.no_grad():
        for one in (base, net):
            with FlopCounterMode(display=False) as counter:
                logits = one(input_ids=ids).logits
            counts.append(counter.get_total_flops())
        assert not shut or torch.equal(logits, base(input_ids=ids).logits)
    layers, width = net.config.num_hidden_layers, net.config.hidden_size
    gates, blocks = 2 * 20 * width * layers, 2 * 20 * 3 * width * 40 * layers
    assert counts[1] - counts[0] == (gates if shut else blocks)


@pytest.mark.parametrize("autocast", [False, True])
def test_remote_code_computes_open_tokens_as_it_computes_all(autocast):
    from langext.exports.modeling_neutral_residue import NeutralResidue

    torch.manual_seed(0)
    block, act = NeutralResidue(8, 4, "threshold"), torch.nn.SiLU()
    torch.nn.init.normal_(block.router.weight)
    x, out = torch.randn(2, 2, 5, 8)
    out = out.to(torch.bfloat16 if autocast else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        of_all = block(x, out, act)  # with gradients
        with torch.no_grad():
            of_open = block(x, out, act)
    changed = (of_open != out).any(-1)
    assert of_open.dtype == out.dtype and 0 < changed.sum() < 10
    torch.testing.assert_close(of_open.float(), of_all.float(), atol=0.03 if autocast else 1e-6, rtol=0)


def test_full_fine_tuning_keeps_the_architecture(tmp_path, pico):
    record = write.write(extended_model(tmp_path, pico, Full(name="full")), tmp_path / "out", "auto", TEXTS, CARD)
    assert record.loads_as == "LlamaForCausalLM"
    assert record.max_abs_difference < 1e-5


@pytest.mark.parametrize(
    ("family", "gate", "written"),
    [
        ("mistral", "sigmoid", "granitemoehybrid"),
        ("llama", "sigmoid", "granitemoeshared"),  # with llama3 rope
        ("qwen2", "sigmoid", "qwen2_moe"),
        ("qwen3", "hard_sigmoid", "glm4_moe"),
        ("mistral", "none", "mistral"),
        ("mistral", "relu", "neutral_residue_mistral"),
    ],
)
def test_the_config_is_one_that_every_program_reads(tmp_path, family, gate, written):
    """transformers 4 knows `torch_dtype`, `rope_theta` and `rope_scaling` alone; MLX wants the last one even if it is null."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    make_base(family, len(tokenizer)).save_pretrained(tmp_path / "base")
    net = loading.load_base(tmp_path / "base", torch.float32)
    live = extended.build(net, tokenizer, NeutralResidues(name="neutral_residues", gate=gate, width=24))
    (tmp_path / "out").mkdir()
    checkpoint.save(live, live.methods[-1].fold(net) if gate != "relu" else None, tmp_path / "out")

    def no_json(constant):
        raise AssertionError(f"{constant} is no JSON")

    config = json.loads((tmp_path / "out" / "config.json").read_text(), parse_constant=no_json)
    assert config["model_type"] == written
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    if family == "llama":
        assert config["rope_scaling"]["rope_type"] == "llama3" and config["rope_scaling"]["factor"] == 8.0
    else:
        assert config["rope_scaling"] is None
    if written == "granitemoehybrid":  # transformers 5 itself would write full_attention, which no other program knows
        assert config["layer_types"] == ["attention"] * 4 and config["position_embedding_type"] == "rope"
    if written == "glm4_moe":
        assert config["partial_rotary_factor"] == 1.0
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_a_different_export_fails_and_leaves_nothing(tmp_path, pico, monkeypatch):
    from langext.architectures import experts

    model = extended_model(tmp_path, pico, NeutralResidues(name="neutral_residues", gate="hard_sigmoid", width=32))
    right = experts.matrices
    monkeypatch.setattr(experts, "matrices", lambda *a: (right(*a)[0], right(*a)[1] * 1.05, right(*a)[2]))
    with pytest.raises(RunFailed, match="the stock form differs from the trained model"):
        write.write(model, tmp_path / "out", "native", TEXTS, CARD)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_relu_has_no_native_form():
    method = NeutralResidues(name="neutral_residues", gate="relu")
    with pytest.raises(ConfigError, match=r"a block with a relu gate \(a regate stage .*\); possible: remote"):
        targets.choose(None, [method], "native")
    assert targets.choose(None, [method], "auto") == "remote"


def test_of_two_exports_to_one_folder_the_second_is_refused(tmp_path, pico):
    model, out = extended_model(tmp_path, pico, Full(name="full")), tmp_path / "out"
    with write.workplace(out) as place:
        (place / "export" / "half.txt").write_text("")
        with pytest.raises(ConfigError, match="another export is being written to it"):
            write.write(model, out, "auto", TEXTS, CARD)
        assert (place / "export" / "half.txt").exists() and not out.exists()
        out.mkdir()  # made by somebody else meanwhile
    left = out.with_name(place.name) / "export"
    left.mkdir(parents=True)  # as a kill leaves it
    (left / "half.txt").write_text("")
    with pytest.raises(ConfigError, match="exists already"):
        write.write(model, out, "auto", TEXTS, CARD)
    out.rmdir()
    write.write(model, out, "auto", TEXTS, CARD)
    assert not (out / "half.txt").exists() and {path.name for path in tmp_path.iterdir()} == {"model", "out"}


def test_an_export_to_a_full_disk_says_what_to_do(tmp_path, pico, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    model = extended_model(tmp_path, pico, Full(name="full"))
    monkeypatch.setattr(shards, "save", full)
    with pytest.raises(RunFailed, match="the disk is full; mend that and run the same command again"):
        write.write(model, tmp_path / "out", "auto", TEXTS, CARD)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_an_existing_folder_is_not_overwritten(tmp_path, pico):
    (tmp_path / "out").mkdir()
    model = extended_model(tmp_path, pico, Full(name="full"))
    with pytest.raises(ConfigError, match="exists already"):
        write.write(model, tmp_path / "out", "auto", TEXTS, CARD)


@pytest.mark.parametrize(
    ("gate", "change", "expected"),
    [
        ("hard_sigmoid", {"attention_bias": True}, "no place for this base's bias in the attention's output; possible: remote"),
        ("hard_sigmoid", {"mlp_bias": True}, "no place for this base's biases in the feed-forward network"),
        ("sigmoid", {"sliding_window": 8}, "GraniteMoeHybrid has no sliding-window attention"),
    ],
)
def test_bases_that_do_not_fit_a_stock_architecture(pico, gate, change, expected):
    config = loading.load_config(pico)
    method = NeutralResidues(name="neutral_residues", gate=gate)
    assert targets.choose(config, [method], "auto") == "native"
    for key, value in change.items():
        setattr(config, key, value)
    with pytest.raises(ConfigError, match=expected):
        targets.choose(config, [method], "native")
    assert targets.choose(config, [method], "auto") == "remote"


def test_full_fine_tuning_has_no_remote_form():
    with pytest.raises(ConfigError, match="needs no code of its own; possible: native"):
        targets.choose(None, [Full(name="full")], "remote")


def test_the_base_s_licence_goes_with_the_export(tmp_path, pico):
    base = tmp_path / "base"
    shutil.copytree(pico, base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (base / "LICENSE.txt").write_text("the text")
    assert modelcard.licence(base) == "apache-2.0" and modelcard.licence(pico) is None
    model = extended_model(tmp_path, base, Full(name="full"))
    named = replace(CARD, licence=modelcard.licence(base), licence_id=modelcard.licence(base))
    write.write(model, tmp_path / "out", "auto", TEXTS, named)
    assert (tmp_path / "out" / "LICENSE.txt").read_text() == "the text"
    assert "\nlicense: apache-2.0\n" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_says_which_text_was_protected():
    sets = {
        "swh_Latn/web": {"role": "measure", "bits_per_byte": bits(1.0)},
        "deu_Latn/web": {"role": "protect", "bits_per_byte": bits(1.0)},
    }
    scores = ScoresFile.model_validate({"bits_per_byte": {"fra_Latn/web": bits(1.0)}, "tasks": {}, "others": sets})
    names = [row["name"] for row in modelcard._rows(replace(CARD, base_scores=scores, model_scores=scores))]
    assert names == [
        "fra_Latn/web, bits per byte",
        "swh_Latn/web (only measured, not protected), bits per byte",
        "deu_Latn/web (protected), bits per byte",
    ]


def test_nothing_is_uploaded_without_a_repository_and_a_login(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="owner/name"):
        hub.check("model")
    with pytest.raises(ConfigError, match="hf auth login"):
        hub.check("me/model")


def test_dense_is_for_networks_without_gates(pico):
    config = loading.load_config(pico)
    gated, plain = (NeutralResidues(name="neutral_residues", gate=gate) for gate in ("sigmoid", "none"))
    with pytest.raises(ConfigError, match="a sigmoid gate is no part of a dense network; possible: native, remote, gguf"):
        targets.choose(config, [gated], "dense")
    assert targets.choose(config, [plain], "dense") == targets.choose(config, [Full(name="full")], "dense") == "dense"
