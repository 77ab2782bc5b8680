import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from langext.architectures import cross_entropy, stock, vocabulary
from langext.methods import NeutralResidues, extended
from langext.methods.penalties.base import MicroBatch
from langext.models import loading
from langext.training import objective


@pytest.mark.parametrize("tokens", [5, 300])
def test_chunked_cross_entropy_equals_the_plain_one(tokens):
    torch.manual_seed(0)
    x = torch.randn(tokens, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(50, (tokens,))
    labels[::7] = -100
    wanted = 3.0 * F.cross_entropy(x @ weight.T, labels, reduction="sum") / 100
    wanted.backward()
    grads = x.grad.clone(), weight.grad.clone()
    x.grad = weight.grad = None
    total, each = cross_entropy.cross_entropy(x, weight, labels, 1 / 100)
    (3.0 * total).backward()
    assert 3.0 * total.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert torch.allclose(x.grad, grads[0], atol=1e-6) and torch.allclose(weight.grad, grads[1], atol=1e-6)
    assert (each[::7] == 0).all() and each.sum().item() / 100 == pytest.approx(total.item(), rel=1e-6)


def test_no_tokens_have_no_loss():
    x, weight = torch.zeros(0, 8, requires_grad=True), torch.randn(10, 8, requires_grad=True)
    total, each = cross_entropy.cross_entropy(x, weight, torch.zeros(0, dtype=torch.long), 1.0)
    total.backward()
    assert total.item() == 0 and each.shape == (0,) and x.grad.shape == (0, 8) and not weight.grad.any()


def test_the_scale_is_not_rounded_to_the_precision_of_the_activations():
    """1/773 in bf16 is 0.26 % too large, and the sizes here are such that a gradient as wrong as that is another bf16 number.

    softmax - onehot is exactly 1/2 and -1/2, since every logit is zero.
    """
    scale, zeros = 1 / 773, torch.zeros(1540, dtype=torch.long)
    x = torch.ones(1540, 4, dtype=torch.bfloat16)
    head = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    cross_entropy.cross_entropy(x, head, zeros, scale)[0].backward()
    assert head.grad[1].tolist() == [torch.tensor(1540 / 2 * scale).bfloat16().item()] * 4
    one = torch.zeros(1, 4, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[0.0], [1536.0]], dtype=torch.bfloat16).expand(2, 4).contiguous()
    cross_entropy.cross_entropy(one, weight, zeros[:1], scale)[0].backward()
    assert one.grad[0].tolist() == [torch.tensor(1536 / 2 * scale).bfloat16().item()] * 4


def test_a_frozen_head_gets_no_gradient():
    x = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(10, 8)
    cross_entropy.cross_entropy(x, weight, torch.tensor([1, 2, 3, 4]), 1.0)[0].backward()
    assert x.grad is not None and weight.grad is None


def test_rows_of_new_tokens_get_their_gradients_without_those_of_the_frozen_ones():
    torch.manual_seed(0)
    head = vocabulary.ExtendedHead(torch.nn.Linear(8, 50, bias=False), 40, torch.nn.Parameter(torch.randn(6, 8)), (7, 3), 50)
    head.weight.requires_grad_(False)
    x, labels = torch.randn(300, 8, requires_grad=True), torch.randint(50, (300,))
    labels[::7] = -100
    plain = F.cross_entropy(head(x), labels, reduction="sum") / 100
    plain.backward()
    wanted = x.grad.clone(), head.new_weight.grad.clone()
    x.grad = head.new_weight.grad = None
    with FlopCounterMode(display=False) as counter:
        whole, new = vocabulary.head_weight(head), vocabulary.learning_rows(head)
        total, _ = cross_entropy.cross_entropy(x, whole, labels, 1 / 100, new=new)
        total.backward()
    assert total.item() == pytest.approx(plain.item(), rel=1e-5)
    assert torch.allclose(x.grad, wanted[0], atol=1e-6) and torch.allclose(head.new_weight.grad, wanted[1], atol=1e-6)
    assert counter.get_total_flops() == 2 * 300 * 8 * (50 + 50 + 6)
    head.weight.requires_grad_(True)
    assert vocabulary.learning_rows(head) is None


def test_scoring_works_out_no_gradient_of_a_head_that_learns():
    flops = []
    for learns in (False, True):
        weight = torch.randn(10, 8, requires_grad=learns)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            cross_entropy.cross_entropy(torch.randn(4, 8), weight, torch.tensor([1, 2, 3, 4]), 1.0)
        flops.append(counter.get_total_flops())
    assert flops == [2 * 4 * 8 * 10] * 2


def test_the_loss_does_not_depend_on_how_a_batch_is_cut(pico):
    method = NeutralResidues(name="neutral_residues", gate="sigmoid", width=16, init="he", alpha=10.0)
    net = loading.load_base(pico, torch.float32)
    extended.build(net, loading.load_tokenizer(pico), method)
    for block in (p for n, p in net.named_parameters() if "down_proj" in n and "residues" in n):
        torch.nn.init.normal_(block, std=0.1)
    whole = objective.Objective(net, method, {})
    ids = torch.randint(1, 300, (4, 17), generator=torch.Generator().manual_seed(3))
    original = torch.tensor([True, False, True, True])

    def grads(micro):
        net.zero_grad()
        for at in range(0, 4, micro):
            rows = slice(at, at + micro)
            micro_batch = MicroBatch(original[rows, None].expand(-1, 16), num_original=48, num_tokens=64, done=0.0)
            positions = torch.arange(16).expand(micro, -1)
            loss, _, _ = whole(ids[rows, :-1], ids[rows, 1:].contiguous(), positions, micro_batch)
            loss.backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    whole, cut = grads(4), grads(1)
    assert torch.allclose(whole, cut, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_extended_vocabulary_computes_as_before_and_folds_back(tied):
    from toy import make_llama

    net = make_llama(320, tied=tied).float().eval()
    ids = torch.randint(0, 300, (1, 12))
    with torch.no_grad():
        before = net(input_ids=ids).logits
        vocabulary.extend(net, first_new=310, num_new=5)  # of ten rows of padding, five are taken over
        net.get_input_embeddings().new_weight.data.normal_()
        if not tied:
            net.get_output_embeddings().new_weight.data.normal_()
        live = net(input_ids=torch.cat([ids, torch.tensor([[311, 314]])], 1)).logits
        net = stock.of(net).model(whole=True, rounded=False)
        folded = net(input_ids=torch.cat([ids, torch.tensor([[311, 314]])], 1)).logits
    assert live.shape[-1] == 320 == net.config.vocab_size  # a model has no fewer rows than its base
    for kept in (slice(310), slice(315, 320)):
        assert torch.allclose(live[:, :12, kept], before[..., kept], atol=1e-5)
    assert torch.equal(live, folded)
    assert (net.get_output_embeddings().weight is net.get_input_embeddings().weight) == tied
