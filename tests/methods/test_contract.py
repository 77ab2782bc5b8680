"""What every method promises, on every family: the seven points of the contract and the switch that brings the base back."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import CASES, calibrate, exports, label, method, stir
from deepspeed.runtime.activation_checkpointing import checkpointing as deepspeed_checkpointing
from safetensors.torch import load_file
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from toy import ENGLISH, FAMILIES, FRENCH, make_base, make_tokenizer, sentences

from langext.architectures import cross_entropy
from langext.artifacts import Model
from langext.exports import checkpoint, targets
from langext.methods import extended
from langext.methods.base import Method
from langext.methods.penalties import LDIFS
from langext.methods.penalties.base import MicroBatch
from langext.models import loading
from langext.training import objective

PAIRS = [pytest.param(family, case, id=f"{family}-{label(case)}") for case in CASES for family in FAMILIES]
EXPORTED = [pair for pair in PAIRS if exports(pair.values[1])]
LENGTH = 24


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Family -> Hugging Face folder."""
    root, tokenizer = tmp_path_factory.mktemp("bases"), make_tokenizer()
    for family in FAMILIES:
        make_base(family, len(tokenizer)).save_pretrained(root / family)
        tokenizer.save_pretrained(root / family)
    return root


@pytest.fixture
def point(request, record_property):
    """Tells the table which cell a test is about."""

    def note(name):
        family, case = request.node.callspec.params["family"], request.node.callspec.params["case"]
        record_property("contract", (label(case), family, name))

    return note


def extended_model(folder, case, dtype=torch.float32):
    torch.manual_seed(3)
    return calibrate(extended.build(loading.load_base(folder, dtype), loading.load_tokenizer(folder), method(case)))


