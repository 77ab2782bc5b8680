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
from langext.stages.regate import Regate
from langext.stages.rescale import Rescale
from langext.stages.tokenizer import ExtendTokenizer
from langext.stages.train import Train

AnyStage = Annotated[
    Filter | ExtendTokenizer | Extend | Train | Regate | Rescale | Merge | Evaluate | Export | Certify,
    Field(discriminator="uses"),
]


@dataclass(frozen=True)
class Input:
    """One input of a stage, which is an argument of its `run`."""

    kind: type[Artifact]
    required: bool


def reads(stage: Stage) -> dict[str, Input]:
    """Input name -> kind of artifact, read from the signature of `run`. `<kind> | None = None` marks an optional input."""
    run = type(stage).run  # type: ignore[attr-defined]
    hints = get_type_hints(run)
    inputs = {}
    for name, parameter in list(inspect.signature(run).parameters.items())[2:]:  # without self and ctx
        kinds = [k for k in (get_args(hints[name]) or (hints[name],)) if k is not type(None)]
        inputs[name] = Input(kinds[0], parameter.default is inspect.Parameter.empty)
    return inputs


def makes(stage: Stage) -> type[Artifact]:
    """The kind of artifact that a stage writes, read from the return type of `run`."""
    return get_type_hints(type(stage).run)["return"]  # type: ignore[attr-defined]
