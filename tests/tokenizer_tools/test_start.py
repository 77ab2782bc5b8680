"""How rows of new tokens start: exact formulas on small tensors, and a shift that keeps the softmax of original text."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import log_softmax

from tokenizer_tools.start import STARTS, Material, composition, distilled, focus, mean, sample, softmax

PIECES = [[1, 2], [3, 3, 5]]
LENGTHS = [1, 1, 3, 2, 1, 4]


def material(tied: bool, **more):
    dice = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 4, generator=dice) for _ in range(2))
    names = [*"abcdef", "bc", "ddf"]
    return Material(first, None if tied else second, PIECES, LENGTHS, 3, names, **more)


def some_text():
    """Token 6 has the neighbours of token 1, and token 7 those of token 4; the other tokens have others."""
    dice = torch.Generator().manual_seed(1)
    for _ in range(400):
        pick = torch.rand(3, generator=dice) < 0.5
        yield [0, 6 if pick[0] else 1, 2, 0, 6 if pick[1] else 1, 2] + [3, 7 if pick[2] else 4, 5] * 2


def some_states(ids_BT, rows_ND):
    """A model with one layer: the state is the mean of the input rows so far."""
    all_rows = torch.cat([material(True).input_VD, rows_ND])[ids_BT]
    return all_rows.cumsum(1) / torch.arange(1, ids_BT.shape[1] + 1)[:, None]


def test_mean_is_the_mean_of_the_pieces():
    given = material(tied=False)
    found = mean.rows(given)
    for rows, weight in ((found.input_ND, given.input_VD), (found.head_ND, given.head_VD)):
        assert torch.allclose(rows[0], (weight[1] + weight[2]) / 2)
        assert torch.allclose(rows[1], (2 * weight[3] + weight[5]) / 3)


def test_composition_has_the_usual_norm_for_the_input_and_weights_by_length_for_the_head():
    given = material(tied=False)
    found = composition.rows(given)
    w, v, head = given.input_VD, given.head_VD, found.head_ND
    assert torch.allclose(found.input_ND.norm(dim=1), w.norm(dim=1).median().expand(2))
    assert torch.allclose(torch.cosine_similarity(found.input_ND[0], w[1] + w[2], dim=0), torch.tensor(1.0))
    assert torch.allclose(head[0], (1 * v[1] + 3 * v[2]) / 4)
    assert torch.allclose(head[1], (2 * v[3] + 2 * v[3] + 4 * v[5]) / 8)
    one = composition.rows(material(tied=True))
    assert one.output_ND is None and torch.allclose(one.input_ND[0], (1 * w[1] + 3 * w[2]) / 4)


def test_a_sample_has_the_mean_and_the_covariance_of_the_rows():
    torch.manual_seed(0)
    weight = torch.randn(300, 3) @ torch.tensor([[2.0, 0, 0], [1, 1, 0], [0, 0, 0.1]]) + torch.tensor([5.0, 0, -1])
    rows = sample.normal_rows(weight, 4000, seed=1)
    assert torch.allclose(rows.mean(0), weight.mean(0), atol=0.2)
    assert torch.allclose(rows.T.cov(), weight.T.cov(), atol=0.3)
    assert torch.equal(rows, sample.normal_rows(weight, 4000, seed=1))
    assert not torch.equal(rows, sample.normal_rows(weight, 4000, seed=2))
    assert not torch.equal(*sample.rows(material(tied=False)).named.values())


def test_sparsemax_is_the_nearest_point_of_the_simplex():
    found = focus.sparsemax(torch.tensor([[0.3, 0.2, -1.0], [2.0, 0.5, 0.0]]))
    assert torch.allclose(found, torch.tensor([[0.55, 0.45, 0.0], [1.0, 0.0, 0.0]]))


def test_focus_combines_rows_of_tokens_in_the_text_and_gives_rare_tokens_the_mean():
    given = material(tied=False, text=some_text)
    found = focus.rows(given)
    for rows, weight in ((found.input_ND, given.input_VD), (found.head_ND, given.head_VD)):
        assert not torch.allclose(rows, mean.subtoken_mean(weight, PIECES), atol=0.01)
        assert ((rows < weight.max(0).values) & (rows > weight.min(0).values)).all()
    assert torch.equal(found.input_ND, focus.rows(given).input_ND)
    assert not torch.equal(found.input_ND, focus.rows(replace(given, seed=4)).input_ND)
    rare = focus.rows(replace(given, text=lambda: [[0, 6]]))
    assert torch.equal(rare.input_ND, mean.rows(given).input_ND)


def test_focus_combines_with_the_weights_of_sparsemax():
    known, new = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([[3.0, 3.0], [5.0, 0.0]])
    rows = focus.combined(torch.tensor([[1.0], [10.0], [100.0]]), known, new)
    assert torch.allclose(rows, torch.tensor([[5.5], [1.0]]))


def test_distillation_moves_input_rows_towards_the_states_of_the_pieces():
    given = material(tied=False, text=some_text, states=some_states)
    begun, found = composition.rows(given), distilled.rows(given, steps=8)
    ids = next(distilled.windows(given, 64))
    before, after = (float(distilled.difference(given, [ids], rows.input_ND)) for rows in (begun, found))
    assert after < 0.97 * before and torch.equal(found.head_ND, begun.head_ND)
    assert torch.equal(found.input_ND, distilled.rows(given, steps=8).input_ND)
    exact = torch.stack([material(True).input_VD[1], material(True).input_VD[3]])
    alone = replace(given, pieces=[[1], [3]])
    assert float(distilled.difference(alone, [ids], exact)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="no 128 tokens on end"):
        distilled.rows(replace(given, text=lambda: [[0, 1]]))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", STARTS)
def test_every_start_gives_the_rows_that_the_base_has_and_writes_none_of_the_base(name, tied):
    given = material(tied, text=some_text, states=some_states)
    kept = given.input_VD.clone(), given.head_VD.clone()
    found = STARTS[name](given)
    assert list(found.named) == (["input"] if tied else ["input", "output"])
    for rows in found.named.values():
        assert rows.shape == (2, 4) and rows.dtype == torch.float32 and rows.isfinite().all() and not rows.requires_grad
    assert torch.equal(kept[0], given.input_VD) and torch.equal(kept[1], given.head_VD)


@pytest.mark.parametrize("cap", [None, 3.0])
def test_the_disturbance_is_the_divergence_from_the_base(cap):
    torch.manual_seed(0)
    hidden, base, new = torch.randn(700, 8), torch.randn(50, 8), torch.randn(6, 8)
    p, q = (log_softmax(softmax.bent(hidden @ weight.T, cap), 1)[:, :50] for weight in (base, torch.cat([base, new])))
    exact = float((p.exp() * (p - q)).sum(1).mean())
    assert softmax.disturbance(hidden, softmax.log_sums(hidden, base, cap), new, cap) == pytest.approx(exact, rel=1e-4)


def test_a_shift_that_is_fitted_on_some_text_keeps_to_the_budget_on_other_text():
    torch.manual_seed(0)
    base, rows, middle = torch.randn(500, 64) * 0.3, torch.randn(200, 64) * 0.3, torch.randn(64)
    fit, other, new = middle + torch.randn(4000, 64), middle + torch.randn(20_000, 64), torch.randn(1000, 64) - 0.3 * middle
    sums = [softmax.log_sums(states, base) for states in (fit, other)]
    moved, shift = softmax.shifted(fit, sums[0], rows, softmax.direction(fit, new), 1e-4)
    assert shift > 0 and 0.5e-4 < softmax.disturbance(other, sums[1], moved) < 1e-4


def test_the_smallest_shift_within_the_budget_leaves_the_new_language_its_logits():
    torch.manual_seed(0)
    original, new = torch.randn(600, 16), torch.randn(600, 16)
    original[:, 0] += 8
    new[:, 1] += 8
    base, rows = torch.randn(50, 16), torch.randn(6, 16)
    sums, along = softmax.log_sums(original, base), softmax.direction(original, new)
    moved, shift = softmax.shifted(original, sums, rows, along, 1e-4)
    assert softmax.disturbance(original, sums, rows) > 0.01
    fitted = softmax.disturbance(original, sums, moved)
    assert 0.9 * softmax.MARGIN * 1e-4 < fitted <= softmax.MARGIN * 1e-4 and shift > 1
    assert (original @ (moved - rows).T).mean() == pytest.approx(-shift, rel=0.1)
    assert abs((new @ (moved - rows).T).mean()) < 0.1 * shift
    assert softmax.shifted(original, sums, moved, along, 1e-4)[1] == 0
    with pytest.raises(ValueError, match="no shift"):
        softmax.shifted(torch.cat([original, -original]), torch.cat([sums, sums]), rows, along, 1e-4)
