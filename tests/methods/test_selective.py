"""Selective LoRA from the pipeline file to the export: blocks are switched off while training and dropped afterwards."""

import json

from bench import Bench, bits, evals, extend, train
from safetensors.torch import load_file


def test_blocks_that_do_not_pay_are_dropped_from_the_export(tmp_path, pico):
    penalties = [{"name": "ldifs", "weight": 0.2}, {"name": "l2sp", "weight": 0.01}]
    method = extend(name="selective_lora", rank=4, s_lr=1e-2, warmup_frac=0.1)
    stages = [method, train(steps=30, lr=5e-3, eval_every=30, penalties=penalties), {"uses": "export"}]
    run = Bench(tmp_path, pico).run("selective", "fra_Latn", ["eng_Latn"], stages)
    before, after = evals(run)
    assert before["weights"] == {"active_blocks": 21, "blocks": 21}
    active = after["weights"]["active_blocks"]
    assert 0 < active < 21 and bits(after, "fra_Latn") < bits(before, "fra_Latn")
    rows = [json.loads(line) for line in (run / "03-train" / "metrics.jsonl").read_text().splitlines()]
    trained = [row["losses"] for row in rows if row["kind"] == "train"]
    assert "sparsity" not in trained[0] and {"sparsity", "ldifs", "l2sp"} <= trained[-1].keys()
    base, exported = (load_file(folder / "model.safetensors") for folder in (pico, run / "04-export" / "checkpoint"))
    changed = {name for name in base if not base[name].equal(exported[name])}
    assert len(changed) == active and all("_proj" in name for name in changed)
