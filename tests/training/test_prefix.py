"""The layers below the first one that learns: nothing is kept of them for a backward pass, and their states can be read."""

import errno
import json
import os
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bench import Bench, extend, train
from forks import Fork
from legs import launch
from test_partitioned import ZERO3
from toy import FAMILIES, make_base, make_tokenizer

from langext.architectures import families, vocabulary
from langext.data.mixture import Mixture, Phase
from langext.data.tokens import TokenFile
from langext.errors import RunFailed
from langext.methods import Lora, NeutralResidues, extended
from langext.methods.penalties.base import MicroBatch
from langext.methods.penalties.ldifs import LDIFS
from langext.pipeline import estimate
from langext.stages.train import Train
from langext.training import engine, prefix, setup
from langext.training.engine_settings import EngineSettings
from langext.training.objective import Objective
from langext.training.settings import Settings

UPPER = {"name": "neutral_residues", "gate": "hard_sigmoid", "init": "lecun", "width": 24, "alpha": 0.1, "layers": {"top": 2}}


def upper(family="llama", **more):
    live = extended.build(make_base(family, 320, **more).float(), make_tokenizer(), NeutralResidues(**UPPER))
    for block in live.method.extensions(live.net):
        torch.nn.init.normal_(block.down_proj.weight, std=0.1)
    return live


def step(whole, live, states=None):
    """Losses and gradients of a step on packed sequences."""
    torch.manual_seed(3)
    ids = torch.randint(1, 300, (2, 17))
    positions = torch.stack([torch.arange(16), torch.arange(16) % 9])
    if states == "read":
        states = prefix.states_below(live.net, whole.first, ids[:, :-1], positions)
    live.net.zero_grad()
    micro_batch = MicroBatch(torch.tensor([True, False])[:, None].expand(-1, 16), 16, 32, 0.0)
    loss, losses, _ = whole(ids[:, :-1], ids[:, 1:].contiguous(), positions, micro_batch, states)
    loss.backward()
    return losses, {name: p.grad for name, p in live.net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_from_the_states_on_every_bit_is_the_same(family):
    live = upper(family)
    first = prefix.first_learning(live.net, live.trainable)
    assert first == live.net.config.num_hidden_layers - 2
    whole = Objective(live.net, live.method, {}, first)
    blocks = list(families.blocks(live.net))
    (losses, grads), (again, regrads) = step(whole, live), step(whole, live, "read")
    assert torch.equal(losses, again) and grads.keys() == regrads.keys() and len(grads) == 8
    assert all(torch.equal(grad, regrads[name]) and grad.any() for name, grad in grads.items())
    assert list(families.blocks(live.net)) == blocks


@pytest.mark.parametrize("how", ["plain", "installed", "checkpointed"])
def test_nothing_is_kept_for_a_backward_pass_below_the_first_layer_that_learns(how):
    live = upper()
    if how != "plain":
        runtime = SimpleNamespace(activation_checkpointing=how == "checkpointed", compile=False)
        setup._install(SimpleNamespace(runtime=runtime), live, torch.device("cpu"))
        live.net.train()
    whole, saved, entered = Objective(live.net, live.method, {}), [], []

    class Saved:
        """A tensor that is kept for the backward pass, for as long as this is."""

        def __init__(self, tensor):
            self.tensor = tensor
            saved.append(weakref.ref(self))

    def enter(_, inputs):
        entered.append((sum(one() is not None for one in saved), inputs[0].requires_grad))

    for block in families.blocks(live.net):
        block.register_forward_pre_hook(enter)

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda one: one.tensor):
        step(whole, live)
    assert entered[:3] == [(0, False)] * 3 and entered[3][1] and entered[3][0] > 0


def test_the_first_layer_that_learns():
    def first(method, family="llama", new=0):
        live = extended.build(make_base(family, 320).float(), make_tokenizer(), method, new)
        return prefix.first_learning(live.net, live.trainable)

    assert first(Lora(name="lora", rank=2, layers=[1, 3])) == 1
    assert first(NeutralResidues(**UPPER | {"layers": "all"})) == 0
    assert first(NeutralResidues(**UPPER), new=3) == 0
    net = make_base("llama", 320)
    assert prefix.first_learning(net, lambda name: True) == 0
    assert prefix.first_learning(net, lambda name: "layers.2." in name or name == "model.norm.weight") == 2
    assert prefix.first_learning(net, lambda name: False) == 4
    vocabulary.extend(net, 310, 5)  # of an earlier language: they do not learn, but are no part of the base
    assert prefix.first_learning(net, lambda name: "layers.2." in name) == 0


