"""Every method against plain tensor algebra, written from the papers' formulas in float64 and sharing no code with langext."""

import math

import numpy as np
import pytest
import torch
from cases import calibrate
from toy import make_base, make_tokenizer

from langext.architectures import families
from langext.errors import ConfigError
from langext.exports import targets
from langext.methods import Adapter, ExpansionBlocks, Full, GatedLora, Grow, Lora, NeutralResidues, SelectiveLora, extended
from langext.methods.gates import GATES
from langext.methods.penalties import L2SP, LDIFS
from langext.methods.penalties.base import MicroBatch
from langext.methods.residue import stacks
from langext.methods.selective_lora import SelectiveLowRank
from langext.models import layer_scaling, loading, merging
from langext.stages import extend
from langext.training import engine


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numbers(module):
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def activation(x, family):
    if family.startswith("gemma"):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x * sigmoid(x)


def gated(x, w, family, at=""):
    hidden = activation(x @ w[f"{at}gate_proj.weight"].T, family) * (x @ w[f"{at}up_proj.weight"].T)
    return hidden @ w[f"{at}down_proj.weight"].T


def gate_value(z, gate):
    return {
        "relu": np.maximum(z, 0),
        "elu": np.where(z > 0, z, np.exp(z) - 1),
        "sigmoid": sigmoid(z),
        "hard_sigmoid": np.where(z > 0, sigmoid(z), 0),
        "threshold": np.where(z > 0, 1, 0),
        "none": np.ones_like(z),
    }[gate]


def build(family, method, seed=0, **more):
    net = make_base(family, 320, **more).float().eval()
    torch.manual_seed(seed)
    live = calibrate(extended.build(net, None, method))
    for name, p in net.named_parameters():
        if live.trainable(name) and not name.endswith(".s"):
            p.data += 0.1 * torch.randn(p.shape)
    return net


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("training", [True, False])
def test_neutral_residue_forward(gate, family, training):
    net = build(family, NeutralResidues(name="neutral_residues", gate=gate, width=24))
    ffn, block = families.ffns(net)[1], stacks(net)[0][1]
    x = torch.randn(2, 7, 64)
    with torch.set_grad_enabled(training):
        got = ffn(x).detach().numpy()
    d, w = x.double().numpy(), numbers(block)
    g = gate_value(d @ w["router.weight"].T + w.get("router.bias", 0), gate) if gate != "none" else 1.0
    own = {name: value for name, value in numbers(ffn).items() if "residues" not in name}
    assert np.allclose(got, gated(d, own, family) + g * gated(d, w, family), atol=1e-5)


def test_both_local_losses():
    """On one micro-batch that is a third of its step."""
    for loss in ("l1", "domain_ce"):
        method = NeutralResidues(name="neutral_residues", gate="sigmoid", width=24, local_loss=loss, alpha=0.5)
        net = build("llama", method)
        inputs = {}
        for i, ffn in enumerate(families.ffns(net)):
            ffn.register_forward_pre_hook(lambda _, x, i=i, to=inputs: to.__setitem__(i, x[0].detach().double().numpy()))
        net.train()
        net.base_model(input_ids=torch.randint(0, 320, (2, 5)), use_cache=False)
        original = torch.tensor([[True] * 5, [False] * 3 + [True] * 2])
        got = method.penalty(net, MicroBatch(original, num_original=21, num_tokens=30, done=0.0))[
            {"l1": "local"}.get(loss, loss)
        ].item()
        total, mask = 0.0, original.numpy()
        for i, block in stacks(net)[0].items():
            x, w = inputs[i], numbers(block)
            z = (x @ w["router.weight"].T)[..., 0]
            if loss == "l1":
                added = sigmoid(z)[..., None] * gated(x, w, "llama")
                total += (np.abs(added).sum(-1) / 64)[mask].sum() / 21
            else:
                total += -np.where(mask, np.log(1 - sigmoid(z)), np.log(sigmoid(z))).sum() / 30
        assert got == pytest.approx(0.5 * total / 4, rel=1e-4)


