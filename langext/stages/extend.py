"""Stage extend: adds the modules of a method, and rows for new tokens, to the base model.

The one rule: after this stage the model still computes the same as the base.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from langext.artifacts import Corpus, Model, Tokenizer
from langext.console import say
from langext.context import Context
from langext.errors import ConfigError
from langext.methods import AnyMethod
from langext.methods.base import Method
from langext.stages.base import Stage
from langext.summaries import CalibrationRecord, ExtendSummary

if TYPE_CHECKING:
    from langext.methods.calibrate import Calibrate
    from langext.methods.extended import LiveModel
    from langext.models.loading import Record
    from langext.stages.calibrating import Calibrated


class Extend(Stage):
    """Extend the base model with a method."""

    leaves_untrained: ClassVar[bool] = True
    uses: Literal["extend"]
    method: AnyMethod = Field()
    """How the model is extended: `name` chooses the method, the other keys belong to the method. A name alone takes the
    defaults of the method."""

    @field_validator("method", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def methods(self, given: tuple[Method, ...]) -> tuple[Method, ...]:
        """The methods `given`, and the method of this stage."""
        return (*given, self.method)

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """Raise ConfigError when the method does not fit the base, or cannot be added to a model that is already extended."""
        if given and not self.method.stackable:
            raise ConfigError(
                f"{self.method.name} cannot be added to a model that has {given[-1].name} already", at=("method",)
            )
        if config is not None:
            try:
                self.method.check(config)
            except ConfigError as error:
                raise ConfigError(str(error), at=("method", *error.at)) from None

    def needs(self, argument: str) -> bool | None:
        """The text is needed for gates that are calibrated, and else not read."""
        return self.method.calibration is not None if argument == "corpus" else None

    def run(self, ctx: Context, model: Model, tokenizer: Tokenizer | None = None, corpus: Corpus | None = None) -> Model:
        """Write the untrained weights that the base does not have. The rows of new tokens are those of stage extend_tokenizer.

        Gates with thresholds are calibrated on `corpus` first, which decides which layers get a block.
        """
        import torch

        from langext.models import loading

        torch.manual_seed(ctx.seed)
        record = loading.read_record(model)
        assert record.method is None, "refused when planning"
        added = loading.read_new_tokens(tokenizer).keys() if tokenizer else ()
        if not added:  # the vocabulary was left as it is
            tokenizer = None
        if tokenizer:
            record = replace(record, tokenizer=tokenizer.path / "tokenizer", padded=True)
        new = added or loading.new_tokens(model).keys()
        gates = told = None
        if corpus and self.method.calibration:
            gates, told = self._calibrated(ctx, corpus, _built(record, None, new, tokenizer), self.method.calibration)
        method = gates.placed(self.method) if gates else self.method
        loading.write_record(ctx.out, replace(record, method=method))
        live = _built(record, method, new, tokenizer)
        if gates:
            gates.put(live.net)
        delta = live.delta()
        loading.save_delta(ctx.out, {name: tensor for name, tensor in delta.items() if name not in live.base_names})
        learns = sum(p.numel() for p in live.learning().values())
        named = {name.replace(".base_layer.", "."): p for name, p in live.net.named_parameters()}  # so PEFT calls what it wraps
        num_base = sum(p.numel() for name, p in named.items() if name in live.base_names)
        ctx.report(
            ExtendSummary(
                method=method.name, base_parameters=num_base, trainable_parameters=learns, new_tokens=len(added),
                gates=told,
            )
        )  # fmt: skip
        say(f"  {method.name}: {learns / 1e6:.1f} M trainable parameters on a base of {num_base / 1e6:.1f} M")
        return Model(ctx.out)

    def _calibrated(
        self, ctx: Context, corpus: Corpus, live: "LiveModel", settings: "Calibrate"
    ) -> "tuple[Calibrated, CalibrationRecord]":
        """The gates of the blocks, fitted in the model that the blocks are going to be added to, and what they do."""
        from langext.architectures import precision
        from langext.methods import layers, residue
        from langext.stages import calibrating

        assert isinstance(self.method, residue.Parallel), "only their gates are calibrated"
        live.net.to("cuda" if self.runtime.gpus else "cpu")
        asked = layers.chosen(self.method.layers, live.net.config)
        text = calibrating.pieces(ctx, corpus, live, settings)
        with precision.float32(live.net):  # gates are finer than bf16
            found = calibrating.fitted(live.net, asked, text, settings)
            return found, calibrating.reported(ctx, live.net, found, text, settings.closed)


def _built(record: "Record", method: Method | None, new: Collection[int], tokenizer: Tokenizer | None) -> "LiveModel":
    """The base of a record with its earlier extensions, its new vocabulary rows, and the untrained modules of `method`."""
    import torch

    from langext.methods import extended
    from langext.models import loading

    exact = method is not None and method.copies and loading.stored(record.base) != torch.bfloat16
    net = loading.load_base(record.base, torch.float32 if exact else torch.bfloat16)
    vocabulary = loading.load_tokenizer(record.tokenizer or record.base)
    live = extended.build(net, vocabulary, method, new, record.earlier, padded=record.padded)
    if tokenizer:
        loading.fill(net, tokenizer)
    return live