def test_settings_that_need_every_layer_in_every_step():
    plain = {"steps": 1, "lr": 1.0}
    config = make_base("llama", 320).config
    assert Settings(**plain).keeps_prefix(1, config) and not Settings(**plain).keeps_prefix(0, config)
    assert not Settings(**plain).keeps_prefix(4, config)  # the head alone learns
    assert not Settings(**plain, runtime={"prefix_cache": "off"}).keeps_prefix(1, config)
    assert not Settings(**plain, penalties=[LDIFS(name="ldifs")]).keeps_prefix(1, config)
    config.attention_dropout = 0.1
    assert not Settings(**plain).keeps_prefix(1, config)


def test_the_plan_says_what_disk_they_can_take():
    config, plain = make_base("llama", 320).config, {"uses": "train", "steps": 10, "lr": 1.0, "sequence_length": 64}
    numbers = estimate.size(config, [NeutralResidues(**UPPER)], 0)
    train = Train(**plain, batch_sequences=4, precision="bf16")
    assert numbers.first == 2 and estimate.training(config, numbers, train)["prefix"] == 10 * 4 * 64 * 64 * 2
    assert not estimate.training(config, estimate.size(config, [NeutralResidues(**UPPER)], 5), train)["prefix"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_is_not_whole_is_not_there(tmp_path, dtype):
    store, states = prefix.Store(tmp_path / "a", (4, 8), dtype), torch.randn(2, 4, 8).to(dtype)
    assert store.read(3) is None
    store.write(3, states[0])
    store.write(1, states[1].T.contiguous().T)
    assert torch.equal(store.read(3), states[0]) and torch.equal(store.read(1), states[1])
    assert store.read(0) is None and store.read(2) is None and store.read(9) is None
    assert torch.equal(prefix.Store(tmp_path / "a", (4, 8), dtype).read(3), states[0])
    rows = tmp_path / "a" / prefix.STATES
    with rows.open("r+b") as file:  # a byte in the middle of row 1
        file.seek(store.bytes + 5)
        file.write(b"\x77\x66")
    assert store.read(1) is None and store.read(3) is not None
    os.truncate(rows, 4 * store.bytes - 1)
    assert store.read(3) is None
    store.write(1, states[1])
    assert torch.equal(store.read(1), states[1])


def test_a_full_disk_is_told_and_a_row_cut_off_is_not_there(tmp_path, monkeypatch):
    store, write = prefix.Store(tmp_path / "a", (4, 8), torch.float32), os.pwrite

    def nearly_full(file, content, at):
        if at or len(content) < store.bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content[:50], at)

    monkeypatch.setattr(os, "pwrite", nearly_full)
    with pytest.raises(RunFailed, match="No space left on device; make room, or set runtime.prefix_cache: off"):
        store.write(0, torch.ones(4, 8))
    assert (tmp_path / "a" / prefix.STATES).stat().st_size == 50 and store.read(0) is None


def mixture(tmp_path, total):
    files = {"fra_Latn/book": TokenFile.write(tmp_path / "fr", [[1] * 1000])}  # 15 sequences of 64
    return Mixture(files, [Phase(total, {"fra_Latn/book": 1.0})], "fra_Latn", 64, 1)


def test_states_are_kept_where_they_will_be_read_and_there_is_room(tmp_path, monkeypatch, capsys):
    once, twice, folder = mixture(tmp_path, 15), mixture(tmp_path, 20), tmp_path / "states"
    assert not prefix.pays(once, folder, 2**20, 0.5, shared=False)
    assert not prefix.pays(once, folder, 2**20, 0.1, shared=True), "one layer of ten is not worth its disk"
    assert prefix.pays(once, folder, 2**26, 0.5, shared=True)
    assert prefix.pays(twice, folder, 2**26, 0.5, shared=False)
    store = prefix.Store(folder / "fra_Latn/book", (64, 8), torch.float32)
    for number in (0, 7):
        store.write(number, torch.zeros(64, 8))
    capsys.readouterr()
    assert prefix.pays(once, folder, 2**26, 0.5, shared=False)
    assert "up to 0.81 GiB of disk" in capsys.readouterr().out  # of 13 rows
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=12 * 2**26))
    assert not prefix.pays(once, folder, 2**26, 0.5, shared=True)
    assert "no room for 0.81 GiB" in capsys.readouterr().out


