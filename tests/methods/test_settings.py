"""What the methods' fields allow, how large blocks become, and what is refused."""

import pytest
import torch
from toy import make_base, make_tokenizer

from langext.errors import ConfigError
from langext.methods import Adapter, ExpansionBlocks, Full, Grow, Lora, NeutralResidues, extended
from langext.methods.layers import numbers
from langext.methods.residue import base_parameters, stacks
from langext.models import loading
from langext.pipeline import plan
from langext.spec import load, located


class Config:
    hidden_size, num_hidden_layers, model_type = 576, 30, "llama"


def test_size_follows_the_share_of_the_base():
    method = NeutralResidues(name="neutral_residues", extra_params_frac=0.2)
    assert method.hidden(Config, 134_515_008) == 512  # 519 rounded to a multiple of 64
    half = NeutralResidues(name="neutral_residues", extra_params_frac=0.2, layers={"top": 15})
    assert half.hidden(Config, 134_515_008) == 1024

    class Wide(Config):
        hidden_size = 2048

    assert method.hidden(Wide, 1_100_000_000) % 256 == 0


def test_the_share_does_not_count_earlier_extensions_or_new_vocabulary():
    net = make_base("llama", 320)
    plain = base_parameters(net)
    extended.build(net, make_tokenizer(), Adapter(name="adapter", width=16), num_new=20)
    assert base_parameters(net) == plain


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (NeutralResidues(name="neutral_residues", layers=[0, 4]), "no layer 4, the base has layers 0 to 3"),
        (Adapter(name="adapter", layers={"top": 5}), "top 5 asked for, the base has 4 layers"),
        (Lora(name="lora", layers=[9]), "no layer 9"),
        (Grow(name="grow", layers=[9]), "no layer 9"),
        (Full(name="full", freeze={"top": 5}), "freeze: top 5 asked for, the base has 4 layers"),
        (ExpansionBlocks(name="expansion_blocks", positions=[4]), "no layer 4"),
        (ExpansionBlocks(name="expansion_blocks", every=5), "every: 5 is more than the base's 4 layers"),
    ],
)
def test_layers_that_the_base_does_not_have(method, expected):
    with pytest.raises(ConfigError, match=expected):
        method.check(make_base("llama", 320).config)


@pytest.mark.parametrize(("depth", "first", "last"), [(34, 9, 27), (30, 8, 24), (12, 3, 9), (3, 1, 1)])
def test_the_middle_is_that_of_the_paper_and_scales_with_the_depth(depth, first, last):
    assert numbers("middle", depth, "freeze") == list(range(first, last + 1))


def test_two_layers_have_no_middle():
    with pytest.raises(ConfigError, match="freeze: a model of 2 layers has no middle"):
        Full(name="full", freeze="middle").check(make_base("llama", 320, num_hidden_layers=2).config)


def test_frozen_layers_learn_nothing_and_all_around_them_learns():
    method, config = Full(name="full", freeze="middle"), make_base("llama", 320).config
    names = [name for name, _ in make_base("llama", 320, tied=False).named_parameters()]
    frozen = {name for name in names if not method.trainable(name, config)}
    assert frozen == {name for name in names if name.startswith(("model.layers.1.", "model.layers.2."))}
    assert any("norm" in name for name in frozen) and not any("embed" in name or "lm_head" in name for name in frozen)


def test_a_gate_with_a_threshold_has_no_local_loss_unless_one_is_asked_for():
    assert NeutralResidues(name="neutral_residues", gate="relu").local_loss == "l1"
    assert NeutralResidues(name="neutral_residues", gate="threshold").own_penalties == ()
    assert NeutralResidues(name="neutral_residues", gate="threshold", local_loss="l1").own_penalties == ("local",)


def test_grow_refuses_biases():
    with pytest.raises(ConfigError, match="does not copy biases"):
        Grow(name="grow").check(make_base("llama", 320, mlp_bias=True).config)


def test_a_delta_of_another_method_is_refused(pico, tmp_path):
    def live(method):
        return extended.build(loading.load_base(pico, torch.float32), None, method)

    loading.save_delta(tmp_path, live(NeutralResidues(name="neutral_residues", width=8)).delta())
    with pytest.raises(ConfigError, match="other parameters"):
        extended.load_delta(live(Adapter(name="adapter", width=8)), tmp_path / "delta.safetensors")
    with pytest.raises(ConfigError, match=r"is \(64, 8\), the model has \(64, 16\)"):
        extended.load_delta(live(NeutralResidues(name="neutral_residues", width=16)), tmp_path / "delta.safetensors")


def test_diagnostics_count_open_tokens_and_show_layers_without_a_block_as_closed():
    net = make_base("llama", 320).float().eval()
    method = NeutralResidues(name="neutral_residues", gate="hard_sigmoid", width=8, layers=[1, 3])
    extended.build(net, None, method)
    with torch.no_grad():
        net(input_ids=torch.randint(0, 320, (2, 20)))
    found = method.diagnostics(net)
    assert found["open"].shape == (4, 2, 20) and sorted(stacks(net)[0]) == [1, 3]
    assert found["open"][[0, 2]].sum() == 0 and 0 < found["open"][[1, 3]].mean() < 1
    assert ((found["gate"] > 0) == (found["open"] == 1)).all()


FILE = """name: x
language: fr
base_model: {base}
stages:
  - uses: filter
    lid_model: {lid}
    sources: [{{language: fr, path: {text}}}]
  - uses: extend
    method: {method}
  - uses: train
    steps: 4
    sequence_length: 64
    original_frac: 0
    lr: 1e-3
    {train}
  - uses: rescale
    {rescale}
"""


