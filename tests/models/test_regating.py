"""ReLU gates turned into hard sigmoids."""

import pytest
import torch
from bench import Bench, extend, train
from toy import make_base, make_tokenizer

from langext.architectures import precision
from langext.artifacts import Corpus, Model, read_json
from langext.context import Context
from langext.evaluation.bpb import Ruler
from langext.methods import NeutralResidues, extended
from langext.methods.residue import stacks
from langext.models import loading, regating

RELU = {"name": "neutral_residues", "gate": "relu", "init": "lecun", "width": 32, "alpha": 0.1}


@pytest.fixture
def net(tmp_path):
    """A pico model with ReLU gates that are open for about half of the tokens."""
    tokenizer = make_tokenizer()
    make_base("llama", len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    made = loading.load_base(tmp_path, torch.float32)
    extended.build(made, tokenizer, NeutralResidues(name="neutral_residues", gate="relu", width=24))
    torch.manual_seed(1)
    for block in stacks(made)[0].values():
        block.down_proj.weight.data.normal_(0, 0.2)
        block.router.weight.data.normal_(0, 0.3)
    return made


def rows(count, seed=0):
    dice = torch.Generator().manual_seed(seed)
    return torch.randint(1, 300, (count, 20), generator=dice).tolist()


@torch.no_grad()
def logits(net):
    return net(input_ids=torch.tensor(rows(4, 9))).logits


def opened(net):
    return torch.stack([block.gate_BT > 0 for block in stacks(net)[0].values()])


def test_the_fit_minimises_the_weighted_squares():
    z, weight = torch.rand(500) * 3 + 0.01, torch.rand(500)
    s, c = regating.fit(z, weight)
    error = (weight * (z - c * torch.sigmoid(s * z)).square()).sum()
    for other in (0.9 * c, 1.1 * c):
        assert (weight * (z - other * torch.sigmoid(s * z)).square()).sum() > error
    assert error < (weight * (z - torch.sigmoid(z)).square()).sum()
    assert regating.fit(torch.empty(0), torch.empty(0)) == (1.0, 1.0)
    assert regating.fit(z, torch.zeros(500)) == (1.0, 1.0)


def test_the_same_tokens_stay_open_and_the_old_gates_can_be_had_back(net):
    before, open_before = logits(net), opened(net)
    regated = regating.start(net, list(stacks(net)[0].values()), "hard_sigmoid", rows(8))
    after = logits(net)
    assert 0.2 < open_before.float().mean() < 0.8
    assert torch.equal(opened(net)[0], open_before[0])  # the layers above get other inputs
    assert (opened(net) == open_before).float().mean() > 0.9
    assert not torch.allclose(after, before, atol=1e-3)
    with regating.as_before(regated):
        assert torch.allclose(logits(net), before, atol=1e-5)
    assert torch.equal(logits(net), after)


def test_distilling_lowers_the_divergence_and_changes_gate_rows_alone(net):
    regated = regating.start(net, list(stacks(net)[0].values()), "hard_sigmoid", rows(8))
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    batches = [rows(4)] * 30
    kls = list(regating.distil(net, regated, batches, lr=0.05))
    assert kls[-1] < 0.9 * kls[0]
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, weights[name])}
    assert changed == {name for name in weights if name.endswith("router.weight")}


def test_in_a_pipeline_it_leads_to_a_stock_architecture(tmp_path, pico):
    stages = [
        extend(**RELU), train(), {"uses": "regate", "steps": 3, "batch_sequences": 2, "eval_bytes": 2000},
        {"uses": "export", "format": "native"},
    ]  # fmt: skip
    bench = Bench(tmp_path, pico)
    run = bench.run("regated", "fra_Latn", ["eng_Latn"], stages)
    manifest = read_json(run / "04-regate" / "manifest.json")
    cost = manifest["summary"]["bits_per_byte"]
    assert set(cost) == {"trained", "fitted", "distilled"}
    live = loading.load(Model(run / "04-regate"), precision.here(0))
    ctx = Context(tmp_path, 17, "fra_Latn", ("eng_Latn",))
    measured = Ruler(ctx, Corpus(run / "01-filter"), 2000).measure(live.net, live.tokenizer)
    for name, before in cost["trained"].items():  # what is saved is what was measured
        assert measured[name] == pytest.approx(cost[manifest["summary"]["kept"]][name], abs=1e-9)
        assert measured[name] != before
    assert loading.read_record(Model(run / "04-regate")).method.gate == "hard_sigmoid"
    assert read_json(run / "05-export" / "checkpoint" / "export.json")["loads_as"] == "Glm4MoeForCausalLM"
    assert (
        "gates were turned into ones that stock architectures have"
        in (run / "05-export" / "checkpoint" / "README.md").read_text()
    )


def test_other_gates_are_refused_when_planning(tmp_path, pico):
    bench = Bench(tmp_path, pico)
    stages = [extend(**RELU | {"gate": "sigmoid"}), train(), {"uses": "regate"}]
    assert "regate turns the gate relu" in bench.refused("fra_Latn", ["eng_Latn"], stages)
