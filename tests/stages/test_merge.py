"""What stage merge takes for learnt, and that what it writes can be loaded."""

import pytest
import torch
from cases import trained
from safetensors.torch import load_file
from toy import make_base, make_tokenizer

from langext.artifacts import Corpus
from langext.context import Context
from langext.models import bases, loading
from langext.stages.merge import Merge


def made(folder, base, models, **more):
    """The model that these are merged to."""
    record = bases.prepare(str(base), None, folder / "base")
    out = folder / "01-merge"
    out.mkdir()
    ctx = Context(out, 17, "fra_Latn", ("eng_Latn",), base_model=str(base))
    merge = Merge(uses="merge", models=[str(model.path) for model in models], scale=1.0, **more)
    merge.check(ctx)
    return merge.run(ctx, record, Corpus(folder / "none"))


def test_what_bf16_rounds_of_a_base_in_float32_was_not_learnt(tmp_path):
    tokenizer, base = make_tokenizer(), tmp_path / "pico"
    net = make_base("llama", len(tokenizer)).float()
    for parameter in net.parameters():  # numbers that bf16 has not
        parameter.data *= 1 + 0.01 * torch.rand(parameter.shape)
    net.save_pretrained(base)
    tokenizer.save_pretrained(base)
    name, models = "model.layers.1.mlp.up_proj.weight", []
    for number in range(2):
        models.append(trained(tmp_path / f"m{number}", base, {"name": "full"}))
        began = {n: p.detach().float() for n, p in loading.load_base(base, torch.bfloat16).named_parameters()}
        began[name][number] += 0.01  # one row is learnt
        loading.save_delta(models[-1].path, began)
    merged = load_file(made(tmp_path / "run", base, models, rule="ties", keep=1.0).path / "delta.safetensors")
    start = loading.load_base(base, torch.bfloat16).get_parameter(name).float()
    assert merged.keys() == {name}
    assert torch.allclose(merged[name] - start, torch.tensor([0.01, 0.01] + [0.0] * (len(start) - 2))[:, None], atol=1e-6)


@pytest.mark.parametrize("rule", ["ties", "task_arithmetic"])
def test_weights_that_no_run_has_changed_are_in_the_merged_model_too(tmp_path, pico, rule):
    models = [trained(tmp_path / f"m{number}", pico, {"name": "grow"}) for number in range(2)]
    for model in models:
        untrained = loading.load(model, torch.float32, trained=False).delta()
        learnt = load_file(model.path / "delta.safetensors")
        unchanged = sorted(learnt)[0]
        loading.save_delta(model.path, learnt | {unchanged: untrained[unchanged].clone()})
    assert loading.load(made(tmp_path / "run", pico, models, rule=rule), torch.float32).delta().keys() == learnt.keys()
