"""The method against plain algebra from the paper's formulas, and its neutrality."""

import pytest
import torch

from langext import families, modeling
from langext.artifacts import Model
from langext.methods import NeutralResidues
from langext.methods.neutral_residues import residues
from langext.spec import ConfigError

GATES = ["relu", "sigmoid", "hard_sigmoid", "none"]


def build(pico, gate, dtype=torch.float32, **more):
    method = NeutralResidues(name="neutral_residues", gate=gate, width=24, **more)
    torch.manual_seed(3)
    live = modeling.build(modeling.load_base(pico, dtype), modeling.load_tokenizer(pico), method)
    return live, method


def ids(rows=2, length=20):
    return torch.randint(1, 300, (rows, length), generator=torch.Generator().manual_seed(1))


def stir(live, seed=0):
    torch.manual_seed(seed)
    for block in residues(live.net):
        block.down_proj.weight.data.normal_(0, 0.05)
        if block.router is not None:
            block.router.weight.data.normal_(0, 1.0)


@pytest.mark.parametrize("gate", GATES)
def test_at_init_it_computes_exactly_what_the_base_computes(pico, gate):
    base = modeling.load_base(pico, torch.float32)
    live, _ = build(pico, gate)
    with torch.no_grad():
        before, after = base(input_ids=ids()).logits, live.net(input_ids=ids()).logits
        assert torch.equal(before, after)
        stir(live)  # negative control: perturbed blocks change the output
        assert not torch.allclose(before, live.net(input_ids=ids()).logits, atol=1e-3)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("training", [True, False])
def test_forward_and_local_loss_against_the_formula(pico, gate, training):
    live, method = build(pico, gate, alpha=0.5)
    stir(live)
    block, ffn = residues(live.net)[0], families.ffns(live.net)[0]
    x = torch.randn(2, 5, 64)
    with torch.set_grad_enabled(training):
        got = ffn(x)
    d = x.double()
    w = {n: p.detach().double() for n, p in block.named_parameters()}
    hidden = d @ w["gate_proj.weight"].T
    added = (hidden * torch.sigmoid(hidden) * (d @ w["up_proj.weight"].T)) @ w["down_proj.weight"].T
    if gate != "none":
        z = d @ w["router.weight"].T
        g = {"relu": z.clamp(min=0), "sigmoid": 1 / (1 + (-z).exp()), "hard_sigmoid": (z > 0) / (1 + (-z).exp())}[gate]
        added = g * added
    mlp = {n: p.detach().double() for n, p in ffn.named_parameters() if "neutral" not in n}
    up = d @ mlp["gate_proj.weight"].T
    plain = (up * torch.sigmoid(up) * (d @ mlp["up_proj.weight"].T)) @ mlp["down_proj.weight"].T
    assert torch.allclose(got.double(), plain + added, atol=1e-5)
    for other in residues(live.net)[1:]:
        other.added_BT = block.added_BT
    original = torch.tensor([[True] * 5, [False] * 5])
    wanted = 0.5 * added[0].abs().sum(-1).mean() / 64
    assert method.penalty(live.net, original)["local"].item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("gate", ["relu", "hard_sigmoid"])
def test_closed_tokens_are_bit_identical_to_the_base(pico, gate):
    base = modeling.load_base(pico, torch.float32)
    live, _ = build(pico, gate)
    stir(live)
    for block in residues(live.net):  # z = -|w . x| is impossible with a linear gate; a zero row closes every token
        block.router.weight.data.zero_()
    with torch.no_grad():
        assert torch.equal(base(input_ids=ids()).logits, live.net(input_ids=ids()).logits)


def test_closed_tokens_cost_no_matrix_products(pico):
    from torch.utils.flop_counter import FlopCounterMode

    live, _ = build(pico, "hard_sigmoid")
    stir(live)
    block = residues(live.net)[0]
    x = torch.randn(1, 8, 64)

    def flops():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            block(x)
        return counter.get_total_flops()

    router = 2 * 8 * 64
    opened = int((block.router(x) > 0).sum())
    assert flops() == router + opened * 3 * 2 * 64 * 24
    block.router.weight.data.zero_()
    assert flops() == router


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_exactly_the_blocks_get_gradients_and_the_penalty_is_alive(pico, gate, checkpointing):
    live, method = build(pico, gate)
    stir(live)
    live.net.train()
    if checkpointing:
        live.net.activation_checkpointing_enable()
    live.net.base_model(input_ids=ids(), use_cache=False)
    method.penalty(live.net, torch.ones(2, 20, dtype=torch.bool))["local"].backward()
    with_grad = {n for n, p in live.net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_grad == {n for n, _ in live.net.named_parameters() if live.trainable(n)}
    assert all(".neutral_residue." in n for n in with_grad)


@pytest.mark.parametrize("gate", GATES)
def test_cached_generation_equals_the_full_forward(pico, gate):
    live, _ = build(pico, gate)
    stir(live)
    with torch.no_grad():
        full = live.net(input_ids=ids()).logits
        first = live.net(input_ids=ids()[:, :10], use_cache=True)
        rest = live.net(input_ids=ids()[:, 10:], past_key_values=first.past_key_values, use_cache=True).logits
    assert torch.allclose(full[:, 10:], rest, atol=1e-5)


def test_saved_and_loaded_it_is_the_same(pico, tmp_path):
    live, method = build(pico, "relu", torch.bfloat16)
    stir(live)
    modeling.save_delta(tmp_path, live.delta())
    modeling.write_record(tmp_path, pico, method, None)
    again = modeling.load(Model(tmp_path), torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(live.net(input_ids=ids()).logits, again.net(input_ids=ids()).logits)
    assert (tmp_path / "delta.safetensors").stat().st_size < 3 * (3 * 64 * 24 + 64) * 2 + 5000


def test_a_delta_of_another_method_is_refused(pico, tmp_path):
    live, _ = build(pico, "relu")
    modeling.save_delta(tmp_path, live.delta())
    other, _ = build(pico, "none")
    with pytest.raises(ConfigError, match="other parameters"):
        modeling.load_delta(other, tmp_path / "delta.safetensors")


def test_size_follows_the_share_of_the_base():
    class Config:
        hidden_size, num_hidden_layers, hidden_act, model_type = 576, 30, "silu", "llama"

    method = NeutralResidues(name="neutral_residues", extra_params_frac=0.2)
    assert method.hidden(Config, 134_515_008) == 512  # 519 rounded to a multiple of 64
    Config.hidden_size = 2048
    assert method.hidden(Config, 1_100_000_000) % 256 == 0


def test_diagnostics_count_open_tokens(pico):
    live, method = build(pico, "hard_sigmoid")
    stir(live)
    with torch.no_grad():
        live.net(input_ids=ids())
    found = method.diagnostics(live.net)
    assert found["open"].shape == (3, 2, 20)
    assert 0 < found["open"].mean() < 1
    assert ((found["gate"] > 0) == (found["open"] == 1)).all()
