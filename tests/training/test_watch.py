"""What training watches: the distance to the base, the figures of the weights, and layers that have died."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy import make_base, make_tokenizer

from langext.architectures import families, vocabulary
from langext.context import Context
from langext.data import documents
from langext.evaluation.gate_stats import Observer
from langext.evaluation.kl import BaseKL
from langext.methods import Adapter, Full, NeutralResidues, SelectiveLora, extended
from langext.methods.residue import stacks
from langext.training.watch import Watch

TEXTS = ["The small cat sleeps in the house with a dog.", "A big dog sees the street at night, without rain."]
PROBES = {"fra_Latn/book": ["Le petit chat dort dans la maison."], "eng_Latn/book": TEXTS}


def live_model(method, family="llama", num_new=0):
    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    return extended.build(make_base(family, len(tokenizer)).float().eval(), tokenizer, method, num_new)


def watch(tmp_path, live, family="llama"):
    ctx = Context(tmp_path, 1, "fra_Latn", ("eng_Latn",))
    return Watch(ctx, live, live.tokenizer, lambda: make_base(family, 320).float().eval(), PROBES)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("method", [Adapter(name="adapter", width=16), Full(name="full")], ids=["switched off", "loaded"])
def test_distance_to_the_base(tmp_path, family, method):
    live, base = live_model(method, family), make_base(family, 320).float().eval()
    seen = watch(tmp_path, live, family)
    assert seen.measure().kl_to_base == pytest.approx(0, abs=1e-6)
    for name, parameter in live.net.named_parameters():
        if live.trainable(name):
            parameter.data += 0.05 * torch.randn(parameter.shape)
    total, tokens = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([[live.tokenizer.eos_token_id, *live.tokenizer(text).input_ids]])
        with torch.no_grad():
            p, q = (net(input_ids=ids).logits[0].double().log_softmax(-1) for net in (base, live.net))
        total += (p.exp() * (p - q)).sum().item()
        tokens += ids.shape[1]
    assert seen.measure().kl_to_base == pytest.approx(total / tokens, rel=1e-4)
    assert total > 0.1


def test_probability_given_to_new_tokens_counts_as_distance():
    live = live_model(Adapter(name="adapter", width=16), num_new=10)
    base = make_base("llama", 320).float().eval()
    kl = BaseKL(base, live.tokenizer, TEXTS)
    live.net.get_output_embeddings().new_weight.data.zero_()
    assert kl.measure(live.net) > 0.01


def test_new_tokens_of_an_earlier_language_are_the_bases_own(tmp_path):
    """A second language begins at distance 0, though the first one has put rows of its own beside the base's."""
    live = live_model(NeutralResidues(name="neutral_residues", gate="relu", width=16), num_new=10)
    live.net.get_output_embeddings().new_weight.data.normal_()
    live.fixed = frozenset(name for name, _ in live.net.named_parameters() if name.endswith(vocabulary.NEW_ROWS))
    live.freeze()
    assert live.had_rows and watch(tmp_path, live).measure().kl_to_base == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("gate", "advice"), [("relu", "Use init lecun"), ("threshold", "Calibrate with a lower threshold")])
def test_a_layer_whose_gate_is_closed_for_the_new_language_is_called_dead(tmp_path, capsys, gate, advice):
    live = live_model(NeutralResidues(name="neutral_residues", gate=gate, width=16, layers=[1, 3]))
    open_, shut = (stacks(live.net)[0][layer].router for layer in (1, 3))
    shut.weight.data.zero_()
    if gate == "threshold":
        open_.bias.data.fill_(1.0)
    seen = watch(tmp_path, live)
    assert seen.measure().dead_layers == [3]
    said = capsys.readouterr().out
    assert "warning: the gates of layers 3 are closed for all held-out French" in said and advice in said
    seen.measure()
    assert "warning" not in capsys.readouterr().out  # once is enough


def test_methods_without_gates_have_no_dead_layers_and_selective_lora_counts_its_blocks(tmp_path, capsys):
    assert watch(tmp_path, live_model(Adapter(name="adapter", width=16))).measure().dead_layers is None
    live = live_model(SelectiveLora(name="selective_lora", rank=2))
    assert watch(tmp_path, live).measure().weights == {"active_blocks": 28.0, "blocks": 28.0}
    assert "active blocks 28  blocks 28" in capsys.readouterr().out


