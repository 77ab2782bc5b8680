"""The stages that a pipeline may use. To add one, write a file in this folder and add its class to `AnyStage`."""

import inspect
from dataclasses import dataclass
from typing import Annotated, get_args, get_type_hints

from pydantic import Field

from langext.artifacts import Artifact
from langext.stages.base import Stage
from langext.stages.certify import Certify
from langext.stages.evaluate import Evaluate
from langext.stages.export import Export
from langext.stages.extend import Extend
from langext.stages.filter import Filter
from langext.stages.merge import Merge
from langext.stages.recalibrate import Recalibrate
from langext.stages.regate import Regate
from langext.stages.rescale import Rescale
from langext.stages.tokenizer import ExtendTokenizer
from langext.stages.train import Train
from langext.stages.transplant import Transplant

AnyStage = Annotated[
    Filter
    | ExtendTokenizer
    | Extend
    | Train
    | Recalibrate
    | Regate
    | Rescale
    | Merge
    | Transplant
    | Evaluate
    | Export
    | Certify,
    Field(discriminator="uses"),
]


@dataclass(frozen=True)
class Input:
    """One input of a stage, which is an argument of its `run`."""

    kind: type[Artifact]
    required: bool


def reads(stage: Stage) -> dict[str, Input]:
    """Input name -> kind of artifact, read from the signature of `run`. `<kind> | None = None` marks an optional input.

    Optional inputs that the stage does not need with its settings are left out.
    """
    run = type(stage).run  # type: ignore[attr-defined]
    hints = get_type_hints(run)
    inputs = {}
    for name, parameter in list(inspect.signature(run).parameters.items())[2:]:  # without self and ctx
        kinds = [k for k in (get_args(hints[name]) or (hints[name],)) if k is not type(None)]
        needed = True if parameter.default is inspect.Parameter.empty else stage.needs(name)
        if needed is not False:
            inputs[name] = Input(kinds[0], bool(needed))
    return inputs


def makes(stage: Stage) -> type[Artifact]:
    """The kind of artifact that a stage writes, read from the return type of `run`."""
    return get_type_hints(type(stage).run)["return"]  # type: ignore[attr-defined]
