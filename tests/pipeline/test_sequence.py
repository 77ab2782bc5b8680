"""Languages one after another: neutral residues stacked on earlier ones, and models of several languages merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import Bench, bits, evals, extend, train
from safetensors.torch import load_file
from toy import make_llama, make_tokenizer

from langext.artifacts import Model
from langext.methods.residue import stacks
from langext.models import loading

RESIDUES = {"name": "neutral_residues", "gate": "hard_sigmoid", "init": "lecun", "width": 32, "alpha": 0.1}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, pico: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), pico)


@pytest.fixture(scope="module")
def stack(bench: Bench) -> list[Path]:
    """French, then Swahili on top of it with ldifs, then German on top of both, exported."""
    first = bench.run("french", "fra_Latn", ["eng_Latn"], [extend(**RESIDUES), train()])
    ldifs = train(penalties=[{"name": "ldifs", "weight": 0.2}])
    second = bench.run("swahili", "swh_Latn", ["eng_Latn", "fra_Latn"], [extend(**RESIDUES | {"width": 24}), ldifs], base=first)
    kept = ["eng_Latn", "fra_Latn", "swh_Latn"]
    third = bench.run("german", "deu_Latn", kept, [extend(**RESIDUES), train(), {"uses": "export"}], base=second)
    return [first, second, third]


def test_each_language_is_learnt_and_the_earlier_ones_are_byte_identical(stack: list[Path]):
    for run, code in zip(stack, ("fra_Latn", "swh_Latn", "deu_Latn"), strict=True):
        before, after = evals(run)[0], evals(run)[-1]
        assert bits(after, code) < 0.92 * bits(before, code)
        assert after["kl_to_base"] > 0 and before["kl_to_base"] == pytest.approx(0, abs=1e-5)
    deltas = [next(run.glob("*-train")) / "delta.safetensors" for run in stack]
    for later, k in ((stack[1], 0), (stack[2], 0), (stack[2], 1)):
        assert (later / "base" / f"earlier-{k}.safetensors").read_bytes() == deltas[k].read_bytes()
    live = loading.load(Model(deltas[2].parent), torch.bfloat16)
    weights = dict(live.net.named_parameters())
    for k, path in enumerate(deltas):
        for name, tensor in load_file(path).items():
            assert f".residues.{k}." in name and torch.equal(weights[name], tensor.bfloat16())
    widths = [[block.gate_proj.out_features for block in blocks.values()] for blocks in stacks(live.net)]
    assert widths == [[32] * 3, [24] * 3, [32] * 3]


def test_the_size_of_the_base_is_the_same_for_each_method(bench: Bench, stack: list[Path]):
    """Also where PEFT has put the base's maps into wrappers with other names."""
    low = bench.run("low", "fra_Latn", ["eng_Latn"], [extend(name="lora", rank=2)])
    found = [json.loads((next(run.glob("*-extend")) / "manifest.json").read_text())["summary"] for run in (low, stack[0])]
    assert found[0]["base_parameters"] == found[1]["base_parameters"] > found[0]["trainable_parameters"]


def test_a_new_language_starts_from_where_the_last_one_ended(stack: list[Path]):
    for earlier, later, codes in (
        (stack[0], stack[1], ["eng_Latn", "fra_Latn"]),
        (stack[1], stack[2], ["eng_Latn", "fra_Latn", "swh_Latn"]),
    ):
        ended, began = evals(earlier)[-1], evals(later)[0]
        for code in codes:
            assert bits(began, code) == pytest.approx(bits(ended, code), rel=1e-3)


def test_earlier_languages_are_original_for_the_penalties(stack: list[Path]):
    rows = [json.loads(line) for line in (next(stack[1].glob("*-train")) / "metrics.jsonl").read_text().splitlines()]
    trained = [row["losses"] for row in rows if row["kind"] == "train"]
    assert {"loss/eng_Latn", "loss/fra_Latn", "loss/swh_Latn", "local", "ldifs"} <= trained[-1].keys()
    assert trained[-1]["ldifs"] > 0 and trained[-1]["local"] > 0


def test_three_languages_export_to_a_stock_architecture(stack: list[Path]):
    record = json.loads((stack[2] / "04-export" / "checkpoint" / "export.json").read_text())
    assert record["loads_as"] == "Glm4MoeForCausalLM" and record["greedy_equal"] == record["texts"]
    config = json.loads((stack[2] / "04-export" / "checkpoint" / "config.json").read_text())
    assert (config["n_routed_experts"], config["num_experts_per_tok"]) == (6, 3)


def test_what_cannot_be_stacked_is_refused_when_planning(bench: Bench, stack: list[Path]):
    def refused(language: str, kept: list[str], *stages: dict[str, Any]) -> str:
        return bench.refused(language, kept, list(stages), base=stack[0])

    assert "has learnt fra_Latn, which must be kept too; add it" in refused("swh_Latn", ["eng_Latn"], extend(**RESIDUES))
    assert "has learnt fra_Latn already" in refused("fra_Latn", ["eng_Latn"], extend(**RESIDUES))
    kept = ["eng_Latn", "fra_Latn"]
    assert "lora cannot be added to a model that has neutral_residues" in refused("swh_Latn", kept, extend(name="lora"))
    twice = [extend(**RESIDUES), {**extend(name="adapter", width=8), "name": "again"}]
    said = refused("swh_Latn", kept, *twice)
    assert "a model is extended once in a pipeline" in said and "refused.yaml: line" in said
    assert "put an extend stage before train" in refused("swh_Latn", kept, train())


