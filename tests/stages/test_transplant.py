"""What a run has learnt beside its frozen base, on a sibling of that base."""

import json

import pytest
import torch
from bench import Bench, extend, train
from cases import label, trained
from forks import langext
from run_folders import stage
from toy import make_llama, make_tokenizer

from langext.artifacts import Model
from langext.context import Context
from langext.errors import ConfigError
from langext.exports import modelcard
from langext.methods.residue import stacks
from langext.models import bases, loading
from langext.stages.transplant import Transplant

RESIDUES = {"name": "neutral_residues", "gate": "hard_sigmoid", "init": "lecun", "width": 16}
CALIBRATED = RESIDUES | {"gate": "threshold"}
MOVABLE = [
    RESIDUES,
    CALIBRATED,
    {"name": "adapter", "width": 16},
    {"name": "lora", "rank": 4},
    {"name": "expansion_blocks", "every": 2},
]


@pytest.fixture(scope="module")
def sibling(tmp_path_factory):
    """A base of the pico model's shapes and tokens, with other weights."""
    folder, tokenizer = tmp_path_factory.mktemp("sibling"), make_tokenizer()
    net = make_llama(len(tokenizer))
    torch.manual_seed(11)
    for parameter in net.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape).bfloat16()
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def context(out):
    out.mkdir()
    return Context(out, 17, "fra_Latn", ("eng_Latn",))


@torch.no_grad()
def logits(net):
    return net.eval()(input_ids=torch.arange(1, 41).view(2, 20)).logits


@pytest.mark.parametrize("settings", MOVABLE, ids=label)
def test_switched_off_the_sibling_computes_as_itself(tmp_path, pico, sibling, settings):
    given = trained(tmp_path / "run", pico, settings)
    base = bases.prepare(str(sibling), None, tmp_path / "on" / "base")
    made = Transplant(uses="transplant", donor=str(tmp_path / "run")).run(context(tmp_path / "on" / "01-transplant"), base)
    plain = logits(loading.load_base(sibling, torch.float32))
    live, there = loading.load(made, torch.float32), loading.load(given, torch.float32)
    assert all(torch.equal(tensor, there.delta()[name]) for name, tensor in live.delta().items())
    assert not torch.equal(logits(live.net), plain) and not torch.equal(logits(live.net), logits(there.net))
    with live.method.off(live.net):
        assert torch.equal(logits(live.net), plain)


def test_with_its_gates_shut_the_sibling_computes_as_itself(tmp_path, pico, sibling):
    trained(tmp_path / "run", pico, RESIDUES)
    base = bases.prepare(str(sibling), None, tmp_path / "on" / "base")
    ctx = context(tmp_path / "on" / "01-transplant")
    live = loading.load(Transplant(uses="transplant", donor=str(tmp_path / "run")).run(ctx, base), torch.float32)
    for block in stacks(live.net)[-1].values():
        block.router.weight.data.zero_()
    assert torch.equal(logits(live.net), logits(loading.load_base(sibling, torch.float32)))
    summary = ctx.summary[-1]
    assert summary.method == "neutral_residues" and summary.history.training.tokens == 100
    assert f"Trained on the base {pico.name} and put on {sibling.name}" in summary.history.afterwards[-1]


def test_the_card_tells_the_training_and_the_move(tmp_path, pico, sibling):
    trained(tmp_path / "run", pico, RESIDUES)
    base = bases.prepare(str(sibling), None, tmp_path / "on" / "base")
    root, ctx = tmp_path / "on", Context(tmp_path / "on" / "x", 17, "fra_Latn", ("eng_Latn",))
    ctx.out.mkdir()
    Transplant(uses="transplant", donor=str(tmp_path / "run")).run(ctx, base)
    folder = stage(root, 1, "transplant", "Model", {"model": "base"}, ctx.summary[-1])
    assert modelcard.history(Model(folder)) == ctx.summary[-1].history


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "full"}, "(full) has changed its base; only what learns beside a frozen one moves"),
        ({"name": "grow", "train": "all_mlp"}, "(grow) has changed its base"),
    ],
)
def test_what_has_changed_its_base_cannot_move(tmp_path, pico, settings, expected):
    trained(tmp_path / "run", pico, settings)
    with pytest.raises(ConfigError) as caught:
        Transplant(uses="transplant", donor=str(tmp_path / "run")).methods(())
    assert expected in str(caught.value)


def test_wrong_donors_bases_and_languages_are_refused_when_planning(tmp_path, pico, sibling):
    trained(tmp_path / "run", pico, RESIDUES)
    bench, move = Bench(tmp_path, sibling), {"uses": "transplant", "donor": str(tmp_path / "run")}
    assert "has learnt fra_Latn, and language is swh_Latn" in bench.refused("swh_Latn", ["eng_Latn"], [move])
    said = bench.refused("fra_Latn", ["eng_Latn"], [{**move, "donor": str(tmp_path / "nothing")}])
    assert "nothing: no run folder with a trained model" in said and "line " in said
    twice = [extend(**RESIDUES), move]
    assert "the model has neutral_residues already" in bench.refused("fra_Latn", ["eng_Latn"], twice)
    tokenizer = make_tokenizer()
    make_llama(len(tokenizer), intermediate_size=128).save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    said = bench.refused("fra_Latn", ["eng_Latn"], [move], base=tmp_path / "wide")
    assert f"donor: its base, {pico}, and base_model here are no siblings" in said
    assert said.splitlines()[1:] == ["  intermediate_size: 96 there, 128 here"]


def scores_of(folder):
    return json.loads((folder / "scores.json").read_text())


def test_the_command_measures_and_exports_and_does_nothing_twice(tmp_path, pico, sibling):
    measure = {"uses": "evaluate", "bpb_bytes": 2000, "kl_bytes": 2000, "continuation_items": 0, "samples": 0}
    base = {**measure, "name": "evaluate_base", "inputs": {"model": "base"}}
    run = Bench(tmp_path, pico).run("donor", "fra_Latn", ["eng_Latn"], [extend(**RESIDUES), train(steps=4), base, measure])
    command = ("transplant", run, "--onto", sibling, "--out", tmp_path / "moved")
    done = langext(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"filter: taken from {run}" in done.stdout and "learned: French, book" in done.stdout
    moved = tmp_path / "moved"
    assert scores_of(moved / "04-evaluate")["kl_to_base"]["eng_Latn"]["value"] > 0
    # the base that is measured is the sibling
    assert scores_of(moved / "03-evaluate_base")["bits_per_byte"] != scores_of(run / "04-evaluate_base")["bits_per_byte"]
    exported = json.loads((moved / "05-export" / "checkpoint" / "export.json").read_text())
    assert exported["loads_as"] == "Glm4MoeForCausalLM" and exported["greedy_equal"] == exported["texts"]
    again = langext(*command, "--redo", "export")
    assert again.returncode == 0 and "evaluate: done already" in again.stdout and "export: started" in again.stdout
    manifest = next(run.glob("*-train")) / "manifest.json"
    record = json.loads(manifest.read_text())
    record["files"][0]["sha256"] = "0" * 64  # as if it had learnt something else
    manifest.write_text(json.dumps(record))
    other = langext(*command)
    assert other.returncode == 2 and f"{run} has been trained again since" in other.stderr and "--redo" in other.stderr
    wide = langext("transplant", run, "--onto", tmp_path / "no-such", "--out", tmp_path / "x")
    assert wide.returncode == 2 and "no such file or folder" in wide.stderr
