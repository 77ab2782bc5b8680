"""What the methods' fields allow, how large blocks become, and what is refused."""

import pytest
import torch
from toy import make_base

from langext import modeling
from langext.methods import Adapter, ExpansionBlocks, Grow, Lora, NeutralResidues
from langext.methods.residue import base_parameters, stacks
from langext.spec import ConfigError


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
    modeling.build(net, range(320), Adapter(name="adapter", width=16), num_new=20)
    assert base_parameters(net) == plain


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (NeutralResidues(name="neutral_residues", layers=[0, 4]), "no layer 4, the base has layers 0 to 3"),
        (Adapter(name="adapter", layers={"top": 5}), "top 5 asked for, the base has 4 layers"),
        (Lora(name="lora", layers=[9]), "no layer 9"),
        (Grow(name="grow", layers=[9]), "no layer 9"),
        (ExpansionBlocks(name="expansion_blocks", positions=[4]), "no layer 4"),
        (ExpansionBlocks(name="expansion_blocks", every=5), "every: 5 is more than the base's 4 layers"),
    ],
)
def test_layers_that_the_base_does_not_have(method, expected):
    with pytest.raises(ConfigError, match=expected):
        method.check(make_base("llama", 320).config)


def test_grow_refuses_biases():
    with pytest.raises(ConfigError, match="does not copy biases"):
        Grow(name="grow").check(make_base("llama", 320, mlp_bias=True).config)


def test_a_delta_of_another_method_is_refused(pico, tmp_path):
    def live(method):
        return modeling.build(modeling.load_base(pico, torch.float32), None, method)

    modeling.save_delta(tmp_path, live(NeutralResidues(name="neutral_residues", width=8)).delta())
    with pytest.raises(ConfigError, match="other parameters"):
        modeling.load_delta(live(Adapter(name="adapter", width=8)), tmp_path / "delta.safetensors")
    with pytest.raises(ConfigError, match=r"is \(64, 8\), the model has \(64, 16\)"):
        modeling.load_delta(live(NeutralResidues(name="neutral_residues", width=16)), tmp_path / "delta.safetensors")


def test_diagnostics_count_open_tokens_and_show_layers_without_a_block_as_closed():
    net = make_base("llama", 320).float().eval()
    method = NeutralResidues(name="neutral_residues", gate="hard_sigmoid", width=8, layers=[1, 3])
    modeling.build(net, None, method)
    with torch.no_grad():
        net(input_ids=torch.randint(0, 320, (2, 20)))
    found = method.diagnostics(net)
    assert found["open"].shape == (4, 2, 20) and sorted(stacks(net)[0]) == [1, 3]
    assert found["open"][[0, 2]].sum() == 0 and 0 < found["open"][[1, 3]].mean() < 1
    assert ((found["gate"] > 0) == (found["open"] == 1)).all()
