"""Stage transplant: what a run has trained beside its frozen base is put on another base of the same shapes.

The one rule: with the extension switched off, the result computes what the new base computes.
"""

from pathlib import Path
from typing import Any, Literal

from langext.artifacts import JOB, Job, Manifest, Model, read_as, read_base
from langext.console import say
from langext.context import Context
from langext.errors import ConfigError, user_path
from langext.methods.base import Method
from langext.models import bases
from langext.stages.base import Stage
from langext.summaries import History, TransplantSummary


class Transplant(Stage):
    """Put the extension of another run on the base of this pipeline, which must be a sibling of that run's base."""

    uses: Literal["transplant"]
    donor: str
    """Folder of the run, or of one of its stages, whose trained model gives its extension. That run's base did not learn, and
    has the same shapes and tokens as `base_model` here: a base and its instruct model, for example."""

    def identity(self) -> dict[str, Any]:
        """The deciding fields. The donor is named by its fingerprint, so that moving its folder changes nothing."""
        model = bases.extended(self.donor)
        return super().identity() | ({"donor": model.manifest.fingerprint} if model else {})

    def outdated(self, manifest: Manifest) -> str:
        """That the donor has been trained again since; else an empty string."""
        summary = manifest.summary_as(TransplantSummary)
        return bases.made_again([self.donor], summary.contents if summary else [])

    def methods(self, given: tuple[Method, ...]) -> tuple[Method, ...]:
        """The method of the donor."""
        return (self._method(self._donor()),)

    def check(self, ctx: Context) -> None:
        """Raise ConfigError when the donor has learnt another language than that of the pipeline."""
        learnt = read_as(self._donor().path / JOB, Job).language
        if learnt != ctx.language:
            raise ConfigError(f"donor: {self.donor} has learnt {learnt}, and language is {ctx.language}", at=("donor",))

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """Raise ConfigError when the model is extended already, or when its config is not that of a sibling."""
        from langext.models import loading, siblings

        if given:
            raise ConfigError(f"the model has {given[-1].name} already; an extension is transplanted on an untouched base")
        if config is not None:
            base = loading.read_record(self._donor()).base
            self._refuse(base, siblings.of_configs(loading.load_config(base), config))

    def run(self, ctx: Context, model: Model) -> Model:
        """Write the donor's delta with the new base. Raises ConfigError when the two bases are no siblings."""
        from safetensors.torch import load_file

        from langext.exports import modelcard
        from langext.methods import extended
        from langext.models import loading, siblings

        donor, base = self._donor(), loading.read_record(model).base
        own = loading.read_record(donor).base
        self._refuse(own, siblings.differences(own, base))
        method = self._method(donor)
        loading.save_delta(ctx.out, load_file(donor.path / extended.DELTA))
        made = loading.write_record(ctx.out, loading.Record(base, method))
        loading.on_disk(made)  # opened once here, so that damaged weights do not first fail in a later stage
        names = [bases.plain_name(of.root) for path in (donor.path, ctx.out) if (of := read_base(path.parent))]
        history = modelcard.history(donor)
        if own != base:
            moved = f"Trained on the base {names[0]} and put on {names[1]}, which has the same shapes, without further training"
            history = History(training=history.training, afterwards=[*history.afterwards, moved])
        ctx.report(TransplantSummary(method=method.name, history=history, contents=[bases.content(donor)]))
        say(f"  {method.name}: from {names[0]} to {names[1]}")
        return made

    def _donor(self) -> Model:
        model = bases.extended(self.donor) if user_path(self.donor, "donor").is_dir() else None
        if model is None:
            raise ConfigError(f"donor: {self.donor}: no run folder with a trained model", at=("donor",))
        return model

    def _method(self, donor: Model) -> Method:
        """The method of the donor. Raises ConfigError when its extension cannot be taken from its base."""
        from langext.models.loading import read_record

        record, at = read_record(donor), ("donor",)
        assert record.method is not None, "a trained model"
        if record.earlier:
            codes = ", ".join(extension.language for extension in record.earlier)
            raise ConfigError(f"donor: {self.donor} is stacked on {codes}; only a run on a plain base can be a donor", at=at)
        if record.tokenizer:
            raise ConfigError(f"donor: {self.donor} has new tokens, whose rows belong to the embeddings of its own base", at=at)
        if not record.method.reversible:
            raise ConfigError(
                f"donor: {self.donor} ({record.method.name}) has changed its base; only what learns beside a frozen one moves",
                at=at,
            )
        return record.method

    def _refuse(self, base: Path, differences: list[str]) -> None:
        """Raise ConfigError when there are differences between the donor's base and this pipeline's."""
        if differences:
            lines = "".join(f"\n  {line}" for line in differences)
            raise ConfigError(f"donor: its base, {base}, and base_model here are no siblings:{lines}", at=("donor",))
