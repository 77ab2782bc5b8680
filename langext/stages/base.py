"""The Stage contract: a frozen config that knows how to run itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from langext.artifacts import Manifest
from langext.context import Context, Runtime
from langext.spec import Spec

if TYPE_CHECKING:
    from langext.methods.base import Method


class Stage(Spec):
    """Subclass it, add `uses: Literal["..."]`, your fields, and

        def run(self, ctx: Context, <input>: <Artifact kind>, ...) -> <Artifact kind>

    That signature is the wiring: there is nothing else to declare.
    """

    parallel: ClassVar[bool] = False
    """Can it share its work among several processes?"""
    needs_extension: ClassVar[bool] = False
    """Does it make no sense for a model that this pipeline has not extended?"""
    leaves_untrained: ClassVar[bool] = False
    """Is the model that it makes one that has learnt nothing yet?"""
    salvages: ClassVar[bool] = False
    """Does it know by itself what still holds of an attempt that failed, also under another recipe?"""

    name: str = Field("", pattern=r"^[A-Za-z0-9_-]*$")
    """How this stage is called in this pipeline; defaults to `uses`."""
    inputs: dict[str, str] = {}
    """Pin an input to a stage by name; otherwise the newest earlier artifact of its kind is used."""
    runtime: Runtime = Runtime()
    """Where and how fast this stage runs."""

    def identity(self) -> dict[str, Any]:
        """The fields that decide what this stage makes: how it is called and where it runs do not."""
        return {key: value for key, value in self.recipe().items() if key not in ("runtime", "name", "inputs")}

    def choices(self) -> dict[str, Any]:
        """Those of them that decide what a model learns; runs are compared by these."""
        return {key: value for key, value in self.identity().items() if key != "uses"}

    def check(self, ctx: Context) -> None:
        """Raise ConfigError for what can be seen to be wrong before anything runs: missing files, unknown tasks."""

    def check_model(self, given: "tuple[Method, ...]", config: Any) -> None:
        """Raise ConfigError for what cannot be done to a model of these methods. `config` is the base's, None when unknown."""

    def methods(self, given: "tuple[Method, ...]") -> "tuple[Method, ...]":
        """Methods of the extensions of the model that this stage makes, from those of the model that it reads."""
        return given

    def prepare(self, ctx: Context, **inputs: Any) -> None:
        """Work of a single process, done before the processes of `run` are started; called with the same inputs."""

    def tidy(self, out: Path) -> None:
        """Remove what only an unfinished stage needs. Called once the manifest is written, never before."""

    def outdated(self, manifest: Manifest) -> str:
        """What has changed outside since the stage finished (a source file, say), or an empty string."""
        return ""

    def same_sources(self, manifest: Manifest) -> bool:
        """Would this stage, done here and now, read the same files as the finished one has read?"""
        return not self.outdated(manifest)
