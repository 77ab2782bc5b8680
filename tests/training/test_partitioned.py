"""ZeRO 3 without small weights that stay whole, and what the start of a training leaves behind."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import calibrate
from forks import Fork
from run_folders import stage
from toy import make_base, make_tokenizer

from langext.architectures import families
from langext.artifacts import write_json
from langext.context import Runtime
from langext.errors import ConfigError
from langext.methods import NeutralResidues, SelectiveLora, extended
from langext.methods.penalties.base import MicroBatch
from langext.models import bases, loading
from langext.stages.train import Train
from langext.training import checkpoints, engine, setup
from langext.training.checkpoints import CheckpointRecord
from langext.training.engine_settings import EngineSettings
from langext.training.objective import Objective

ZERO3 = {
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def two_steps() -> None:
    """Train selective LoRA under ZeRO 3, and print what its penalty and its figures were."""
    engine.join_processes()
    torch.manual_seed(1)
    method = SelectiveLora(name="selective_lora", rank=2, warmup_frac=0.0, sparsity=1.0, s_lr=0.01)
    live = extended.build(make_base("llama", 320).float(), make_tokenizer(), method)
    live.freeze()
    settings = EngineSettings("zero3", ZERO3, 2, 1, 1.0, False, (0.9, 0.95), 0.0, None, (), Path("run/train"))
    objective, whole = Objective(live.net, method, {}), []
    objective.to = lambda *_: whole.append(True)  # all of it at once, which a device need not hold
    runner = engine.Engine(objective, live.net, settings, lambda name: method.peak_lr(name, 0.01))
    assert not whole
    ids, seen = torch.randint(0, 320, (2, 16)), []
    for step in range(2):
        micro_batch = MicroBatch(torch.zeros(2, 16, dtype=torch.bool), 0, 32, step / 2)
        loss, _, penalties = runner(ids, ids, torch.arange(16).expand(2, 16), micro_batch)
        seen.append(float(penalties["sparsity"]))
        runner.step(iter([loss]), 1.0)
    with runner.gathered():
        figures = method.figures(live.net)
    s = [float(value) for name, value in runner.masters().items() if name.endswith(".s")]
    print(json.dumps({"sparsity": seen, "figures": figures, "s": s}))


def test_selective_lora_reads_its_indicators_where_weights_are_shared_out(tmp_path):
    with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:
        code = Fork(two_steps, out, err, {"TMPDIR": str(tmp_path)}).wait()
    assert code == 0, (tmp_path / "err").read_text()[-3000:]
    found = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    blocks = found["figures"]["blocks"]
    assert found["figures"] == {"active_blocks": blocks, "blocks": blocks} and len(found["s"]) == blocks > 0
    # lambda mean |s|: all start at 0.15, and the cost alone pulls all of them down, by about s_lr in each step.
    assert abs(found["sparsity"][0] - 0.15) < 1e-6 and 0.13 < found["sparsity"][1] < 0.145
    assert all(0.12 < value < 0.14 for value in found["s"])
    assert {path.name for path in tmp_path.iterdir()} == {"out", "err"}  # the processes of a training meet without files


def test_gates_have_a_rate_of_their_own_and_do_not_decay():
    method = NeutralResidues(name="neutral_residues", gate="sigmoid", width=8, gate_lr_factor=5.0)
    live = extended.build(make_base("llama", 320), make_tokenizer(), method, num_new=4)
    found = engine.groups(live.net, method, lambda name: method.peak_lr(name, 0.01), weight_decay=0.1)
    name_of = {parameter: name for name, parameter in live.net.named_parameters()}
    named = {key: {name_of[parameter].split(".")[-2] for parameter in members} for key, members in found.items()}
    blocks = {"gate_proj", "up_proj", "down_proj"}
    assert named.pop((0.05, 0.0)) == {"router"} and len(found[0.05, 0.0]) == 4
    assert named.keys() == {(0.01, 0.1)} and blocks < named[0.01, 0.1]  # and the new rows


@pytest.mark.parametrize("ready", [True, False])
def test_gates_that_were_never_calibrated_are_not_trained_with(tmp_path, pico, ready):
    record = loading.read_record(bases.prepare(str(pico), None, tmp_path / "base"))
    method = NeutralResidues(name="neutral_residues", gate="threshold", width=8)
    live = extended.build(loading.load_base(record.base, torch.bfloat16), None, method)
    folder = stage(tmp_path, 1, "extend", "Model")
    loading.save_delta(folder, (calibrate(live) if ready else live).delta())
    model = loading.write_record(folder, loading.Record(record.base, method))
    settings = SimpleNamespace(runtime=SimpleNamespace(attention="auto"), check_length=lambda config: None)
    with nullcontext() if ready else pytest.raises(ConfigError, match="no gate of this model was ever calibrated"):
        setup._live(settings, model, torch.bfloat16, "cpu")


def test_what_was_measured_on_cpus_alone_is_used_there_alone():
    settings = SimpleNamespace(runtime=SimpleNamespace(activation_checkpointing=False, compile=False))
    changed = []
    for device in ("cpu", "cuda"):
        net = make_base("llama", 320)
        before = net.config._attn_implementation, families.ffns(net)[0].forward
        setup._install(settings, SimpleNamespace(net=net), torch.device(device))
        changed.append([before[0] != net.config._attn_implementation, before[1] != families.ffns(net)[0].forward])
    assert changed == [[True, True], [False, False]]


def test_auto_is_what_the_machine_computes_in_and_a_training_stays_in_what_it_began_with(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "on_first", lambda decide: decide())
    settings = Train(uses="train", steps=1, lr=1.0)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    assert settings.computes_in() == "fp32" and settings.model_copy(update={"precision": "bf16"}).computes_in() == "bf16"
    assert settings.model_copy(update={"runtime": Runtime(gpus=1)}).computes_in() == "bf16"
    assert setup._precision(settings, None) == "fp32" and not capsys.readouterr().err
    write_json(tmp_path / checkpoints.FILES, CheckpointRecord(world_size=1, layout="zero1-fp32-sums", files=[]))
    assert setup._precision(settings, tmp_path) == "bf16"
    assert "began in bf16" in capsys.readouterr().err
    write_json(tmp_path / checkpoints.FILES, CheckpointRecord(world_size=1, layout="zero1-fp32", files=[]))
    assert setup._precision(settings, tmp_path) == "fp32"
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    assert settings.computes_in() == "bf16" and setup._precision(settings, tmp_path) == "fp32"
