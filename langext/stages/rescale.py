"""Stage rescale: LiNeS after training. Early layers move back towards the base, late layers keep what they learnt."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from langext.artifacts import Corpus, Model, write_json
from langext.console import say
from langext.context import Context
from langext.errors import ConfigError
from langext.methods.base import Method
from langext.stages.base import Stage
from langext.summaries import RescaleSummary

GRID = [i / 10 for i in range(10, -1, -1)]


class Rescale(Stage):
    """Multiply the change of layer l of L by alpha + (1 - alpha) (l - 1) / (L - 1). https://arxiv.org/abs/2410.17146"""

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

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """Raise ConfigError when alpha is not in [0, 1], or when the change of the method cannot be scaled."""
        if self.alpha != "auto" and not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha must be auto or in [0, 1] (got {self.alpha:g})", at=("alpha",))
        if given[-1].linear_parts() is None:
            raise ConfigError(f"{given[-1].name} adds a function instead of changing weights, so its layers cannot be rescaled")

    def run(self, ctx: Context, model: Model, corpus: Corpus) -> Model:
        """Write the rescaled delta, and curve.json with bits per byte, learning, retention and score for every alpha tried."""
        import torch
        from safetensors.torch import load_file

        from langext.evaluation.bpb import Ruler, best
        from langext.methods import extended
        from langext.models import loading
        from langext.models.layer_scaling import Lines, rescaled

        live = loading.load(model, torch.bfloat16, "cuda" if self.runtime.gpus else "cpu")
        method = live.method
        assert method is not None, "refused when planning"
        delta = load_file(model.path / extended.DELTA)
        origin = {} if method.linear_parts() else loading.load(model, torch.float32, trained=False).delta()
        config = loading.load_config(loading.read_record(model).base)

        def scaled(alpha: float, beta: float) -> dict[str, torch.Tensor]:
            return rescaled(delta, origin, method, config, Lines(alpha, beta, self.head))

        curve: list[dict[str, Any]] = []
        alpha = self.alpha
        if alpha == "auto":
            ruler = Ruler(ctx, corpus, self.eval_bytes)

            def measure(alpha: float, beta: float) -> dict[str, float]:
                extended.set_delta(live, scaled(alpha, beta))
                return ruler.measure(live.net, live.tokenizer)

            base, trained = measure(0.0, 0.0), measure(1.0, 0.0)
            for value in GRID:
                bits = trained if value == 1 else measure(value, 1 - value)
                learning, retention = ruler.new(bits, trained), ruler.original(bits, base)
                score = 2 * learning + retention
                curve.append(
                    {"alpha": value, "bits_per_byte": bits, "learning": learning, "retention": retention, "score": score}
                )
                shown = "  ".join(f"{name} {b:.4f}" for name, b in bits.items())
                say(f"  alpha {value:.1f}: {shown}  score {score:.4f}")
            alpha = best(curve)["alpha"]
            say(f"  alpha {alpha:.1f} is best of {len(curve)}")
        write_json(ctx.out / "curve.json", curve)
        loading.save_delta(ctx.out, scaled(alpha, 1 - alpha))
        loading.write_record(ctx.out, loading.read_record(model))
        ctx.report(RescaleSummary(alpha=alpha, curve=curve))
        return Model(ctx.out)
