"""Gates that are fitted on the base's own activations, and what they do before, during and after a training."""

import copy

import numpy as np
import pytest
import torch
from bench import Bench, extend, train
from forks import langext
from toy import make_base, make_tokenizer

from langext.architectures import families
from langext.artifacts import Corpus, Manifest, Model, read_as
from langext.cli import dial
from langext.context import Context
from langext.data import documents
from langext.errors import ConfigError
from langext.methods import NeutralResidues, extended
from langext.methods.calibrate import Calibrate
from langext.methods.residue import stacks
from langext.models import calibration, loading
from langext.models.calibration import Scores
from langext.report import page
from langext.stages import calibrating
from langext.stages.recalibrate import Recalibrate
from langext.summaries import ExtendSummary, RecalibrateSummary

GATE = {
    "name": "neutral_residues", "gate": "threshold", "init": "he", "width": 32,
    "calibrate": {"closed": 0.95, "original_tokens": 4000, "new_tokens": 3000, "min_open": 0.1},
}  # fmt: skip


def rows(count, low, high, seed):
    """Texts of two "languages" that use other token ids, of different lengths."""
    dice = np.random.default_rng(seed)
    return [[1, *dice.integers(low, high, dice.integers(5, 40)).tolist()] for _ in range(count)]


@pytest.fixture(scope="module")
def net():
    return make_base("llama", len(make_tokenizer())).float().eval()


@torch.no_grad()
def states(net, layer, texts, skip):
    """(N, D) inputs of one feed-forward network, one text at a time."""
    found = []
    handle = families.ffns(net)[layer].register_forward_pre_hook(lambda _, given: found.append(given[0][0, skip:].double()))
    for row in texts:
        net(input_ids=torch.tensor([row]))
    handle.remove()
    return torch.cat(found).numpy()


def test_rows_are_fishers_discriminant_that_leaves_the_start_token_where_it_is(net):
    original, new = rows(60, 10, 150, 1), rows(50, 100, 290, 2)
    fitted = calibration.fit(net, [0, 1], original, new)
    assert torch.equal(fitted, fitted.bfloat16().float())
    for layer in (0, 1):
        x_o, x_n = (states(net, layer, texts, skip=1) for texts in (original, new))
        spread = 0.9 * np.cov(x_o.T, bias=True) + 0.1 * np.cov(x_n.T, bias=True)
        spread += 1e-4 * spread.diagonal().mean() * np.eye(len(spread))
        w = np.linalg.solve(spread, x_n.mean(0) - x_o.mean(0))
        start = states(net, layer, [[1]], skip=0)[0] - x_o.mean(0)
        away = np.linalg.solve(spread, start)
        w -= away * (start @ w) / (start @ away)
        w /= np.sqrt(w @ spread @ w)
        np.testing.assert_allclose(fitted[layer].double().numpy(), w, rtol=2**-7, atol=2e-3 * abs(w).max())
        assert (x_n @ w).mean() > (x_o @ w).mean()


