"""Stage merge: combines several extended models of one base into one model for all their languages."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from langext.artifacts import (
    JOB,
    BaseManifest,
    Corpus,
    Job,
    Manifest,
    Model,
    finished,
    read_as,
    read_base,
    sha256_file,
    write_json,
)
from langext.console import say
from langext.context import Context
from langext.errors import ConfigError
from langext.methods import Full
from langext.methods.base import Method
from langext.models import bases
from langext.stages.base import Stage
from langext.summaries import TrainSummary
from langext.weight_summaries import MergeSummary

if TYPE_CHECKING:
    import torch


class Merge(Stage):
    """Add what several runs have learnt to the base. Finish those runs first, then merge them in a separate pipeline."""

    uses: Literal["merge"]
    models: list[str] = Field(min_length=2)
    """Run folders, or stage folders inside them. All models must have the same base and the same vocabulary."""
    rule: Literal["task_arithmetic", "ties", "consensus"] = "ties"
    """How the changes are merged. task_arithmetic: their sum; ties: the largest changes, where they agree in sign; consensus:
    the sum, only for weights that at least two runs need."""
    keep: float = Field(0.2, gt=0, le=1)
    """ties: share of the changes of each run that is kept, the largest ones. Raise it to keep more, also small ones."""
    mask_lambda: float = Field(0.4, gt=0)
    """consensus: how large the change of a run must be, relative to the others, to count as needed. The paper: 0.2 to 0.6."""
    lines: bool = False
    """Scale by layer: alpha comes from the norms of the changes, beta is `scale`. https://arxiv.org/abs/2410.17146"""
    scale: float | Literal["auto"] = "auto"
    """Factor of the merged change. auto tries 0.1, 0.2, ... 1.0 (for ties to 1.5) on held-out text; languages count equally."""
    eval_bytes: int = Field(50_000, ge=1000)
    """Held-out bytes per language and domain that auto measures. More are more exact and take longer."""

    def identity(self) -> dict[str, Any]:
        """The deciding fields. A model is named by its fingerprint, so that moving its folder changes nothing."""
        models = [bases.extended(name) for name in self.models]
        prints = [model.manifest.fingerprint if model else name for model, name in zip(models, self.models, strict=True)]
        return super().identity() | {"models": prints}

    def outdated(self, manifest: Manifest) -> str:
        """Which model has been trained again since; else an empty string."""
        summary = manifest.summary_as(MergeSummary)
        return bases.made_again(self.models, summary.contents if summary else [])

    def methods(self, given: tuple[Method, ...]) -> tuple[Method, ...]:
        """The method of the merged model: full, or the common method of all models if that method changes shapes."""
        from langext.models.loading import read_record

        first = read_record(self._model(0)).method
        assert first is not None
        return (Full(name="full") if first.dense() else first,)

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """Raise ConfigError when the model to merge into is not an untouched base."""
        if given:
            raise ConfigError(f"the model that is merged into has {given[-1].name} already; pin inputs: {{model: base}}")

    def check(self, ctx: Context) -> None:
        """Raise ConfigError, naming the first model that does not fit the base, the languages or the other models."""
        from langext.models.loading import read_record

        if self.scale != "auto" and not 0 < self.scale <= 2:
            raise ConfigError(f"scale must be auto or in (0, 2] (got {self.scale:g})", at=("scale",))
        base = _base(self._model(0)).identity["base_model"]
        if base != ctx.base_model and Path(base).resolve() != Path(ctx.base_model).resolve():
            raise ConfigError(f"models: their base is {base}, this pipeline's base_model is {ctx.base_model}", at=("models",))
        records = [read_record(self._model(i)) for i in range(len(self.models))]
        weights = [_weights(self._model(i)) for i in range(len(self.models))]
        vocabularies = [sha256_file(r.tokenizer / "tokenizer.json") if r.tokenizer else None for r in records]
        for i, record in enumerate(records):
            name, at = self.models[i], ("models", i)
            if weights[i] != weights[0]:
                raise ConfigError(f"models: {name} has another base than {self.models[0]}", at=at)
            learnt = read_as(self._model(i).path / JOB, Job).language
            if learnt not in ctx.languages:
                raise ConfigError(
                    f"models: {name} has learnt {learnt}, which is neither language nor among original_languages", at=at
                )
            if vocabularies[i] != vocabularies[0]:
                raise ConfigError(f"models: {name} has another vocabulary than {self.models[0]}", at=at)
            if record.method is None or record.earlier or record.method.linear_parts() is None:
                what = record.method.name if record.method else "the base"
                raise ConfigError(
                    f"models: {name} ({what}) cannot be merged; stack neutral residues of several languages", at=at
                )
            if not record.method.dense() and record.method != records[0].method:
                raise ConfigError(f"models: {name} ({record.method.name}) has other shapes than {self.models[0]}", at=at)
            if record.method.dense() != records[0].method.dense():  # type: ignore[union-attr]
                raise ConfigError(f"models: {name} ({record.method.name}) has other shapes than {self.models[0]}", at=at)

    def run(self, ctx: Context, model: Model, corpus: Corpus) -> Model:
        """Write the merged delta, and curve.json with bits per byte and score for every scale that was tried."""
        import torch

        from langext.architectures import precision
        from langext.evaluation.bpb import Ruler, best
        from langext.methods import extended
        from langext.models import loading, merging
        from langext.models.layer_scaling import Lines

        models = [self._model(i) for i in range(len(self.models))]
        if _weights(models[0]) != _weights(model):
            raise ConfigError(f"models: they have another base than this run, {loading.read_record(model).base}")
        (method,) = self.methods(())
        origin, vectors, rows = _task_vectors(models, method)
        if self.rule == "ties":
            merged = merging.ties(vectors, self.keep)
        elif self.rule == "consensus":
            merged = merging.consensus(vectors, self.mask_lambda)
        else:
            merged = merging.task_arithmetic(vectors)
        alpha = merging.norm_ratio(vectors, merged) if self.lines else 0.0
        first = loading.read_record(models[0])
        config = loading.load_config(first.base)
        loading.write_record(ctx.out, loading.Record(first.base, method, first.tokenizer, padded=first.padded))

        def delta(scale: float) -> dict[str, torch.Tensor]:
            by = {n: Lines(alpha, scale).factor(method.layer(n, config), n) if self.lines else scale for n in merged}
            return origin | {name: origin[name] + by[name] * tensor for name, tensor in merged.items()} | rows

        curve: list[dict[str, Any]] = []
        scale = self.scale
        if scale == "auto":
            ruler = Ruler(ctx, corpus, self.eval_bytes)
            live = loading.load(
                Model(ctx.out), precision.here(self.runtime.gpus), "cuda" if self.runtime.gpus else "cpu", trained=False
            )
            base = ruler.measure(live.net, live.tokenizer)
            for value in [i / 10 for i in range(1, 16 if self.rule == "ties" else 11)]:
                extended.set_delta(live, delta(value))
                bits = ruler.measure(live.net, live.tokenizer)
                score = ruler.every(bits, base)
                curve.append({"scale": value, "bits_per_byte": bits, "score": score})
                say(f"  scale {value:.1f}: " + "  ".join(f"{n} {b:.4f}" for n, b in bits.items()) + f"  score {score:.4f}")
            scale = best(curve)["scale"]
            say(f"  scale {scale:.1f} is best of {len(curve)}")
        write_json(ctx.out / "curve.json", curve)
        loading.save_delta(ctx.out, delta(scale))
        ctx.report(
            MergeSummary(
                models=[str(m.path) for m in models], contents=[bases.content(m) for m in models], rule=self.rule,
                lines=self.lines, scale=scale,
                alpha=alpha if self.lines else None, curve=curve,
            )
        )  # fmt: skip
        return Model(ctx.out)

    def _model(self, i: int) -> Model:
        model = bases.extended(self.models[i]) if Path(self.models[i]).is_dir() else None
        if model is None:
            raise ConfigError(f"models: {self.models[i]}: no run folder with a trained model", at=("models", i))
        return model