@pytest.mark.parametrize("gate", ["relu", "hard_sigmoid", "threshold"])
def test_tokens_whose_gates_are_closed_get_the_very_logits_of_the_base(gate):
    base = make_base("llama", 320).float().eval()
    ids = torch.randint(0, 320, (1, 20))
    seen = []
    for ffn in families.ffns(base):
        ffn.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].clone()))
    with torch.no_grad():
        before = base(input_ids=ids).logits
    net = build("llama", NeutralResidues(name="neutral_residues", gate=gate, width=24))
    for block, x in zip(stacks(net)[0].values(), list(seen), strict=True):  # a row that is negative on exactly these tokens
        block.router.weight.data = torch.linalg.lstsq(x, -torch.ones(20, 1)).solution.T.clone()
        if gate == "threshold":
            block.router.bias.data.fill_(0.5)  # t = -1/2
    other = torch.randint(0, 320, (1, 20))
    with torch.no_grad():
        assert torch.equal(before, net(input_ids=ids).logits)
        assert stacks(net)[0][0].gate_BT.max() == 0
        mixed = net(input_ids=torch.cat([other, ids])).logits
        assert torch.allclose(mixed[1:], before, atol=1e-5)  # in another batch the base itself rounds otherwise
        assert not torch.allclose(net(input_ids=other).logits, make_base("llama", 320).float()(input_ids=other).logits)


@pytest.mark.parametrize("gate", ["hard_sigmoid", "threshold"])
def test_closed_tokens_cost_no_matrix_products(gate):
    from torch.utils.flop_counter import FlopCounterMode

    block = stacks(build("llama", NeutralResidues(name="neutral_residues", gate=gate, width=24)))[0][0]
    x = torch.randn(1, 8, 64)

    def flops():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            block(x)
        return counter.get_total_flops()

    router = 2 * 8 * 64
    opened = int((block.router(x) > 0).sum())
    assert 0 < opened < 8 and flops() == router + opened * 3 * 2 * 64 * 24
    for parameter in block.router.parameters():
        parameter.data.zero_()
    assert flops() == router


@pytest.mark.parametrize("gate", ["relu", "hard_sigmoid", "threshold"])
@pytest.mark.parametrize("opened", [0, 5, 14, 15])
def test_closed_tokens_cost_no_block_in_training_and_change_no_gradient(gate, opened):
    block = stacks(build("llama", NeutralResidues(name="neutral_residues", gate=gate, width=24)))[0][0]
    block.watched = True
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(gate != "threshold" or "router" not in name)
    x, w = torch.randn(2, 8, 64), block.router.weight.detach()
    z = torch.where(torch.randperm(16).view(2, 8, 1) < opened, 0.5, -0.5)
    x = (x + (z - block.router(x).detach()) * w / w.square().sum()).requires_grad_()
    computed = []
    block.gate_proj.register_forward_hook(lambda _, inputs, output: computed.append(output[..., 0].numel()))

    def step(compute):
        block.zero_grad()
        x.grad = None
        out = compute()
        (out.sin().sum() + block.size().sum()).backward()
        return out.detach(), {"x": x.grad} | {name: p.grad for name, p in block.named_parameters() if p.requires_grad}

    def dense():
        added = GATES[gate].value(block.router(x)) * block._block(x)
        block.note(added)
        return added

    (out, grads), (expected, expected_grads) = step(lambda: block(x)), step(dense)
    assert computed == [opened if opened < 15 else 16, 16]  # above nine tenths, picking them out takes longer
    assert not out[z[..., 0] < 0].any() and torch.allclose(out, expected, atol=1e-6)
    assert grads.keys() == expected_grads.keys()
    assert all(torch.allclose(grads[name], expected_grads[name], atol=1e-5) for name in grads)  # none of them is None


@pytest.mark.parametrize("t", [0.0, 0.75, -0.75, 1e-30, 3e4, -3e4, 1e15])
def test_a_gate_opens_just_above_its_threshold_and_not_at_it(t):
    block = stacks(build("llama", NeutralResidues(name="neutral_residues", gate="threshold", width=24)))[0][0]
    t = torch.tensor(t)
    block.router.weight.data = torch.eye(1, 64)
    block.router.bias.data.fill_(-t)
    x = torch.randn(1, 4, 64)
    x[0, :, 0] = torch.stack([t, -t if t == 0 else t, t.nextafter(torch.tensor(1e38)), t.nextafter(torch.tensor(-1e38))])
    out = block(x)
    assert block.gate_BT.tolist() == [[0, 0, 1, 0]]
    assert torch.allclose(out[0, 2], block._block(x)[0, 2], rtol=1e-4, atol=1e-6) and not out[0, [0, 1, 3]].any()


