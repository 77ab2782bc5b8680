"""Layers that get the weights back that they had before training."""

import pytest
import torch
from cases import label, trained
from run_folders import stage

from langext.artifacts import Corpus, Model
from langext.context import Context
from langext.errors import ConfigError
from langext.exports import modelcard
from langext.models import loading
from langext.stages.rescale import Rescale


def reverted(tmp_path, model, layers):
    """The model with these layers reverted, and what the stage reports."""
    ctx = Context(tmp_path / "run" / "out", 17, "fra_Latn", ("eng_Latn",))
    ctx.out.mkdir()
    made = Rescale(uses="rescale", revert=layers).run(ctx, model, Corpus(tmp_path / "no text is read"))
    return loading.load(made, torch.float32), ctx.summary[-1]


@pytest.mark.parametrize(
    "settings", [{"name": "full"}, {"name": "full", "freeze": [0]}, {"name": "lora", "rank": 4}], ids=label
)
def test_reverted_layers_are_the_base_and_the_others_as_trained(tmp_path, pico, settings):
    model = trained(tmp_path / "run", pico, settings)
    live, summary = reverted(tmp_path, model, "middle")
    assert (summary.alpha, summary.reverted, summary.curve) == (None, [1], [])
    before = loading.load(model, torch.float32)

    def folded(model):
        return {name: p for part in model.method.fold(model.net).parts() for name, p in part.items()}

    now, then, base = folded(live), folded(before), dict(loading.load_base(pico, torch.float32).named_parameters())
    for name, tensor in now.items():
        assert torch.equal(tensor, (base if name.startswith("model.layers.1.") else then)[name]), name
    name = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(then[name], base[name])


def test_the_card_names_the_layers(tmp_path, pico):
    model = trained(tmp_path / "run", pico, {"name": "full"})
    _, summary = reverted(tmp_path, model, [0, 1])
    folder = stage(tmp_path / "run", 3, "rescale", "Model", {"model": "02-train"}, summary)
    done = modelcard.history(Model(folder)).afterwards
    assert done == ["Reverted to what they were before the training: the layers 0, 1, counted from 0"]


def test_layers_in_which_nothing_was_trained_are_refused(tmp_path, pico):
    model = trained(tmp_path / "run", pico, {"name": "lora", "rank": 4, "layers": [0]})
    with pytest.raises(ConfigError, match="revert: nothing in these layers was trained"):
        reverted(tmp_path, model, {"top": 2})
