"""Keys that come later do not make finished runs "another recipe"."""

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from run_folders import done

from langext.methods import AnyMethod
from langext.methods.penalties import AnyPenalty
from langext.pipeline import plan
from langext.pipeline.plan import Pipeline
from langext.spec import LATER, Spec
from langext.stages import AnyStage
from langext.stages.filter import Source
from langext.training.selection import ForgettingBudget

BEFORE = json.loads((Path(__file__).parent / "keys_of_identity.json").read_text())
"""Keys that runs have been made with. A new key is marked LATER instead; a new class is listed here once runs have used it."""


def members(union: Any) -> list[type[Spec]]:
    return list(get_args(get_args(union)[0]))


SPECS = [
    cls
    for cls in (*members(AnyStage), *members(AnyMethod), *members(AnyPenalty), Source, ForgettingBudget)
    if cls.__name__ in BEFORE
]


@pytest.mark.parametrize("cls", SPECS, ids=lambda cls: cls.__name__)
def test_a_new_key_is_marked(cls):
    new = {name for name, field in cls.model_fields.items() if LATER not in field.metadata} - set(BEFORE[cls.__name__])
    assert not new, f"mark these keys of {cls.__name__} with Annotated[..., LATER], or old runs count as another recipe: {new}"


class Old(Spec):
    """A stage's part as it was."""

    rank: int = 4


class New(Old):
    """The same, some time later."""

    dropout: Annotated[float, LATER] = 0.0
    targets: Annotated[list[str], LATER] = []


def test_a_later_key_counts_only_when_it_is_set():
    assert New().recipe() == Old().recipe() and New(rank=5).recipe() != Old().recipe()
    assert New(dropout=0.1).recipe() == {"rank": 4, "dropout": 0.1}

    class Holder(Spec):
        parts: list[New] = [New()]
        part: New = New(targets=["a"])

    assert Holder().recipe() == {"parts": [{"rank": 4}], "part": {"rank": 4, "targets": ["a"]}}


def test_a_manifest_from_before_a_key_still_counts_as_done(tmp_path, monkeypatch):
    """Stage filter as it is, finished; then with one key more, as another version of langext would have it."""
    spec = {"name": "x", "language": "fr", "base_model": "./m"}
    stage = {"uses": "filter", "sources": [{"language": "fr", "path": "a.txt"}]}
    pipeline = Pipeline(**spec, stages=[stage, {"uses": "extend", "method": {"name": "full"}}])
    steps = plan.plan(pipeline, tmp_path)
    done(steps[0])

    class Filter(type(steps[0].stage)):  # type: ignore[misc]
        min_words: Annotated[int, LATER] = 0

    def planned(**more: Any) -> list[plan.Step]:
        newer = [Filter.model_validate(stage | more), *pipeline.stages[1:]]
        return plan.plan(pipeline.model_copy(update={"stages": newer}), tmp_path)

    assert [step.state for step in planned()] == ["done", "to do"]
    assert [step.fingerprint for step in planned()] == [step.fingerprint for step in steps]
    assert planned(min_words=5)[0].state == "changed"