def two_steps() -> None:
    """Train under ZeRO 3 with and without states, with gates that are open for no token, and print what was learnt."""
    engine.join_processes()
    live = upper()
    for block in live.method.extensions(live.net):
        torch.nn.init.zeros_(block.router.weight)
    settings = EngineSettings("zero3", ZERO3, 2, 1, 1.0, False, (0.9, 0.95), 0.0, None, (), Path("run/train"))
    runner = engine.Engine(Objective(live.net, live.method, {}, 2), live.net, settings, lambda name: 0.01)
    torch.manual_seed(1)
    ids, positions, seen = torch.randint(0, 320, (2, 16)), torch.arange(16).expand(2, 16), []
    entered = []
    families.blocks(live.net)[2].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].requires_grad))
    for states in (None, "read", "read", None):
        if states:
            states = prefix.states_below(live.net, 2, ids, positions)
        micro_batch = MicroBatch(torch.zeros(2, 16, dtype=torch.bool), 0, 32, 0.0)
        loss, losses, _ = runner(ids, ids, positions, micro_batch, states)
        norm = runner.step(iter([loss]), 1.0)
        seen.append([float(losses.sum()), norm])
    print(json.dumps({"seen": seen, "entered": entered}))


def test_weights_that_are_shared_out_are_gathered_with_and_without_the_lower_layers(tmp_path):
    with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:
        code = Fork(two_steps, out, err, {"TMPDIR": str(tmp_path)}).wait()
    assert code == 0, (tmp_path / "err").read_text()[-3000:]
    found = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    assert all(row == [found["seen"][0][0], 0.0] for row in found["seen"]) and np.isfinite(found["seen"][0][0])
    assert found["entered"] == [False] * 4


@pytest.fixture(scope="module")
def legs(tmp_path_factory: pytest.TempPathFactory, pico: Path) -> Path:
    bench = Bench(tmp_path_factory.mktemp("prefix"), pico)
    two = UPPER | {"layers": {"top": 1}}
    run = bench.run("first", "fra_Latn", ["eng_Latn"], [extend(**two), train(steps=2, eval_every=2)])
    job = next(run.glob("*-train"))
    plain = {"steps": 24, "eval_every": 24, "eval_bytes": 1000, "log_every": 1, "sequence_length": 256, "original_frac": 0.1}
    off = {"prefix_cache": "off"}
    plan = [
        {"out": str(run / "off"), "runtime": off},
        {"out": str(run / "kept"), "stop_at": 13},
        {"out": str(run / "kept")},
        {"out": str(run / "other rate"), "stage": {"lr": 3e-3}},
    ]
    (run / "printed.txt").write_text(
        launch(run, [{"job": str(job)} | leg | {"stage": plain | leg.get("stage", {})} for leg in plan])
    )
    return run


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["losses"] for row in rows if row["kind"] == "train"]


def test_a_training_that_reads_states_has_the_same_losses_to_the_bit(legs):
    kept = losses(legs / "kept")
    assert max(json.loads((legs / "kept" / "summary.json").read_text())["epochs"].values()) > 1.1
    assert len(kept) == 24 and kept == losses(legs / "off")
    assert (legs / "kept" / "delta.safetensors").read_bytes() == (legs / "off" / "delta.safetensors").read_bytes()
    printed = (legs / "printed.txt").read_text()
    assert printed.count("computed once for each sequence (runtime.prefix_cache)") == 3
    assert "up to 0.00 GiB" in printed.rpartition("leg other rate")[2]  # all of it is there
    folders = {path.parent for path in legs.rglob(prefix.MARKS)}
    assert {folder.name for folder in folders} == {"book"} and len(folders) == 2
    assert all(prefix._written(folder) for folder in folders)
