"""The base class of all stages. The one rule: a stage is a frozen configuration that can run itself."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from langext.artifacts import Manifest
from langext.context import Context, Runtime
from langext.spec import Spec

if TYPE_CHECKING:
    from langext.methods.base import Method


class Stage(Spec):
    """One stage of a pipeline. A subclass adds `uses: Literal["..."]`, its own fields, and

        def run(self, ctx: Context, <input>: <Artifact kind>, ...) -> <Artifact kind>

    This signature declares what the stage reads and makes; nothing else needs to be declared.
    """

    parallel: ClassVar[bool] = False
    """True when the stage can share its work among several processes."""
    spreads: ClassVar[bool] = False
    """True when `runtime.executor` can send the work of the stage to a cluster."""
    needs_extension: ClassVar[bool] = False
    """True when the stage is only possible for an extended model, not for the untouched base."""
    leaves_untrained: ClassVar[bool] = False
    """True when the model that the stage makes has learnt nothing yet."""
    salvages: ClassVar[bool] = False
    """True when the stage itself finds out which results of a failed attempt are still valid, even if its keys have changed."""

    name: str = Field("", pattern=r"^[A-Za-z0-9_-]*$", max_length=100)
    """Name of this stage in the pipeline; `uses` when not given."""
    inputs: dict[str, str] = {}
    """Input -> name of the stage that makes it. An input that is not named takes the newest earlier artifact of its kind."""
    runtime: Runtime = Runtime()
    """Where this stage runs and how fast; does not change its result."""

    def identity(self) -> dict[str, Any]:
        """The fields that decide what this stage makes. Its name, its wiring and where it runs are left out."""
        return {key: value for key, value in self.recipe().items() if key not in ("runtime", "name", "inputs")}

    def choices(self) -> dict[str, Any]:
        """The fields of `identity` that decide what a model learns. The comparison of runs shows these."""
        return {key: value for key, value in self.identity().items() if key != "uses"}

    def needs(self, argument: str) -> bool | None:
        """Whether this stage, with its settings, needs an optional input of `run`. None: it takes it where there is one."""
        return None

    def check(self, ctx: Context) -> None:
        """Raise ConfigError for every mistake that shows before anything runs, such as missing files or unknown tasks."""

    def check_model(self, given: "tuple[Method, ...]", config: Any) -> None:
        """Raise ConfigError when this stage cannot work on a model that is extended by the methods `given`.

        `config` is the configuration of the base; None when it is not known yet.
        """

    def methods(self, given: "tuple[Method, ...]") -> "tuple[Method, ...]":
        """The methods that extend the model that this stage makes. `given` are those of the model that it reads."""
        return given

    def prepare(self, ctx: Context, **inputs: Any) -> None:
        """Work that one process does before `run` starts in all processes. Gets the same inputs as `run`."""

    def tidy(self, out: Path) -> None:
        """Remove files in `out` that only an unfinished stage needs. Called after the manifest is written, never before."""

    def outdated(self, manifest: Manifest) -> str:
        """What has changed outside the run since the stage finished, for example a source file; else an empty string."""
        return ""

    def same_sources(self, manifest: Manifest, measured: Callable[[], Collection[str]] = tuple) -> bool:
        """True when this stage, if it ran now, would read the same files as the finished stage of `manifest` has read.

        `measured` gives the names of the lm-eval tasks that this run measures.
        """
        return not self.outdated(manifest)