def _base(model: Model) -> BaseManifest:
    """The manifest of the base in the run folder of a model."""
    manifest = read_base(model.path.parent)
    assert manifest is not None, "a run has a base"
    return manifest


def _weights(model: Model) -> dict[str, str]:
    """sha256 of the weight files of the base, by file name."""
    return {file.name: file.sha256 for file in _base(model).files if file.name.endswith(".safetensors")}


def _task_vectors(models: list[Model], method: Method) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """(initial weights, one task vector per model, mean of the new vocabulary rows), in float32.

    A task vector is the trained weights minus the initial weights, by name; it lacks those that did not change. The initial
    weights are those of the first model, and where the base has them all, only what changed. In another precision they are
    others: a training in bf16 began with a base that was rounded, which was not learnt.
    """
    import torch

    from langext.architectures import families, vocabulary
    from langext.methods import extended
    from langext.models import loading

    origins = dict[torch.dtype, dict[str, Any]]()
    vectors, rows = list[dict[str, Any]](), list[dict[str, Any]]()
    for model in models:
        began_in = _began_in(model)
        live = loading.load(model, began_in, trained=False)
        assert live.method is not None, "checked before"
        live.net.float()
        if began_in not in origins and method.dense():
            start = loading.load_base(loading.read_record(model).base, began_in).float()
            origins[began_in] = {name: p.detach() for name, p in start.named_parameters()}
        elif began_in not in origins:
            origins[began_in] = {name: p.detach().clone() for name, p in live.delta().items()}
        extended.load_delta(live, model.path / extended.DELTA)
        trained = {name: p.detach() for name, p in live.net.named_parameters()}
        if method.dense():
            folded = {name: tensor for layer in live.method.fold(live.net).layers() for name, tensor in layer.items()}
            trained = {name: p for name, p in trained.items() if not name.startswith(families.LAYERS)} | folded
        rows.append({name: t for name, t in trained.items() if name.endswith(vocabulary.NEW_ROWS)})
        origin = origins[began_in]
        changes = ((name, trained[name] - origin[name]) for name in origin if name in trained and name not in rows[-1])
        vectors.append({name: change for name, change in changes if change.any()})
    mean = {name: torch.stack([r[name] for r in rows]).mean(0) for name in rows[0]}
    first = next(iter(origins.values()))
    held = {name for vector in vectors for name in vector} if method.dense() else first.keys() - rows[0].keys()
    return {name: first[name] for name in held}, vectors, mean


def _began_in(model: Model) -> "torch.dtype":
    """The precision of the last training of a model."""
    from langext.architectures import precision

    trainings = (manifest.summary_as(TrainSummary) for path, manifest in finished(model.path.parent) if path <= model.path)
    began_in = [precision.DTYPES[training.precision] for training in trainings if training]
    return began_in[-1] if began_in else precision.WEIGHTS