def test_a_gate_with_a_threshold_is_closed_until_it_is_calibrated_and_never_learns():
    net = make_base("llama", 320).float()
    live = extended.build(net, None, NeutralResidues(name="neutral_residues", gate="threshold", width=24))
    block = stacks(net)[0][0]
    block.down_proj.weight.data.normal_()
    x = 1e6 * torch.randn(2, 7, 64, requires_grad=True)
    assert not block(x).any()
    routers = {name for name, _ in net.named_parameters() if ".router." in name}
    assert len(routers) == 8 and live.held().keys() - live.learning().keys() == routers
    calibrate(live)
    block(x).sum().backward()
    assert block.down_proj.weight.grad.any()
    assert not any(p.requires_grad or p.grad is not None for p in block.router.parameters())


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("train", ["new_copy", "all_mlp"])
def test_grow(k, train):
    """k networks side by side, whose output matrices sum to the base's; and what they compute once the copies have moved."""
    base = make_base("qwen3", 320).float()
    before = numbers(families.ffns(base)[0])
    ffn = families.ffns(build("qwen3", Grow(name="grow", k=k, train=train), seed=3))[0]
    start = make_base("qwen3", 320).float()
    extended.build(start, None, Grow(name="grow", k=k, train=train))
    new = numbers(families.ffns(start)[0].grown)
    kept = {"new_copy": 0.5, "all_mlp": 1.0}[train] * numbers(families.ffns(start)[0])["down_proj.weight"]
    parts = [kept, *np.split(new["down_proj.weight"], k - 1, 1)]
    assert np.array_equal(sum(parts), before["down_proj.weight"])  # exactly, not nearly
    assert np.array_equal(new["gate_proj.weight"], np.tile(before["gate_proj.weight"], (k - 1, 1)))
    x = np.random.default_rng(0).normal(size=(3, 64))
    w = numbers(ffn)
    scale = 0.5 if train == "new_copy" else 1.0
    wanted = scale * gated(x, w, "qwen3") + gated(x, w, "qwen3", "grown.")
    assert np.allclose(ffn(torch.tensor(x).float()).detach().numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_have_the_precision_of_the_base(tmp_path, dtype):
    """What stage extend leaves begins as the base does, however that is stored."""
    net = make_base("llama", len(make_tokenizer())).float()
    for parameter in net.parameters():
        parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
    net.to(dtype).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    record = loading.Record(tmp_path, Grow(name="grow"))
    live = extend._built(record, record.method, (), None)
    ids, base = torch.arange(1, 40)[None], loading.load_base(tmp_path, torch.float32)
    with torch.no_grad():
        assert torch.equal(live.net.float()(input_ids=ids).logits, base(input_ids=ids).logits)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_grown_copies_come_apart(k):
    """With equal parts they never would: same values, same gradients."""
    for train in ("new_copy", "all_mlp"):
        net = make_base("llama", 320).float()
        method = Grow(name="grow", train=train, k=k)
        live = extended.build(net, None, method)
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            ids = torch.randint(0, 320, (4, 16))
            net(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        ffn = families.ffns(live.net)[0]
        copies = [ffn.up_proj.weight, *ffn.grown.up_proj.weight.chunk(k - 1)]
        for i, one in enumerate(copies):
            assert all(not torch.allclose(one, other, atol=1e-3) for other in copies[i + 1 :])


@pytest.mark.parametrize("switched", [0.05, 0.15])
def test_taps_forward_and_straight_through_gradient(switched):
    """W = W0 + 1[s >= tau] B A, dI/ds = 1: s gets <dL/dW, B A> whether the block is on or off, A and B only when it is on."""
    linear = torch.nn.Linear(6, 5, bias=False)
    change = SelectiveLowRank(0, linear, rank=2, scale=1.5, tau=0.1)
    change.lora_B.data.normal_()
    change.s.data.fill_(switched)
    x, up = torch.randn(4, 6), torch.randn(4, 5)
    out = linear(x) + change(x)
    out.backward(up)
    on = float(switched >= 0.1)
    w0, a, b, xd, ud = (t.detach().double().numpy() for t in (linear.weight, change.lora_A, change.lora_B, x, up))
    assert np.allclose(out.detach().numpy(), xd @ (w0 + on * 1.5 * b @ a).T, atol=1e-5)
    dw = ud.T @ xd
    assert change.s.grad.item() == pytest.approx((dw * (1.5 * b @ a)).sum(), rel=1e-4)
    assert np.allclose(change.lora_B.grad.numpy(), on * 1.5 * dw @ a.T, atol=1e-5)
    assert np.allclose(change.lora_A.grad.numpy(), on * 1.5 * b.T @ dw, atol=1e-5)


def test_selective_lora_pays_after_its_warmup_and_drops_what_is_off():
    method = SelectiveLora(name="selective_lora", rank=3, sparsity=2.0, warmup_frac=0.2)
    net = build("llama", method)
    changes = [m for m in net.modules() if isinstance(m, SelectiveLowRank)]
    changes[0].s.data.fill_(0.01)
    original = torch.zeros(1, 4, dtype=torch.bool)
    assert method.penalty(net, MicroBatch(original, 0, 8, done=0.19)) == {}
    paid = method.penalty(net, MicroBatch(original, 0, 8, done=0.2))["sparsity"].item()
    assert paid == pytest.approx(2.0 * (0.01 + 27 * 0.15) / 28 * 4 / 8, rel=1e-5)
    assert method.figures(net) == {"active_blocks": 27.0, "blocks": 28.0}
    assert method.peak_lr("model.layers.0.self_attn.q_proj.selective_lora.s", 0.5) == 1e-3
    assert method.peak_lr("model.layers.0.self_attn.q_proj.selective_lora.lora_A", 0.5) == 0.5
    base = make_base("llama", 320).float()
    net = method.fold(net).model(whole=True, rounded=False)
    first, second = ("q_proj", "k_proj")
    at = net.model.layers[0].self_attn, base.model.layers[0].self_attn
    assert torch.equal(getattr(at[0], first).weight, getattr(at[1], first).weight)
    assert not torch.equal(getattr(at[0], second).weight, getattr(at[1], second).weight)


def test_gated_lora_is_disel():
    """W0 x + (alpha / r) B (sigmoid(W_g x + b_g) * A x), its gates nearly closed at the start and different for each token."""
    method = GatedLora(name="gated_lora", rank=3, lora_alpha=6.0, targets=["down_proj"], layers={"top": 1})
    live = extended.build(make_base("llama", 320).float(), None, method)
    linear = live.net.model.layers[3].mlp.down_proj
    start = numbers(linear.gated_lora)
    assert (start["gate.bias"] == -3).all() and start["gate.weight"].std() > 0.01 and not start["lora_B.weight"].any()
    torch.nn.init.normal_(linear.gated_lora.lora_B.weight)
    torch.nn.init.normal_(linear.gated_lora.gate.weight)
    w = numbers(linear)
    x = np.random.default_rng(0).normal(size=(3, 96))
    gates = sigmoid(x @ w["gated_lora.gate.weight"].T + w["gated_lora.gate.bias"])
    change = 2.0 * (gates * (x @ w["gated_lora.lora_A.weight"].T)) @ w["gated_lora.lora_B.weight"].T
    assert np.allclose(linear(torch.tensor(x).float()).detach().numpy(), x @ w["weight"].T + change, atol=1e-4)
    found = engine.groups(live.net, method, lambda name: method.peak_lr(name, 0.01), weight_decay=0.1)
    assert {key: len(members) for key, members in found.items()} == {(0.01, 0.1): 2, (0.05, 0.0): 2}


def test_gated_lora_exports_as_a_delta_alone():
    method = GatedLora(name="gated_lora")
    assert targets.choose(None, [method], "delta") == "delta"
    with pytest.raises(ConfigError, match="another amount for every token, which no stock architecture does; possible: delta"):
        targets.choose(None, [method], "auto")
    with pytest.raises(ConfigError, match="langext has no code for gated_lora"):
        targets.choose(None, [method], "remote")


def test_lora_is_w_plus_scaled_b_a():
    net = build("llama", Lora(name="lora", rank=4, lora_alpha=8.0, targets=["q_proj", "down_proj"], layers={"top": 1}))
    assert sum("lora_A" in name for name, _ in net.named_parameters()) == 2
    linear = net.model.layers[3].mlp.down_proj
    w = numbers(linear)
    x = np.random.default_rng(0).normal(size=(3, 96))
    wanted = x @ (w["base_layer.weight"] + 2.0 * w["lora_B.default.weight"] @ w["lora_A.default.weight"]).T
    assert np.allclose(linear(torch.tensor(x).float()).detach().numpy(), wanted, atol=1e-5)


def test_expansion_blocks_are_where_llama_pro_puts_them():
    net = make_base("llama", 320, num_hidden_layers=8).float()
    method = ExpansionBlocks(name="expansion_blocks")
    extended.build(net, None, method)
    assert [i for i, block in enumerate(net.model.layers) if hasattr(block, "expansion")] == [3, 7]
    assert net.config.num_hidden_layers == 10
    assert [b.expansion.block.self_attn.layer_idx for b in net.model.layers if hasattr(b, "expansion")] == [8, 9]
    base = make_base("llama", 320, num_hidden_layers=8).config
    assert method.layer("model.layers.4.mlp.up_proj.weight", base) == (5, 10)
    assert method.layer("model.layers.3.expansion.block.mlp.up_proj.weight", base) == (4, 10)
    line = method.fold(net).model(whole=True, rounded=False).model.layers
    assert [b.self_attn.layer_idx for b in line] == list(range(10))
    assert torch.equal(line[4].mlp.up_proj.weight, line[3].mlp.up_proj.weight)


@pytest.mark.parametrize("method", [Adapter(name="adapter", width=16), Full(name="full")], ids=["switched off", "frozen copy"])
def test_ldifs_value(method):
    net = build("llama", method, num_hidden_layers=6)  # so that a quarter is no whole number of layers
    base = make_base("llama", 320, num_hidden_layers=6).float().eval()
    term = LDIFS(name="ldifs").attach(net, method, lambda: base)
    ids = torch.randint(0, 320, (3, 6))
    positions = torch.arange(6).expand(3, -1)
    original = torch.tensor([[True] * 6, [False] * 6, [True] * 4 + [False] * 2])
    net.base_model(input_ids=ids, position_ids=positions, use_cache=False)
    got = term(MicroBatch(original, num_original=20, num_tokens=30, done=0.0), ids, positions).item()
    features = []
    for model in (net, base):
        found = []
        places = (model.model.embed_tokens, *model.model.layers)
        hooks = [place.register_forward_hook(lambda _, __, out, to=found: to.append(out)) for place in places]
        with torch.no_grad():
            model.base_model(input_ids=ids, use_cache=False)
        [hook.remove() for hook in hooks]
        quarters = [0, *(math.ceil(len(places[1:]) * q / 4) for q in (1, 2, 3, 4))]
        features.append([found[i].double().numpy() for i in quarters])
    total = 0.0
    for ours, theirs in zip(*features, strict=True):
        unit = [f / np.sqrt((f**2).sum(-1, keepdims=True)) for f in (ours, theirs)]
        total += ((unit[0] - unit[1]) ** 2).sum(-1)[original.numpy()].sum() / 20
    assert got == pytest.approx(total / 5, rel=1e-4) and got > 0


def test_ldifs_that_would_change_nothing_is_refused():
    method = Adapter(name="adapter", width=16)
    net = build("llama", method)
    term = LDIFS(name="ldifs").attach(net, method, lambda: None)
    ids, positions = torch.randint(0, 320, (2, 6)), torch.arange(6).expand(2, -1)
    for original in (True, False):  # also where this part of the step has no original text
        micro_batch = MicroBatch(torch.full((2, 6), original), num_original=12, num_tokens=12, done=0.0)
        with torch.no_grad():  # as reentrant checkpointing runs the layers
            net.base_model(input_ids=ids, position_ids=positions, use_cache=False)
        with pytest.raises(RuntimeError, match="the features carry no graph"):
            term(micro_batch, ids, positions)
        with pytest.raises(RuntimeError, match="the model has not run"):
            term(micro_batch, ids, positions)
        net.base_model(input_ids=ids, position_ids=positions, use_cache=False)
        assert term(micro_batch, ids, positions).requires_grad == original


@pytest.mark.parametrize("extensions", [1, 2])
def test_no_gate_near_zero_scores_as_the_experts_of_zeros_do(extensions):
    """The router of transformers, on numbers so near to zero that float32 hardly tells their sigmoid from 1/2."""
    method = NeutralResidues(name="neutral_residues", gate="hard_sigmoid", width=16)
    net = make_base("llama", 320).float().eval()
    for _ in range(extensions):
        extended.build(net, None, method)
    router = method.fold(net).model(whole=True, rounded=False).model.layers[0].mlp.gate
    z = torch.cat([torch.linspace(-1e-6, 1e-6, 200_001, dtype=torch.float64).float(), torch.zeros(1)])
    x = torch.zeros(len(z), router.hidden_dim)
    x[:, 0] = z
    with torch.no_grad():
        router.weight.zero_()
        router.weight[:extensions, 0] = 1.0
        logits, weights, chosen = router(x)
    scores = logits.sigmoid() + router.e_score_correction_bias
    assert not (scores[:, 0] == scores[:, -1]).any()
    opened = (chosen < extensions).all(-1)
    assert torch.equal(opened, (chosen < extensions).any(-1)) and torch.equal(opened, z.sigmoid() > 0.5)
    assert not opened[z <= 0].any() and opened[z > 2.0**-23].all()
    assert torch.equal(weights[:, 0], z.sigmoid().where(opened, torch.tensor(0.5)))


INF = float("inf")


@pytest.mark.parametrize("t", [0.0, 1e-3, -1e-3, 0.75, -0.75, 3.9, -3.9, 300.0, -300.0, 2.0**40, -(2.0**40), INF, -INF])
@pytest.mark.parametrize("size", [1.0, 2.0**-9])
def test_the_router_of_transformers_opens_where_a_threshold_does(t, size):
    """With a row of this size; on numbers around the threshold, as near as 1e-6 of it, and far away."""
    net = make_base("llama", 320).float().eval()
    method = NeutralResidues(name="neutral_residues", gate="threshold", width=16, layers=[0, 1])
    extended.build(net, None, method)
    block = stacks(net)[0][0]
    block.router.weight.data = size * torch.eye(1, 64)
    block.router.bias.data.fill_(-t)
    routers = [layer.mlp.gate for layer in method.fold(net).model(whole=True, rounded=True).model.layers]
    near = t if abs(t) < 1e9 else 0.0
    away = torch.logspace(-6, 2, 200) * max(abs(near), size)
    z = torch.cat([near + away, near - away, torch.tensor([near, -near, 1e3, -1e3])])
    x = torch.zeros(len(z), 64)
    x[:, 0] = z / size
    with torch.no_grad():
        block(x[None])
        for number, router in enumerate(routers):
            _, weights, chosen = router(x)
            assert (weights == 0.5).all()
            if number == 0:  # experts 0 and 1 are the halves of the block, and both or none are chosen
                assert torch.equal((chosen < 2).all(-1), block.gate_BT[0] == 1)
                assert torch.equal((chosen < 2).any(-1), block.gate_BT[0] == 1)
            if number == 1:  # closed for every input until it is calibrated; layers 2 and 3 have no block
                assert (chosen >= 2).all()
    assert (block.gate_BT.sum() == 0) == (t > 1e9) and (block.gate_BT.min() == 1) == (t < -1e9)


@pytest.mark.parametrize("extensions", [1, 2])
def test_a_gate_that_is_closed_exactly_at_zero_is_closed_when_folded(extensions):
    """At z = 0 a block and the experts of zeros have the same score, 1/2, and nothing of the block may come through."""
    method = NeutralResidues(name="neutral_residues", gate="hard_sigmoid", width=16, init="lecun")
    net = make_base("llama", 320).float().eval()
    ids = torch.randint(0, 320, (2, 9))
    with torch.no_grad():
        before = net(input_ids=ids).logits
        for _ in range(extensions):
            extended.build(net, None, method)
        for blocks in stacks(net):
            for block in blocks.values():
                torch.nn.init.normal_(block.down_proj.weight, std=0.5)
                block.router.weight.zero_()
        assert torch.equal(net(input_ids=ids).logits, before)
        folded = method.fold(net).model(whole=True, rounded=False).eval()
        assert torch.allclose(folded(input_ids=ids).logits, before, atol=1e-4)
        for blocks in stacks(net):  # and open ones are open
            for block in blocks.values():
                block.router.weight.normal_()
        live = net(input_ids=ids).logits
        folded = method.fold(net).model(whole=True, rounded=False).eval()
        assert (live - before).abs().max() > 0.1
        assert torch.allclose(folded(input_ids=ids).logits, live, atol=1e-3)


def test_l2sp_value():
    net = make_base("llama", 320).float()
    extended.build(net, None, Full(name="full"))
    term = L2SP(name="l2sp").attach(net, None, lambda: None)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    for p in net.parameters():
        p.data += 0.01 * torch.randn(p.shape)
    wanted = sum(((p - before[n]).double() ** 2).sum().item() for n, p in net.named_parameters()) / 2
    micro_batch = MicroBatch(torch.zeros(1, 5, dtype=torch.bool), 0, 20, 0.0)
    assert term(micro_batch, torch.zeros(1), torch.zeros(1)).item() == pytest.approx(wanted / 4, rel=1e-4)


def test_lines_factors():
    scale = layer_scaling.Lines(alpha=0.2, beta=0.8)
    method, config = Full(name="full"), make_base("llama", 320).config
    factors = [scale.factor(method.layer(f"model.layers.{i}.mlp.up_proj.weight", config), "") for i in range(4)]
    assert factors == pytest.approx([0.2 + 0.8 * (layer - 1) / (4 - 1) for layer in (1, 2, 3, 4)])
    assert scale.factor(method.layer("model.embed_tokens.weight", config), "model.embed_tokens.weight") == 0.2
    assert scale.factor(None, "lm_head.weight") == 0.2
    assert layer_scaling.Lines(0.2, 0.8, "last").factor(None, "lm_head.weight") == 1.0
    assert scale.factor(None, "model.embed_tokens.new_weight") == 1.0
    assert scale.factor((0, 1), "") == 1.0


SCALABLE = [
    Full(name="full"),
    Lora(name="lora", rank=4),
    SelectiveLora(name="selective_lora", rank=4),
    Grow(name="grow"),
    ExpansionBlocks(name="expansion_blocks", every=2),
]


@pytest.mark.parametrize("method", SCALABLE, ids=lambda m: m.name)
def test_lines_scales_the_change_of_the_merged_weights(method):
    """Folded after rescaling, every matrix is theta_0 + factor * (theta - theta_0)."""
    family, by = "llama", layer_scaling.Lines(0.3, 0.7)

    def folded(change):
        net = make_base(family, 320).float()
        torch.manual_seed(1)
        live = extended.build(net, None, method)
        origin = {n: t.clone() for n, t in live.delta().items()}
        torch.manual_seed(2)
        delta = {n: t + 0.1 * torch.randn(t.shape) * (not n.endswith(".s")) for n, t in origin.items()} if change else origin
        if change == "rescaled":
            delta = layer_scaling.rescaled(delta, origin, method, make_base(family, 320).config, by)
        extended.set_delta(live, delta)
        return numbers(method.fold(net).model(whole=True, rounded=False))

    start, trained, rescaled = folded(None), folded("trained"), folded("rescaled")
    depth = 6 if method.name == "expansion_blocks" else 4
    for name, theta in trained.items():
        place = name.split(".")
        factor = 0.3 + 0.7 * int(place[2]) / (depth - 1) if "layers" in place else 0.3
        assert np.allclose(rescaled[name], start[name] + factor * (theta - start[name]), atol=1e-5), name
    assert any(not np.allclose(rescaled[n], trained[n], atol=1e-3) for n in trained)


@pytest.mark.parametrize("method", SCALABLE, ids=lambda m: m.name)
def test_reverted_layers_compute_what_they_computed_before_training(method):
    """Folded after reverting layers 1 and 2, their matrices are those of the start; all others are as trained."""

    def folded(change):
        net = make_base("llama", 320).float()
        torch.manual_seed(1)
        live = extended.build(net, None, method)
        origin = {n: t.clone() for n, t in live.delta().items()}
        torch.manual_seed(2)
        delta = {n: t + 0.1 * torch.randn(t.shape) * (not n.endswith(".s")) for n, t in origin.items()} if change else origin
        if change == "reverted":
            by = layer_scaling.Reverted([1, 2])
            delta = layer_scaling.rescaled(delta, origin, method, make_base("llama", 320).config, by)
        extended.set_delta(live, delta)
        return numbers(method.fold(net).model(whole=True, rounded=False))

    start, trained, reverted = folded(None), folded("trained"), folded("reverted")
    for name, now in reverted.items():
        in_them = name.startswith(("model.layers.1.", "model.layers.2."))
        assert np.array_equal(now, (start if in_them else trained)[name]), name
    inside = [name for name in trained if name.startswith(("model.layers.1.", "model.layers.2."))]
    assert any(not np.array_equal(start[name], trained[name]) for name in inside)


def reference_ties(vectors, keep):
    flat = [np.concatenate([v[n].ravel() for n in sorted(v)]) for v in vectors]
    trimmed = []
    for f in flat:
        order = np.argsort(-np.abs(f))
        kept = np.zeros_like(f)
        kept[order[: int(len(f) * keep)]] = f[order[: int(len(f) * keep)]]
        trimmed.append(kept)
    out = np.zeros_like(flat[0])
    for j in range(len(out)):
        column = np.array([t[j] for t in trimmed])
        sign = np.sign(column.sum())
        agree = column[(np.sign(column) == sign) & (column != 0)]
        out[j] = agree.mean() if len(agree) else 0.0
    return out


def test_ties():
    generator = np.random.default_rng(3)
    vectors = [{"a": generator.normal(size=(6, 7)), "b": generator.normal(size=40)} for _ in range(3)]
    got = merging.ties([{n: torch.tensor(t) for n, t in v.items()} for v in vectors], keep=0.2)
    flat = np.concatenate([got[n].numpy().ravel() for n in sorted(got)])
    assert np.allclose(flat, reference_ties(vectors, 0.2))
    assert 0 < (flat == 0).mean() < 1


def test_ties_of_opposite_changes_go_with_the_majority():
    one, two = torch.tensor([4.0, 5.0, 6.0]), torch.tensor([4.0, 5.0, -6.0])
    assert merging.ties([{"a": one}, {"a": two}], keep=1.0)["a"].tolist() == [4, 5, 6]
    assert merging.ties([{"a": -one}, {"a": -two}], keep=1.0)["a"].tolist() == [-4, -5, -6]


def test_task_arithmetic_consensus_and_norm_ratio():
    one, two = {"a": torch.tensor([1.0, -2.0, 0.0, 3.0])}, {"a": torch.tensor([1.0, 0.1, 0.0, -1.0]), "b": torch.tensor([5.0])}
    total = merging.task_arithmetic([one, two])
    assert total["a"].tolist() == pytest.approx([2, -1.9, 0, 2]) and total["b"].tolist() == [5]
    # needed by t where |tau_t| >= 0.5 |sum - tau_t|: both, only one, none, only one; b by its own task alone
    kept = merging.consensus([one, two], mask_lambda=0.5)
    assert kept["a"].tolist() == [2, 0, 0, 0] and kept["b"].tolist() == [0]
    assert merging.norm_ratio([one, two], total) == pytest.approx(0.5)
    assert merging.norm_ratio([one, two], kept) == pytest.approx((2 + 1.9 + 0 + 2 + 5) / 2 / 2)


def test_gates_that_travel_with_exports_are_those_of_the_table():
    from langext.exports import modeling_neutral_residue as travelling

    z = torch.linspace(-4, 4, 81)
    assert travelling.GATES.keys() == GATES.keys()
    assert set(travelling.CLOSING) == {name for name, gate in GATES.items() if gate.closes}
    assert set(travelling.THRESHOLD) == {name for name, gate in GATES.items() if gate.threshold}
    for name, gate in GATES.items():
        assert torch.equal(travelling.GATES[name](z), gate.value(z)), name
        assert gate.closes == bool((gate.value(z[:40]) == 0).all()), name
        low, high = gate.value(torch.tensor([-1e-6, 1e-6]))
        assert gate.jumps == bool(high - low > 0.1), name
