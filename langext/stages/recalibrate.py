"""Stage recalibrate: the dial between cautious and eager, turned after the training. Thresholds move, nothing is trained."""

from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from langext.artifacts import Corpus, Model
from langext.console import say, warn
from langext.context import Context
from langext.errors import ConfigError, RunFailed
from langext.evaluation.certificate import KEPT_KL
from langext.methods.base import Method
from langext.stages.base import Stage
from langext.summaries import DialPoint, RecalibrateSummary

if TYPE_CHECKING:
    from langext.methods.extended import LiveModel
    from langext.models.loading import Reference
    from langext.stages.calibrating import Calibrated, Pieces

CURVE = [0.999, 0.995, 0.99, 0.98, 0.95, 0.9]


class Recalibrate(Stage):
    """Set the thresholds of calibrated gates anew, measure every setting of the dial, and keep the best within a budget."""

    needs_extension: ClassVar[bool] = True
    uses: Literal["recalibrate"]
    closed: list[float] = CURVE
    """Settings of the dial to measure: the share of original and protected tokens that have every gate closed."""
    max_kl: float = Field(KEPT_KL, ge=0)
    """Drift budget: the setting is kept that gains most in the new language with a KL(base || model) of at most this, in nats
    per token, on the held-out text of the original languages where it is largest. When none does, the one that drifts least is
    kept, with a warning. Text that is protected, or only measured, is in the curve and does not decide."""
    rows: Literal["keep", "fit"] = "keep"
    """keep: the rows stay those that training has seen. fit: they are fitted on this base, after a transplant."""
    eval_bytes: int = Field(20_000, ge=1000)
    """Held-out bytes per language and domain that every setting is measured on. More are more exact and take longer. They are
    taken from the end of the held-out text, where evaluation and certificate begin at its start: with enough of it, what
    chooses the setting is not what reports on it."""

    @field_validator("closed", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @field_validator("closed")
    @classmethod
    def _shares(cls, value: list[float]) -> list[float]:
        if not value or not all(0.5 <= share < 1 for share in value):
            raise ValueError(f"expected shares of at least 0.5 and below 1 (got {value!r:.60})")
        return sorted(set(value), reverse=True)

    def check(self, ctx: Context) -> None:
        """Raise ConfigError when there is no original language to measure the drift on."""
        if not ctx.original_languages:
            raise ConfigError("the dial is set by the drift on original_languages, and there are none")

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """Raise ConfigError when the gates of the newest method have no thresholds."""
        if given[-1].calibration is None:
            raise ConfigError(
                "recalibrate moves the thresholds of calibrated gates, those of neutral_residues with gate threshold; "
                f"{given[-1].name} has {f'the gate {given[-1].block_gate}' if given[-1].block_gate else 'no gates'}"
            )

    def run(self, ctx: Context, model: Model, corpus: Corpus) -> Model:
        """Write the delta with the chosen thresholds. Records the curve: gain, drift and closed share of every setting."""
        import torch
        from safetensors.torch import load_file

        from langext.architectures import precision
        from langext.methods import extended
        from langext.models import loading
        from langext.stages import calibrating

        live = loading.load(model, torch.bfloat16, "cuda" if self.runtime.gpus else "cpu")
        method = live.method
        assert method is not None and method.calibration is not None, "refused when planning"
        settings = method.calibration.model_copy(update={"closed": self.closed[-1]})  # what the least strict one needs
        text = calibrating.pieces(ctx, corpus, live, settings)
        dial = self._carried(sum(map(len, [*text.fit_original, *text.tail_original])))
        reference = loading.reference(model, live)
        with precision.float32(live.net, reference.net):  # gates and KL are finer than bf16
            with method.off(live.net):
                gates = self._settings(ctx, live, text, dial)
            base, curve = self._curve(ctx, corpus, live, reference, gates)
            kept = max(curve, key=lambda point: point.score)
            with method.off(live.net):
                record = calibrating.reported(ctx, live.net, gates[kept.closed], text, kept.closed)
        if not kept.drift <= self.max_kl:
            warn(f"no setting keeps the drift within {self.max_kl:g} nats per token; the one that drifts least is kept")
        gates[kept.closed].put(live.net)
        moved = {n: t.to("cpu", torch.bfloat16).contiguous() for n, t in live.delta().items() if method.constant(n)}
        loading.save_delta(ctx.out, load_file(model.path / extended.DELTA) | moved)
        loading.write_record(ctx.out, loading.read_record(model))
        ctx.report(RecalibrateSummary(base=base, curve=curve, max_kl=self.max_kl, gates=record))
        say(f"  closed {kept.closed:g} is kept of {len(curve)}")
        return Model(ctx.out)

    def _carried(self, tokens: int) -> list[float]:
        """The entries of `closed` for which there is text enough; the others are left out, with a warning."""
        from langext.stages.calibrating import tokens_for

        carried = [closed for closed in self.closed if tokens_for(closed) <= tokens]
        for closed in self.closed[: len(self.closed) - len(carried)]:
            warn(f"closed {closed:g} is left out: it needs {tokens_for(closed):,} original tokens, and there are {tokens:,}")
        return carried

    def _settings(self, ctx: Context, live: "LiveModel", text: "Pieces", dial: list[float]) -> "dict[float, Calibrated]":
        """The gates of each setting of the dial, with the blocks of `live` switched off."""
        import torch

        from langext.methods import residue
        from langext.models import calibration
        from langext.stages.calibrating import Calibrated

        blocks: dict[int, Any] = dict(residue.stacks(live.net)[-1])
        layers = sorted(blocks)
        if self.rows == "fit":
            row_LD = calibration.fit(live.net, layers, text.fit_original, text.fit_new)
        else:
            row_LD = torch.stack([blocks[layer].router.weight.detach()[0].float().cpu() for layer in layers])
        original = calibration.score(live.net, layers, row_LD, text.tail_original)
        if self.rows == "fit":  # with the rows of the training these are layers that were found to separate
            new = calibration.score(live.net, layers, row_LD, text.tail_new)
            least = live.method.calibration.min_open  # type: ignore[union-attr]
            good = calibration.separating(original, new, dial[-1], least)
            if bad := [str(layer) for at, layer in enumerate(layers) if at not in good]:
                warn(
                    f"the gates of layers {', '.join(bad)} open for less than {least:.0%} of {ctx.language} on this "
                    "base; they keep their blocks, and make the thresholds of the others higher"
                )
        return {closed: Calibrated(layers, row_LD, calibration.thresholds(original, closed), {}) for closed in dial}

    def _curve(
        self, ctx: Context, corpus: Corpus, live: "LiveModel", reference: "Reference", gates: "dict[float, Calibrated]"
    ) -> tuple[dict[str, float], list[DialPoint]]:
        """Bits per byte of the reference, and what every setting of the dial gives; `gates` has the gates of each."""
        from langext.data import documents
        from langext.evaluation import bpb
        from langext.evaluation.gate_stats import Observer
        from langext.evaluation.kl import BaseKL
        from langext.evaluation.significance import largest

        heldout = documents.heldout(corpus, corpus.languages("valid"))
        chosen = {name: bpb.passages(texts, 1000, self.eval_bytes, last=True) for name, texts in heldout.items()}
        for code in ctx.languages:
            if not any(name.startswith(f"{code}/") for name in chosen):
                raise ConfigError(f"no held-out text of {code} to measure the settings with")
        mine, net, tokenizer = f"{ctx.language}/", reference.net, reference.tokenizer
        with reference.as_itself():
            base = {name: bpb.measure(net, tokenizer, texts).per_byte for name, texts in chosen.items()}
            others = {name: BaseKL(net, tokenizer, texts) for name, texts in chosen.items() if not name.startswith(mine)}
        curve = []
        for closed, setting in gates.items():
            setting.put(live.net)
            bits, shares = {}, {}
            for name, texts in chosen.items():
                seen = Observer(live)
                bits[name] = bpb.measure(live.net, live.tokenizer, texts, observe=seen).per_byte
                shares[name] = seen.closed()
            kl = {name: base_kl.measure(live.net) for name, base_kl in others.items()}
            gain = _mean([1 - bits[name] / base[name] for name in bits if name.startswith(mine)])
            drift = largest([value for name, value in kl.items() if name.split("/")[0] in ctx.original_languages])
            score = gain if drift <= self.max_kl else -1e9 - drift
            curve.append(
                DialPoint(
                    closed=closed, bits_per_byte=bits, kl_to_base=kl, all_closed=shares, gain=gain, drift=drift, score=score
                )
            )
            say(f"  closed {closed:g}: {ctx.language} {gain:+.2%}, KL on the original languages {drift:.4f} nats per token")
        if not all(isfinite(point.gain) and isfinite(point.drift) for point in curve):
            raise RunFailed("bits per byte or KL are not finite numbers: the weights of this model overflow")
        return base, curve


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