def test_a_token_after_an_open_one_is_not_computed_as_the_base_does():
    """Of tokens with closed gates, those before any open one have the base's logits and those after it have not."""
    live = live_model(NeutralResidues(name="neutral_residues", gate="relu", width=16))
    base = make_base("llama", len(live.tokenizer)).float().eval()
    blocks = stacks(live.net)[0]
    for block in blocks.values():
        block.down_proj.weight.data.normal_(std=0.5)
        block.router.weight.data.zero_()
    ids = torch.randint(0, 300, (2, 12))
    inputs = {}
    for number, ffn in enumerate(families.ffns(base)):
        ffn.register_forward_pre_hook(lambda _, args, number=number: inputs.__setitem__(number, args[0].clone()))
    with torch.no_grad():
        before = base(input_ids=ids).logits
        wanted = -torch.ones(24, 1)
        wanted[5] = 1.0  # open for this token of the first row alone
        blocks[1].router.weight.data = torch.linalg.lstsq(inputs[1].reshape(24, -1), wanted).solution.T.clone()
        after = live.net(input_ids=ids).logits
    mask = torch.ones(2, 12, dtype=torch.bool)
    seen = Observer(live)
    seen(mask)
    same = (before - after).abs().amax(-1) < 1e-6
    assert same.tolist() == [[True] * 5 + [False] * 7, [True] * 12]
    assert seen.figures()["as_base"] == pytest.approx(17 / 24)
    assert seen.figures()["closed"] == seen.closed() == pytest.approx(23 / 24)


def test_with_more_tokens_none_is_computed_as_the_base_does():
    live = live_model(NeutralResidues(name="neutral_residues", gate="relu", width=16), num_new=4)
    with torch.no_grad():
        live.net(input_ids=torch.randint(0, 300, (1, 8)))
    seen = Observer(live)
    seen(torch.ones(1, 8, dtype=torch.bool))
    assert "as_base" not in seen.figures() and {"open", "closed"} <= set(seen.figures())


def test_distance_of_a_base_with_unused_rows_to_a_model_with_few_new_ones():
    """The new rows stand where the base has padding: neither is compared with the other."""
    live = live_model(Full(name="full"), num_new=3)
    base = make_base("llama", 340).float().eval()
    first = live.net.get_output_embeddings().first_new
    live.net.get_output_embeddings().new_weight.data.normal_()
    total, tokens = 0.0, 0
    for ids in documents.encode(live.tokenizer, TEXTS):
        with torch.no_grad():
            p = base(input_ids=torch.tensor([ids])).logits[0, :, :first].double().log_softmax(-1)
            q = live.net(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)[:, :first]
        total, tokens = total + (p.exp() * (p - q)).sum().item(), tokens + len(ids)
    assert total > 0.1 and BaseKL(base, live.tokenizer, TEXTS).measure(live.net) == pytest.approx(total / tokens, rel=1e-4)


def test_rows_of_padding_that_stay_are_compared_too():
    """A model keeps the rows of its base that no new token takes, and they take their part in both softmaxes."""
    tokenizer = make_tokenizer()
    base, net = (make_base("llama", 340).float().eval() for _ in range(2))
    net.load_state_dict(base.state_dict())
    vocabulary.extend(net, first_new=320, num_new=3)
    net.get_output_embeddings().new_weight.data.normal_()
    kept, total, tokens = [*range(320), *range(323, 340)], 0.0, 0
    for ids in documents.encode(tokenizer, TEXTS):
        with torch.no_grad():
            p = base(input_ids=torch.tensor([ids])).logits[0, :, kept].double().log_softmax(-1)
            q = net(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)[:, kept]
        total, tokens = total + (p.exp() * (p - q)).sum().item(), tokens + len(ids)
    assert total > 0.1 and BaseKL(base, tokenizer, TEXTS).measure(net) == pytest.approx(total / tokens, rel=1e-4)


class Copies(TorchDispatchMode):
    """Counts logits that are copied because they are indexed by a tensor."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func is torch.ops.aten.index.Tensor and args[0].is_floating_point() and args[0].shape[-1] >= 320
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [320, 340])
def test_the_distance_copies_no_logits(rows):
    tokenizer = make_tokenizer()
    net = make_base("llama", rows).float().eval()
    kl = BaseKL(net, tokenizer, TEXTS)
    vocabulary.extend(net, first_new=320, num_new=3)
    with Copies() as copies:
        kl.measure(net)
    assert copies.number == 0