@pytest.mark.parametrize(
    ("method", "line", "expected"),
    [
        ("{name: neutral_residues, gate: rleu}", 9, "'sigmoid', 'hard_sigmoid', 'threshold' or 'none' (got 'rleu')"),
        ("{name: neutral_residues, local_loss: l2}", 9, "'l1', 'domain_ce' or 'none' (got 'l2')"),
        (
            "{name: neutral_residues, local_loss: domain_ce}",
            9,
            "needs a gate that is a probability (sigmoid, hard_sigmoid), not threshold",
        ),
        (
            "{name: neutral_residues, gate: threshold, local_loss: domain_ce}",
            9,
            "needs a gate that is a probability (sigmoid, hard_sigmoid), not threshold",
        ),
        ("{name: neutral_residues, width: 0}", 9, "greater than or equal to 1 (got 0)"),
        ("{name: neutral_residues, extra_params_frac: 3}", 9, "less than or equal to 2 (got 3)"),
        ("{name: neutral_residues, width: 8, extra_params_frac: 0.1}", 9, "give width or extra_params_frac, not both"),
        ("{name: neutral_residues, gate: none, gate_lr_factor: 5}", 9, "is for gates that learn, and gate is none"),
        ("{name: neutral_residues, gate: threshold, gate_lr_factor: 5}", 9, "is for gates that learn, and gate is threshold"),
        ("{name: neutral_residues, gate_lr_factor: 0}", 9, "greater than 0 (got 0)"),
        ("{name: adapter, layers: [-1]}", 9, "layer numbers count from 0 and occur once"),
        ("{name: adapter, layers: [0, 3]}", 9, "no layer 3, the base has layers 0 to 2"),
        ("{name: adapter, layers: some}", 9, "expected all, middle, a list of layer numbers from 0, or {top: n}"),
        ("{name: full, freeze: some}", 9, "expected all, middle, a list of layer numbers from 0, or {top: n}"),
        ("{name: full, freeze: [3]}", 9, "freeze: no layer 3, the base has layers 0 to 2"),
        ("{name: lora, rank: 0}", 9, "greater than or equal to 1 (got 0)"),
        ("{name: lora, layers: {top: 9}}", 9, "top 9 asked for, the base has 3 layers"),
        ("{name: grow, k: 1}", 9, "greater than or equal to 2 (got 1)"),
        ("{name: expansion_blocks, every: 4}", 9, "every: 4 is more than the base's 3 layers"),
        ("{name: expansion_blocks, every: 2, positions: [1]}", 9, "give every or positions, not both"),
        ("{name: expansion_blocks, positions: [7]}", 9, "no layer 7"),
        ("{name: gorw}", 9, "unknown name 'gorw'. Did you mean grow?"),
    ],
)
def test_wrong_methods_are_refused_with_file_and_line(tmp_path, pico, lid, texts, method, line, expected):
    said = refusal(tmp_path, pico, lid, texts, method=method)
    assert f"line {line}" in said and expected in said
    assert len(said.splitlines()) <= 3  # the second problem is that of stage rescale with the method


@pytest.mark.parametrize(
    ("more", "line", "expected"),
    [
        ({"rescale": "alpha: 1.5"}, 17, "alpha must be auto or in [0, 1] (got 1.5)"),
        ({"method": "{name: adapter, width: 8}"}, 16, "adapter adds a function instead of changing weights"),
        ({"method": "{name: adapter, width: 8}", "rescale": "revert: middle"}, 16, "its layers cannot be rescaled"),
        ({"rescale": "revert: [3]"}, 17, "revert: no layer 3, the base has layers 0 to 2"),
        ({"rescale": "alpha: 0.5\n    revert: middle"}, 17, "give revert or alpha, not both"),
        ({"train": "penalties: [{name: ldifs, weight: -1}]"}, 15, "greater than 0 (got -1)"),
        ({"train": "penalties: [{name: ldifs}, {name: ldifs}]"}, 15, "each penalty can be given once"),
        ({"train": "penalties: [{name: local}]"}, 15, "full changes the base itself"),
        ({"train": "penalties: [{name: l2sp}, {name: domain_ce}]"}, 15, "domain_ce needs neutral_residues with gate sigmoid"),
    ],
)
def test_wrong_penalties_and_factors_are_refused_with_file_and_line(tmp_path, pico, lid, texts, more, line, expected):
    said = refusal(tmp_path, pico, lid, texts, **more)
    assert f"line {line}" in said and expected in said


def test_what_set_has_set_is_named_instead_of_a_line(tmp_path, pico, lid, texts):
    said = refusal(tmp_path, pico, lid, texts, overrides=["extend.method={name: adapter, layers: [5]}"])
    assert "--set extend.method" in said and "no layer 5" in said


def refusal(tmp_path, pico, lid, texts, method="{name: full}", train="precision: bf16", rescale="alpha: auto", overrides=()):
    path = tmp_path / "x.yaml"
    path.write_text(FILE.format(base=pico, lid=lid, text=texts / "fr.jsonl.gz", method=method, train=train, rescale=rescale))
    with pytest.raises(ConfigError) as caught:
        loaded = load(path, plan.Pipeline, overrides)
        steps = plan.plan(loaded, tmp_path / "run")
        plan.check(loaded, steps, steps)
    said = located(caught.value, path, overrides)
    assert str(path) in said
    return said
