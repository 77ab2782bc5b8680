"""The stages a pipeline may use. Adding one: write a file here and add its name to `AnyStage`."""

import inspect
from dataclasses import dataclass
from typing import Annotated, get_args, get_type_hints

from pydantic import Field

from langext.artifacts import Artifact
from langext.stages.base import Stage
from langext.stages.evaluate import Evaluate
from langext.stages.export import Export
from langext.stages.extend import Extend
from langext.stages.filter import Filter
from langext.stages.merge import Merge
from langext.stages.regate import Regate
from langext.stages.rescale import Rescale
from langext.stages.tokenizer import ExtendTokenizer
from langext.stages.train import Train

AnyStage = Annotated[
    Filter | ExtendTokenizer | Extend | Train | Regate | Rescale | Merge | Evaluate | Export, Field(discriminator="uses")
]


@dataclass(frozen=True)
class Input:
    """One argument of a stage's `run`."""

    kind: type[Artifact]
    required: bool


def reads(stage: Stage) -> dict[str, Input]:
    """Input name -> what it takes, from the signature of `run`. `<kind> | None = None` marks an optional input."""
    run = type(stage).run  # type: ignore[attr-defined]
    hints = get_type_hints(run)
    found = {}
    for name, parameter in list(inspect.signature(run).parameters.items())[2:]:
        kinds = [k for k in (get_args(hints[name]) or (hints[name],)) if k is not type(None)]
        found[name] = Input(kinds[0], parameter.default is inspect.Parameter.empty)
    return found


def makes(stage: Stage) -> type[Artifact]:
    """The artifact kind that a stage leaves behind."""
    return get_type_hints(type(stage).run)["return"]  # type: ignore[attr-defined]