def test_scores_are_those_of_every_token_in_the_order_of_the_texts(net):
    texts = rows(9, 10, 290, 3)
    row_LD = torch.randn(1, net.config.hidden_size, generator=torch.Generator().manual_seed(0))
    found = calibration.score(net, [1], row_LD, texts)
    expected = states(net, 1, texts, skip=0) @ row_LD[0].double().numpy()
    np.testing.assert_allclose(found.z_LN[0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("closed", [0.5, 0.9, 0.99, 0.999])
def test_thresholds_close_all_gates_for_the_wanted_share_and_not_for_much_more(closed):
    scores = Scores(torch.randn(6, 5000, generator=torch.Generator().manual_seed(4)) * torch.tensor([[1, 9, 0.1, 3, 1, 1]]).T)
    t_L = calibration.thresholds(scores, closed)
    assert torch.equal(t_L, t_L.bfloat16().float())
    assert closed <= scores.closed(t_L) <= closed + 0.02
    quantiles = [(scores.z_LN[at] <= t_L[at]).float().mean().item() for at in range(6)]
    assert max(quantiles) - min(quantiles) < 0.02, "one quantile for all layers"


def test_thresholds_are_rounded_up_so_that_no_more_gates_open():
    scores = Scores(torch.tensor([[-1.001, -3.0, 2.0], [0.0, 1.0, 1.0009765625]]))
    assert scores.closed(calibration.thresholds(scores, 0.99)) == 1


def test_layers_that_separate_badly_are_left_out():
    dice = torch.Generator().manual_seed(5)
    original = Scores(torch.randn(3, 4000, generator=dice))
    new = Scores(torch.stack([torch.full((400,), 9.0), torch.randn(400, generator=dice), torch.full((400,), 4.0)]))
    assert calibration.separating(original, new, 0.99, 0.5) == [0, 2]
    assert calibration.separating(original, new, 0.99, 0.0) == [0, 1, 2]
    assert calibration.separating(original, Scores(torch.randn(3, 400, generator=dice)), 0.99, 0.5) == []


def test_one_layer_is_left_out_at_a_time():
    dice = torch.Generator().manual_seed(6)
    original, new = torch.randn(20, 4000, generator=dice), torch.randn(20, 1000, generator=dice) + 3
    kept = calibration.separating(Scores(original), Scores(new), 0.99, 0.5)
    shares = Scores(new).only(kept).open(calibration.thresholds(Scores(original).only(kept), 0.99))
    assert min(shares) >= 0.5 and len(kept) > 5
    worse = Scores(new).only(range(20)).open(calibration.thresholds(Scores(original), 0.99))
    assert sum(share >= 0.5 for share in worse) < len(kept), "without some layers the thresholds of the others are lower"


def test_the_start_token_scores_as_the_mean_original_token(net):
    """Also where it looks like the new language, and in another precision: an open gate there would reach every text."""
    original, new = rows(60, 10, 150, 7), rows(50, 100, 290, 8)
    row_LD = calibration.fit(net, [0, 1], original, new)
    for layer in (0, 1):
        z_o = states(net, layer, original, skip=1) @ row_LD[layer].double().numpy()
        z_start = states(net, layer, [[1]], skip=0) @ row_LD[layer].double().numpy()
        assert abs(z_start - z_o.mean()) < 0.1 * z_o.std()
    halved = copy.deepcopy(net).bfloat16()
    t_L = calibration.thresholds(calibration.score(net, [0, 1], row_LD, original), 0.9)
    assert (calibration.score(halved, [0, 1], row_LD, [[1]]).z_LN[:, 0] < t_L).all()


def test_every_source_gives_to_both_halves_of_a_calibration(tmp_path):
    from toy import ENGLISH, FRENCH, GERMAN, SWAHILI, write_jsonl
    from toy import documents as made

    corpus = Corpus(tmp_path)
    words = {"eng_Latn/a": ENGLISH, "eng_Latn/b": GERMAN, "fra_Latn/a": FRENCH, "fra_Latn/b": SWAHILI}
    for split in ("train", "valid"):
        for seed, (name, language) in enumerate(words.items()):
            path = tmp_path / "documents" / split / f"{name}.00000.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(path, made(language, 60, seed))
    ctx = Context(tmp_path, 17, "fra_Latn", ("eng_Latn",))
    live = extended.LiveModel(make_base("llama", len(make_tokenizer())), make_tokenizer())
    text = calibrating.pieces(ctx, corpus, live, Calibrate(closed=0.9, original_tokens=2000, new_tokens=2000))
    for half in (text.fit_original, text.tail_original, text.fit_new, text.tail_new):
        told = [set(live.tokenizer.decode(row).split()) for row in half]
        a, b = (
            words[name] for name in (list(words)[:2] if half in (text.fit_original, text.tail_original) else list(words)[2:])
        )
        assert any(len(seen & set(a)) > len(seen & set(b)) for seen in told)
        assert any(len(seen & set(b)) > len(seen & set(a)) for seen in told)
    assert not {tuple(row) for row in text.fit_original} & {tuple(row) for row in text.tail_original}
    few = calibrating.pieces(ctx, corpus, live, Calibrate(closed=0.9, original_tokens=100, new_tokens=100))
    needed = 2 * calibrating.SAMPLES_PER_WIDTH * live.net.config.hidden_size
    assert sum(map(len, few.fit_new + few.tail_new)) >= needed > 100, "a wide base gets as many as it needs"
    with pytest.raises(ConfigError, match=r"need 100,000: give more text \(also with protect\), or lower calibrate.closed"):
        calibrating.pieces(ctx, corpus, live, Calibrate(closed=0.9999))


@pytest.fixture(scope="module")
def bench(pico, tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("calibrated"), pico)


def summary(run, name, cls):
    found = read_as(next(run.glob(f"[0-9][0-9]-{name}")) / "manifest.json", Manifest).summary_as(cls)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def dialled(bench):
    """A run whose gates were calibrated, trained with, and turned."""
    turned = {"uses": "recalibrate", "closed": [0.99, 0.8], "max_kl": 0.0, "eval_bytes": 2000}
    return bench.run("dial", "fra_Latn", ["eng_Latn"], [extend(**GATE), train(original_frac=0.0), turned])


def test_gates_are_calibrated_kept_by_training_and_turned_by_the_dial(dialled):
    run = dialled
    gates = summary(run, "extend", ExtendSummary).gates
    assert gates is not None and gates.heldout.keys() == {"fra_Latn/book", "eng_Latn/book"}
    assert gates.heldout["eng_Latn/book"].all_closed > 0.85
    mean = {name: sum(found.open) / len(found.open) for name, found in gates.heldout.items()}
    assert mean["fra_Latn/book"] > 0.2 and mean["eng_Latn/book"] < 0.05
    before, after, turned = (
        loading.load(Model(next(run.glob(f"[0-9][0-9]-{name}"))), torch.float32) for name in ("extend", "train", "recalibrate")
    )
    assert sorted(stacks(after.net)[0]) == gates.layers
    for layer, block in stacks(after.net)[0].items():
        assert torch.equal(block.router.weight, stacks(before.net)[0][layer].router.weight)
        assert torch.equal(block.router.bias, stacks(before.net)[0][layer].router.bias)
        assert torch.equal(block.router.weight, stacks(turned.net)[0][layer].router.weight)
        assert torch.equal(block.down_proj.weight, stacks(turned.net)[0][layer].down_proj.weight)
        assert block.down_proj.weight.abs().sum() > 0
        assert block.router.bias > stacks(turned.net)[0][layer].router.bias, "0.99 is more cautious than 0.95"
    curve = summary(run, "recalibrate", RecalibrateSummary).curve
    assert [point.closed for point in curve] == [0.99, 0.8]
    html = page.build(run).read_text()
    assert 'id="dial"' in html and all(f'<th scope="row">{name}</th>' in html for name in gates.heldout)
    assert "gates ...." in page.headline(run, run)
    assert curve[0].drift < curve[1].drift and curve[0].all_closed["eng_Latn/book"] > curve[1].all_closed["eng_Latn/book"]


def test_the_dial_of_a_finished_run_is_turned_by_a_command(bench, dialled):
    """Also that of a model which is stacked on another one and has new tokens. Nothing of the run is made again."""
    kept = ["eng_Latn", "fra_Latn"]
    stages = [{"uses": "extend_tokenizer", "new_tokens": 20}, extend(**GATE), train(steps=4, eval_every=4, original_frac=0.0)]
    stacked = bench.run("stacked", "swh_Latn", kept, stages, base=dialled)
    out = bench.root / "turned"
    done = langext("dial", str(stacked), "--closed", "0.9", "--closed", "0.6", "--max-kl", "100", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: done already" in done.stdout and dial.pipeline(stacked, {"closed": [0.9], "max_kl": 1}, "auto")[1].name == (
        "stacked-dial-0.9-1"
    )
    assert len(dial.pipeline(out, {}, "auto")[0]) == 4  # turned again, it takes the place of the last one
    found = summary(out, "dial", RecalibrateSummary)
    assert [point.closed for point in found.curve] == [0.9, 0.6] and found.max_kl == 100
    best = max(found.curve, key=lambda point: point.gain)
    assert found.gates.closed == best.closed and "kept" in done.stdout
    assert (next(out.glob("[0-9][0-9]-export")) / "checkpoint" / "neutrality.json").is_file()


def test_settings_that_the_text_cannot_carry_are_left_out_of_the_dial(capsys):
    stage = Recalibrate(uses="recalibrate", closed=[0.9, 0.99, 0.999])
    assert stage._carried(1000) == [0.99, 0.9]
    assert "closed 0.999 is left out: it needs 10,000 original tokens, and there are 1,000" in capsys.readouterr().err


def test_tokens_with_closed_gates_are_computed_bit_by_bit_as_by_the_base(dialled):
    trained = loading.load(Model(next(dialled.glob("[0-9][0-9]-train"))), torch.float32)
    method = trained.method
    assert method is not None
    texts = documents.heldout(Corpus(next(dialled.glob("01-*"))), ["eng_Latn"])["eng_Latn/book"]
    same = total = 0
    for row in documents.encode(trained.tokenizer, texts[:20]):
        ids = torch.tensor([row])
        with torch.no_grad():
            got = trained.net(input_ids=ids).logits[0]
            opened = method.diagnostics(trained.net)["open"][:, 0].bool()
            with method.off(trained.net):
                base = trained.net(input_ids=ids).logits[0]
        untouched = ~(opened.any(0).cumsum(0) > 0)
        assert torch.equal(got[untouched], base[untouched])
        same, total = same + int(untouched.sum()), total + len(row)
    assert 100 < same < total


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (GATE | {"calibrate": {"closed": 0.9999}}, ["calibrate:", "of original language", "need 100,000", "also with protect"]),
        (GATE | {"calibrate": {"closed": 0.95, "min_open": 0.99}}, ["no layer of this base tells", "min_open is 0.99"]),
    ],
)
def test_too_little_text_and_languages_that_look_alike_are_said(bench, method, says):
    path = bench.file("poor", "fra_Latn", ["eng_Latn"], [extend(**method)])
    done = langext("run", str(path), "--out", str(bench.root / f"poor-{says[0][:3]}"))
    assert done.returncode in (2, 4), done.stdout
    assert all(part in done.stderr for part in says), done.stderr


def test_gates_without_text_and_a_dial_without_thresholds_are_refused_when_planning(bench):
    relu = {"name": "neutral_residues", "gate": "relu", "width": 32}
    with pytest.raises(ValueError, match="calibrate is for the gate threshold, not relu"):
        NeutralResidues.model_validate(relu | {"calibrate": {"closed": 0.9}})
    assert "neutral_residues has the gate relu" in bench.refused(
        "fra_Latn", ["eng_Latn"], [extend(**relu), train(), {"uses": "recalibrate"}]
    )
