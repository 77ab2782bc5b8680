"""The pipelines of the methods differ only in what is to be compared."""

from pathlib import Path

from cases import NAMES

from langext.pipeline.plan import Pipeline
from langext.spec import load
from langext.stages.export import Export
from langext.stages.extend import Extend
from langext.stages.rescale import Rescale
from langext.stages.train import Train

ROOT = Path(__file__).parent.parent.parent
METHODS = sorted((ROOT / "pipelines" / "methods").glob("*.yaml"))


def test_there_is_one_pipeline_for_every_method():
    used = {stage.method.name for path in METHODS for stage in load(path, Pipeline).stages if isinstance(stage, Extend)}
    assert used == set(NAMES)
    assert {path.stem for path in METHODS} >= {*NAMES, "full_ldifs", "full_lines", "full_freeze", "full_revert"}


def test_they_share_data_budget_and_seed():
    def common(path):
        spec = load(path, Pipeline)
        kept = []
        for stage in spec.stages:
            said = stage.model_dump()
            if isinstance(stage, Extend):
                said.pop("method")
            if isinstance(stage, Train):
                said.pop("lr")
                said.pop("penalties")
                said.pop("original_frac")  # calibrated gates need no replay
            if isinstance(stage, Export):
                said.pop("format")
            if not isinstance(stage, Rescale):
                kept.append(said)
        return spec.model_dump(exclude={"name", "stages"}), kept

    assert len({path.stem for path in METHODS}) == len({load(path, Pipeline).name for path in METHODS})
    assert all(common(path) == common(METHODS[0]) for path in METHODS)
