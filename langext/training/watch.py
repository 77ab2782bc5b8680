"""Measures a model on held-out text during training: bits per byte, gates by layer, and distance to the base."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from langext import languages
from langext.console import say, told
from langext.context import Context
from langext.evaluation import bpb
from langext.evaluation.gate_stats import Observer
from langext.evaluation.kl import BaseKL
from langext.methods import layers
from langext.methods.gates import GATES
from langext.training.selection import Evaluation, SetEvaluation

if TYPE_CHECKING:
    from langext.methods.extended import LiveModel


class Watch:
    """The measurements that training makes every `eval_every` steps. Every process makes them, so that none runs ahead."""

    def __init__(
        self, ctx: Context, live: "LiveModel", tokenizer: Any, base: Callable[[], Any], probes: Mapping[str, list[str]]
    ):
        """`tokenizer` is the one of the model that the training starts from. `base` loads that model, and is called only for
        methods that cannot be switched off. `probes` are held-out passages by `<language>/<domain>`.
        """
        self.ctx, self.live, self.probes = ctx, live, probes
        original_texts = [text for name, texts in probes.items() if name.split("/")[0] != ctx.language for text in texts]
        self.kl = None
        if original_texts and live.method is not None:
            reversible = live.method.reversible
            with live.method.off(live.net) if reversible else nullcontext():
                self.kl = BaseKL(live.net if reversible else base(), tokenizer, original_texts, own_rows=live.had_rows)
        self.dead: list[int] = []

    def measure(self) -> Evaluation:
        """Measure bits per byte and gates of every probe, KL to the base, numbers about the weights, and dead layers."""
        live, method = self.live, self.live.method
        assert method is not None
        live.net.eval()
        sets: dict[str, SetEvaluation] = {}
        probes = self.probes.items()
        for name, texts in told("measuring on held-out text", probes) if self.ctx.rank == 0 else probes:
            observer = Observer(live)
            measured = bpb.measure(live.net, live.tokenizer, texts, observe=observer)
            sets[name] = SetEvaluation(bits_per_byte=measured.per_byte, **observer.figures())
        evaluation = Evaluation(
            sets=sets,
            weights=method.figures(live.net),
            kl_to_base=self.kl.measure(live.net) if self.kl is not None else None,
            dead_layers=self._dead(sets),
        )
        if self.ctx.rank == 0:
            self._say(evaluation)
        self.dead = evaluation.dead_layers or []
        return evaluation

    def _dead(self, sets: dict[str, SetEvaluation]) -> list[int] | None:
        """Layers whose gate is closed for every held-out token of the new language; no gradient can open such a gate again."""
        opened = [of.open for name, of in sets.items() if name.split("/")[0] == self.ctx.language and of.open is not None]
        if not opened:
            return None
        gated = layers.chosen(self.live.method.layers, self.live.net.config)  # type: ignore[union-attr]
        return [i for i in gated if all(shares[i] == 0 for shares in opened)]

    def _say(self, evaluation: Evaluation) -> None:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in evaluation.bits_per_byte.items())
        kl = f"  KL to the base {evaluation.kl_to_base:.4f} nats per token" if evaluation.kl_to_base is not None else ""
        weights = "".join(f"  {name.replace('_', ' ')} {value:g}" for name, value in evaluation.weights.items())
        say(f"  held-out bits per byte: {shown}{kl}{weights}")
        dead = evaluation.dead_layers or []
        if dead and dead != self.dead:  # warn once, not at every evaluation
            name, gate = languages.find(self.ctx.language).name, self.live.method.block_gate  # type: ignore[union-attr]
            fixed = gate is not None and GATES[gate].threshold
            advice = "Calibrate with a lower threshold." if fixed else "Use init lecun, a lower lr or a smaller alpha."
            say(
                f"  warning: the gates of layers {', '.join(map(str, dead))} are closed for all held-out {name}; nothing opens "
                f"them again. {advice}"
            )
