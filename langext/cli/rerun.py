"""Parts of a finished run as a pipeline again, for commands that make a small pipeline of one: dial and transplant."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langext.artifacts import Manifest
    from langext.pipeline.plan import Pipeline


def settings_of(manifest: "Manifest", *without: str) -> dict[str, Any]:
    """The settings of a finished stage as a file would give them: without defaults and the keys `without`."""
    from pydantic import TypeAdapter

    from langext.stages import AnyStage

    stage = TypeAdapter(AnyStage).validate_python(manifest.stage)
    return stage.model_dump(mode="json", exclude_defaults=True, exclude=set(without))


def plain_name(text: str) -> str:
    """The text as the name of a run: ASCII letters, digits and `._-`, at most 100."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip(".-")[:100] or "transplant"


def evaluation(manifests: "Sequence[Manifest]") -> dict[str, Any]:
    """The settings of the last evaluation of a run's model, without name and inputs; the defaults when there is none."""
    from langext.artifacts import BASE, Scores

    of_model = [m for m in manifests if m.kind == Scores.__name__ and m.inputs["model"].stage != BASE]
    return settings_of(of_model[-1], "name", "inputs") if of_model else {"uses": "evaluate"}


def certificate(manifests: "Sequence[Manifest]") -> dict[str, Any]:
    """The settings of the run's last certificate, without name and inputs; the defaults when there is none."""
    from langext.evaluation.certificate import Certificate

    measured = [manifest for manifest in manifests if manifest.summary_as(Certificate)]
    return settings_of(measured[-1], "name", "inputs") if measured else {"uses": "certify"}


def pipeline(spec: dict[str, Any]) -> "Pipeline":
    """The pipeline that a file with these values would be. Raises ConfigError for the first mistake in it."""
    from pydantic import ValidationError

    from langext.artifacts import first_problem
    from langext.errors import ConfigError
    from langext.pipeline.plan import Pipeline

    try:
        return Pipeline.model_validate(spec)
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from None