def ids(seed=1, rows=2):
    return torch.randint(1, 300, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def original(rows=2):
    return torch.arange(rows)[:, None].expand(rows, LENGTH) % 2 == 0


def micro_batch(rows=2, done=0.5):
    return MicroBatch(original(rows), num_original=LENGTH * rows // 2, num_tokens=LENGTH * rows, done=done)


@torch.no_grad()
def logits(net, **more):
    return net.eval()(input_ids=ids(), **more).logits


@pytest.mark.parametrize(("family", "case"), PAIRS)
def test_1_extended_it_computes_what_the_base_computes(bases, family, case, point):
    point("as base")
    before = logits(loading.load_base(bases / family, torch.float32))
    after = logits(extended_model(bases / family, case).net)
    if case["name"] == "grow" and (case.get("train") == "all_mlp" or case.get("k") == 3):
        assert (before - after).abs().max() < 1e-5  # the same products, summed in another order
    else:
        assert torch.equal(before, after)


@pytest.mark.parametrize(("family", "case"), PAIRS)
def test_2_exactly_the_trainable_parameters_learn(bases, family, case, point):
    point("trains only")
    live = extended_model(bases / family, case)
    stir(live)
    before = {name: p.detach().clone() for name, p in live.net.named_parameters()}
    optimizer = torch.optim.SGD([p for p in live.net.parameters() if p.requires_grad], lr=0.1)
    run(live)[0].backward()
    with_gradient = {name for name, p in live.net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient == {name for name in before if live.trainable(name)}
    optimizer.step()
    changed = {name for name, p in live.net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == with_gradient


def run(live, whole=None, batch=None, done=0.5):
    whole = whole or objective.Objective(live.net, live.method, {})
    batch = ids() if batch is None else batch
    live.net.train()
    labels = torch.cat([batch[:, 1:], torch.full((len(batch), 1), -100)], 1)
    return whole(batch, labels, torch.arange(LENGTH).expand(len(batch), -1), micro_batch(len(batch), done))


@pytest.mark.parametrize(("family", "case"), PAIRS)
def test_3_a_few_steps_lower_the_loss(bases, family, case, point):
    point("learns")
    live = extended_model(bases / family, case)
    rows = [" ".join(sentences(words, 4, seed)) for seed, words in enumerate([ENGLISH, FRENCH] * 2)]
    batch = torch.tensor([live.tokenizer(row).input_ids[:LENGTH] for row in rows])
    optimizer = torch.optim.AdamW([p for p in live.net.parameters() if p.requires_grad], lr=1e-2)
    seen = []
    for step in range(6):
        optimizer.zero_grad()
        loss, each, _ = run(live, batch=batch, done=step / 6)
        loss.backward()
        optimizer.step()
        seen.append(each[original(4).logical_not()].mean().item())
    assert seen[-1] < seen[0] - 0.05


def checkpointing(net, kind):
    if kind == "torch":
        net.activation_checkpointing_enable({"use_reentrant": False})
    elif kind == "torch reentrant":
        net._set_gradient_checkpointing(True, lambda f, *a: torch_checkpoint(f, *a, use_reentrant=True))
        net.enable_input_require_grads()
    elif kind == "deepspeed":
        net._set_gradient_checkpointing(True, deepspeed_checkpointing.non_reentrant_checkpoint)


@pytest.mark.parametrize(("family", "case"), PAIRS)
def test_4_penalties_have_gradients_under_activation_checkpointing(bases, family, case, point):
    point("penalties")
    found = {}
    for kind in ("none", "torch", "deepspeed"):
        live = extended_model(bases / family, case)
        stir(live)
        checkpointing(live.net, kind)
        term = LDIFS(name="ldifs").attach(live.net, live.method, lambda: loading.load_base(bases / family, torch.float32))
        _, _, penalties = run(live, objective.Objective(live.net, live.method, {"ldifs": (1.0, term)}))
        assert penalties.keys() - {"ldifs"} == set(method(case).penalty(live.net, micro_batch()))
        for name, value in penalties.items():
            live.net.zero_grad()
            value.backward(retain_graph=True)
            norm = sum(p.grad.square().sum() for p in live.net.parameters() if p.grad is not None).sqrt()
            found.setdefault(name, []).append((value.item(), norm.item()))
    assert "ldifs" in found
    for name, measured in found.items():
        assert measured[0][0] > 0 and measured[0][1] > 0, name
        assert measured[1] == pytest.approx(measured[0], rel=1e-4), name
        assert measured[2] == pytest.approx(measured[0], rel=1e-4), name


@pytest.mark.parametrize(("family", "case"), PAIRS)
def test_5_cached_generation_equals_the_full_forward(bases, family, case, point):
    point("cache")
    live = extended_model(bases / family, case)
    stir(live)
    with torch.no_grad():
        full = live.net.eval()(input_ids=ids()).logits
        first = live.net(input_ids=ids()[:, :10], use_cache=True)
        cached = [live.net(input_ids=ids()[:, 10:18], past_key_values=first.past_key_values, use_cache=True).logits]
        cached += [live.net(input_ids=ids()[:, i : i + 1], past_key_values=first.past_key_values).logits for i in range(18, 24)]
    assert torch.allclose(full[:, 10:], torch.cat(cached, 1), atol=2e-5)
    again = live.net.generate(input_ids=ids()[:, :10], max_new_tokens=6, do_sample=False, pad_token_id=0)
    slow = live.net.generate(input_ids=ids()[:, :10], max_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=False)
    assert torch.equal(again, slow)


@pytest.mark.parametrize(("family", "case"), PAIRS)
def test_6a_saved_and_loaded_it_is_the_same(bases, family, case, point, tmp_path):
    point("reload")
    live = extended_model(bases / family, case, torch.bfloat16)
    stir(live)
    loading.save_delta(tmp_path, live.delta())
    loading.write_record(tmp_path, loading.Record(bases / family, method(case)))
    again = loading.load(Model(tmp_path), torch.bfloat16)
    assert torch.equal(logits(live.net), logits(again.net))
    if case["name"] != "full":
        whole = sum(p.numel() for p in live.net.parameters()) * 2
        assert (tmp_path / "delta.safetensors").stat().st_size < 0.95 * whole


RELOAD = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("langext", "tokenizer_tools"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
root = Path(sys.argv[1])
ids = load_file(root / "ids.safetensors")["ids"]
out = {}
for folder in sorted(root.glob("*/*/")):
    remote = any(folder.glob("modeling_*.py"))
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=remote).eval()
    with torch.no_grad():
        out[f"{folder.parent.name}/{folder.name}"] = net(input_ids=ids).logits.contiguous()
        first = net(input_ids=ids[:, :10], use_cache=True)
        rest = net(input_ids=ids[:, 10:], past_key_values=first.past_key_values).logits
        out[f"{folder.parent.name}/{folder.name}/cached"] = torch.cat([first.logits, rest], 1).contiguous()
save_file(out, root / "logits.safetensors")
"""


@pytest.fixture(scope="module")
def exported(bases, tmp_path_factory):
    """(what the trained models compute, what strangers compute who load the exports), by `<family>/<method>`; one process."""
    from safetensors.torch import save_file

    root, trained = tmp_path_factory.mktemp("exported"), {}
    save_file({"ids": ids()}, root / "ids.safetensors")
    for param in EXPORTED:
        family, case = param.values
        live = extended_model(bases / family, case)
        stir(live)
        name = f"{family}/{label(case)}"
        folder = root / name
        folder.mkdir(parents=True)
        trained[name] = logits(live.net)
        form = targets.choose(live.net.config, live.methods, "auto")
        stock = None
        if targets.TARGETS[form].folds:
            stock = live.methods[-1].fold(live.net)
            for whole in (True, False):
                folded = logits(stock.model(whole=whole, rounded=False))
                assert torch.allclose(trained[name], folded, atol=5e-5), (name, (trained[name] - folded).abs().max())
            if case["name"] in ("lora", "selective_lora"):  # merged weights are rounded
                trained[name] = logits(stock.model(whole=True, rounded=True))
        checkpoint.save(live, stock, folder)
    (root / "reload.py").write_text(RELOAD)
    done = subprocess.run([sys.executable, "-I", str(root / "reload.py"), str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return trained, load_file(Path(root) / "logits.safetensors")


@pytest.mark.parametrize(("family", "case"), EXPORTED)
def test_6b_the_export_is_the_model_where_langext_cannot_be_imported(exported, family, case, point):
    point("export")
    trained, reloaded = exported
    name = f"{family}/{label(case)}"
    assert torch.allclose(trained[name], reloaded[name], atol=5e-5), (trained[name] - reloaded[name]).abs().max()
    assert torch.allclose(trained[name], reloaded[f"{name}/cached"], atol=5e-5)


@pytest.mark.parametrize(("family", "case"), PAIRS)
def test_7_perturbed_it_differs_from_the_base(bases, family, case, point):
    point("control")
    before = logits(loading.load_base(bases / family, torch.float32))
    live = extended_model(bases / family, case)
    stir(live)
    assert (before - logits(live.net)).abs().max() > 1e-3


@pytest.mark.parametrize(("family", "case"), [pair for pair in PAIRS if method(pair.values[1]).reversible])
def test_8_switched_off_it_is_the_base(bases, family, case, point):
    point("switch off")
    before = logits(loading.load_base(bases / family, torch.float32))
    live = extended_model(bases / family, case)
    stir(live)
    with live.method.off(live.net):
        assert torch.equal(before, logits(live.net))
    assert not torch.equal(before, logits(live.net))


@pytest.mark.parametrize("case", [case for case in CASES if type(method(case)).penalty is not Method.penalty], ids=label)
def test_a_penalty_that_reentrant_checkpointing_would_silence_is_refused(bases, case):
    live = extended_model(bases / "llama", case)
    stir(live)
    checkpointing(live.net, "torch reentrant")
    if case["name"] == "selective_lora":  # reads weights, not activations
        assert run(live)[2]["sparsity"].requires_grad
    else:
        with pytest.raises(RuntimeError, match="non-reentrant"):
            run(live)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_do_not_see_each_other(bases, family):
    net = loading.load_base(bases / family, torch.float32)
    packed, positions = ids(), torch.cat([torch.arange(10), torch.arange(LENGTH - 10)]).expand(2, -1)
    with torch.no_grad():
        both = net.base_model(input_ids=packed, position_ids=positions, use_cache=False).last_hidden_state
        second = net.base_model(input_ids=packed[:, 10:], use_cache=False).last_hidden_state
        other = packed.clone()
        other[:, :10] = ids(seed=9)[:, :10]
        changed = net.base_model(input_ids=other, position_ids=positions, use_cache=False).last_hidden_state
    assert torch.allclose(both[:, 10:], second, atol=1e-5)
    assert torch.equal(both[:, 10:], changed[:, 10:]) and not torch.equal(both[:, :10], changed[:, :10])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_chunked_loss_is_that_of_the_family(bases, family):
    net = loading.load_base(bases / family, torch.float32)
    batch = ids()
    hidden = net.base_model(input_ids=batch, use_cache=False).last_hidden_state
    labels = torch.cat([batch[:, 1:], torch.full((2, 1), -100)], 1).flatten()
    from langext.architectures import families

    ours, _ = cross_entropy.cross_entropy(
        hidden.flatten(0, 1), net.lm_head.weight, labels, 1 / 46, families.softcap(net.config)
    )
    theirs = net(input_ids=batch, labels=batch).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours_grad, theirs_grad = (torch.autograd.grad(x, net.lm_head.weight, retain_graph=True)[0] for x in (ours, theirs))
    assert torch.allclose(ours_grad, theirs_grad, atol=1e-5)