@pytest.fixture(scope="module")
def tuned(bench: Bench) -> list[Path]:
    """Two full fine-tunings of one base, the second rescaled by LiNeS, and a low-rank one."""
    full = [extend(name="full"), train(lr=2e-3)]
    first = bench.run("full-french", "fra_Latn", ["eng_Latn"], full)
    second = bench.run("full-swahili", "swh_Latn", ["eng_Latn"], [*full, {"uses": "rescale", "eval_bytes": 2000}])
    return [first, second]


def test_rescaling_records_the_whole_curve_and_takes_its_best(tuned: list[Path]):
    folder = tuned[1] / "04-rescale"
    curve = json.loads((folder / "curve.json").read_text())
    summary = json.loads((folder / "manifest.json").read_text())["summary"]
    assert [row["alpha"] for row in curve] == pytest.approx([i / 10 for i in range(10, -1, -1)])
    assert summary["alpha"] == max(curve, key=lambda row: row["score"])["alpha"]
    assert all(row["score"] == pytest.approx(2 * row["learning"] + row["retention"]) for row in curve)
    assert curve[0]["learning"] == 1.0
    originals = [row["bits_per_byte"]["eng_Latn/book"] for row in curve]
    assert len(set(originals)) == len(originals)
    trained, kept = (load_file(tuned[1] / f / "delta.safetensors") for f in ("03-train", "04-rescale"))
    base = dict(loading.load(Model(tuned[1] / "02-extend"), torch.float32).net.named_parameters())
    name = "model.layers.1.mlp.up_proj.weight"
    factor = summary["alpha"] + (1 - summary["alpha"]) * 1 / 2
    assert torch.allclose(kept[name] - base[name], factor * (trained[name] - base[name]), atol=1e-6)


@pytest.mark.parametrize("rule", [{"rule": "ties", "scale": "auto"}, {"rule": "task_arithmetic", "lines": True, "scale": 0.5}])
def test_merged_models_know_both_languages(bench: Bench, tuned: list[Path], rule: dict[str, Any]):
    merge = {"uses": "merge", "models": [str(run) for run in tuned], "eval_bytes": 2000, **rule}
    name = f"merged-{rule['rule']}"
    measure = {"uses": "evaluate", "bpb_bytes": 2000, "continuation_items": 0, "samples": 0}
    base = {**measure, "name": "evaluate_base", "inputs": {"model": "base"}}
    stages = [base, merge, measure, {"uses": "export", "inputs": {"before": "evaluate_base"}}]
    run = bench.run(name, "fra_Latn", ["eng_Latn", "swh_Latn"], stages)
    before, after = (json.loads((run / f / "scores.json").read_text()) for f in ("02-evaluate_base", "04-evaluate"))
    for code in ("fra_Latn", "swh_Latn"):
        assert after["bits_per_byte"][f"{code}/book"]["value"] < 0.97 * before["bits_per_byte"][f"{code}/book"]["value"]
    assert json.loads((run / "05-export" / "checkpoint" / "export.json").read_text())["loads_as"] == "LlamaForCausalLM"
    assert (run / "report.html").is_file()
    curve = json.loads((run / "03-merge" / "curve.json").read_text())
    assert len(curve) == (15 if rule["scale"] == "auto" else 0)


def test_what_cannot_be_merged_is_refused_when_planning(bench: Bench, stack: list[Path], tuned: list[Path], tmp_path: Path):
    def refused(*models: Any, **more: Any) -> str:
        merge = {"uses": "merge", "models": [str(m) for m in models], **more}
        return bench.refused("fra_Latn", ["eng_Latn", "swh_Latn"], [merge])

    assert "(neutral_residues) cannot be merged" in refused(tuned[0], stack[0])
    assert "no run folder with a trained model" in refused(tuned[0], tmp_path / "nowhere")
    assert "scale must be auto or in (0, 2]" in refused(*tuned, scale=3.0)
    assert "refused.yaml: line" in refused(tuned[0], tmp_path / "nowhere")
    other, tokenizer = tmp_path / "other", make_tokenizer()
    make_llama(len(tokenizer), tied=False).save_pretrained(other)
    tokenizer.save_pretrained(other)
    foreign = bench.run("foreign", "swh_Latn", ["eng_Latn"], [extend(name="full"), train(steps=2, eval_every=2)], base=other)
    assert "has another base than" in refused(tuned[0], foreign)
    assert "this pipeline's base_model is" in refused(foreign, foreign)
    words = [{"uses": "extend_tokenizer", "new_tokens": 20, "min_count": 2}, extend(name="full"), train(steps=2, eval_every=2)]
    assert "has another vocabulary than" in refused(tuned[0], bench.run("words", "swh_Latn", ["eng_Latn"], words))
