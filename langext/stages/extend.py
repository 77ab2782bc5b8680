"""Stage extend: adds the modules of a method, and rows for new tokens, to the base model.

The one rule: after this stage the model still computes the same as the base.
"""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from langext.artifacts import Model, Tokenizer
from langext.console import say
from langext.context import Context
from langext.errors import ConfigError
from langext.methods import AnyMethod
from langext.methods.base import Method
from langext.stages.base import Stage
from langext.summaries import ExtendSummary


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

    def run(self, ctx: Context, model: Model, tokenizer: Tokenizer | None = None) -> Model:
        """Write the untrained weights that the base does not have. The row of a new token is the mean of its base tokens."""
        import torch

        from langext.architectures import vocabulary
        from langext.methods import extended
        from langext.models import loading

        torch.manual_seed(ctx.seed)
        record = loading.read_record(model)
        assert record.method is None, "refused when planning"
        folder = tokenizer.path / "tokenizer" if tokenizer else record.tokenizer
        loading.write_record(ctx.out, replace(record, method=self.method, tokenizer=folder))
        net = loading.load_base(record.base, torch.bfloat16)
        num_base = net.num_parameters()
        spelt = loading.read_new_tokens(tokenizer) if tokenizer else {}
        num_new = len(spelt) or len(loading.new_tokens(model))
        live = extended.build(net, loading.load_tokenizer(folder or record.base), self.method, num_new, record.earlier)
        if spelt:
            vocabulary.fill(net, spelt)
        delta = live.delta()
        loading.save_delta(ctx.out, {name: tensor for name, tensor in delta.items() if name not in live.base_names})
        learns = sum(p.numel() for p in live.learning().values())
        ctx.report(
            ExtendSummary(method=self.method.name, base_parameters=num_base, trainable_parameters=learns, new_tokens=len(spelt))
        )
        say(f"  {self.method.name}: {learns / 1e6:.1f} M trainable parameters on a base of {num_base / 1e6:.1f} M")
        return Model(ctx.out)
