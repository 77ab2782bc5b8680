"""Stage rescale: after training, layers move back towards the base: early ones more than late ones (LiNeS), or some wholly."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from langext.architectures import families
from langext.artifacts import Corpus, Model, write_json
from langext.console import say
from langext.context import Context
from langext.errors import ConfigError
from langext.methods.base import Method
from langext.methods.layers import AnyLayers, numbers
from langext.spec import LATER
from langext.stages.base import Stage
from langext.weight_summaries import RescaleSummary

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from langext.models.layer_scaling import Factors

    Scaled = Callable[[Factors], dict[str, Tensor]]

GRID = [i / 10 for i in range(10, -1, -1)]


class Rescale(Stage):
    """Multiply the change of layer l of L by alpha + (1 - alpha) (l - 1) / (L - 1), https://arxiv.org/abs/2410.17146; or, with
    `revert`, by 0 in some layers, https://arxiv.org/abs/2606.00284.
    """

    needs_extension: ClassVar[bool] = True
    uses: Literal["rescale"]
    alpha: float | Literal["auto"] = Field("auto")
    """Factor of the first layer, from 0 (as in the base) to 1 (as trained). auto tries 1.0, 0.9, ... 0.0 on held-out text and
    takes the one with the highest 2 x learning + 1 x retention."""
    head: Literal["alpha", "last"] = "alpha"
    """Factor of an untied output head and the last norm: alpha, as in the code of the authors, or last: that of the last
    layer, 1."""
    eval_bytes: int = Field(50_000, ge=1000)
    """Held-out bytes per language and domain that auto measures. More are more exact and take longer."""
    revert: Annotated[AnyLayers, LATER] = None
    """Instead of alpha: layers in which everything becomes again what it was before the training: middle, all, a list of layer
    numbers from 0, or {top: n}, counted in the exported model. Embeddings, head and last norm stay as trained."""

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """Raise ConfigError when alpha is not in [0, 1], the method's change cannot be scaled, or there is no such layer."""
        if self.alpha != "auto" and not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha must be auto or in [0, 1] (got {self.alpha:g})", at=("alpha",))
        if given[-1].linear_parts() is None:
            raise ConfigError(f"{given[-1].name} adds a function instead of changing weights, so its layers cannot be rescaled")
        unused = sorted({"alpha", "head", "eval_bytes"} & self.model_fields_set) if self.revert is not None else []
        if unused:
            raise ConfigError(f"give revert or {unused[0]}, not both", at=(unused[0],))
        if config is not None:
            self._reverted(given[-1], config)

    def run(self, ctx: Context, model: Model, corpus: Corpus) -> Model:
        """Write the rescaled delta, and curve.json with bits per byte, learning, retention and score for every alpha tried."""
        import torch
        from safetensors.torch import load_file

        from langext.evaluation.bpb import best
        from langext.methods import extended
        from langext.models import loading
        from langext.models.layer_scaling import Lines, Reverted, rescaled

        record = loading.read_record(model)
        method = record.method
        assert method is not None, "refused when planning"
        delta = load_file(model.path / extended.DELTA)
        origin = {} if method.linear_parts() else loading.load(model, torch.float32, trained=False).delta()
        config = loading.load_config(record.base)

        def scaled(factors: "Factors") -> "dict[str, Tensor]":
            return rescaled(delta, origin, method, config, factors)

        curve: list[dict[str, Any]] = []
        alpha, layers = None if self.revert is not None else self.alpha, self._reverted(method, config)
        if alpha == "auto":
            curve = self._curve(ctx, model, corpus, scaled)
            alpha = best(curve)["alpha"]
            say(f"  alpha {alpha:.1f} is best of {len(curve)}")
        if alpha is None and not any((place := method.layer(name, config)) and place[0] in layers for name in delta):
            raise ConfigError("revert: nothing in these layers was trained")
        write_json(ctx.out / "curve.json", curve)
        loading.save_delta(ctx.out, scaled(Reverted(layers) if alpha is None else Lines(alpha, 1 - alpha, self.head)))
        loading.write_record(ctx.out, record)
        ctx.report(RescaleSummary(alpha=alpha, curve=curve, reverted=layers))
        return Model(ctx.out)

    def _reverted(self, method: Method, config: Any) -> list[int]:
        """The layers to revert, by their numbers in the exported model. Raises ConfigError when there is no such layer."""
        place = method.layer(f"{families.LAYERS}0.mlp", config)
        assert place is not None, "a parameter in a layer"
        return numbers(self.revert, place[1], "revert")

    def _curve(self, ctx: Context, model: Model, corpus: Corpus, scaled: "Scaled") -> list[dict[str, Any]]:
        """Bits per byte, learning, retention and score for every alpha of GRID; `scaled` makes the delta for its factors."""
        from langext.architectures import precision
        from langext.evaluation.bpb import Ruler
        from langext.methods import extended
        from langext.models import loading
        from langext.models.layer_scaling import Lines

        live = loading.load(model, precision.here(self.runtime.gpus), "cuda" if self.runtime.gpus else "cpu")
        ruler = Ruler(ctx, corpus, self.eval_bytes)

        def measure(alpha: float, beta: float) -> dict[str, float]:
            extended.set_delta(live, scaled(Lines(alpha, beta, self.head)))
            return ruler.measure(live.net, live.tokenizer)

        base, trained = measure(0.0, 0.0), measure(1.0, 0.0)
        curve: list[dict[str, Any]] = []
        for value in GRID:
            bits = trained if value == 1 else measure(value, 1 - value)
            learning, retention = ruler.new(bits, trained), ruler.original(bits, base)
            score = 2 * learning + retention
            curve.append({"alpha": value, "bits_per_byte": bits, "learning": learning, "retention": retention, "score": score})
            shown = "  ".join(f"{name} {b:.4f}" for name, b in bits.items())
            say(f"  alpha {value:.1f}: {shown}  score {score:.4f}")
        return curve
