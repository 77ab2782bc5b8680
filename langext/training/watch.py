"""What happens to a model on held-out text: bits per byte, its gates layer by layer, its distance to the base."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from langext import languages
from langext.console import say
from langext.context import Context
from langext.evaluation import bpb
from langext.evaluation.gate_stats import Observer
from langext.evaluation.kl import Drift
from langext.methods import layers

if TYPE_CHECKING:
    from langext.methods.extended import LiveModel


class Watch:
    """The measurements that training makes every so often. Every process makes them, so that all stay in step."""

    def __init__(
        self, ctx: Context, live: "LiveModel", tokenizer: Any, base: Callable[[], Any], probes: Mapping[str, list[str]]
    ):
        """`tokenizer` is the base's; `base` loads it, for methods that change its weights; `probes` are passages by
        `<language>/<domain>`.
        """
        self.ctx, self.live, self.probes = ctx, live, probes
        kept = [text for name, texts in probes.items() if name.split("/")[0] != ctx.language for text in texts]
        self.drift = None
        if kept and live.method is not None:
            reversible = live.method.reversible
            with live.method.off(live.net) if reversible else nullcontext():
                self.drift = Drift(live.net if reversible else base(), tokenizer, kept)
        self.dead: list[int] = []

    def measure(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """By probe: bits per byte, gates, open tokens. And for all: KL to the base, figures of the weights, dead layers."""
        live, method = self.live, self.live.method
        assert method is not None
        live.net.eval()
        figures: dict[str, Any] = {}
        for name, texts in self.probes.items():
            seen = Observer(live)
            figures[name] = {
                "bits_per_byte": bpb.measure(live.net, live.tokenizer, texts, observe=seen).per_byte,
                **seen.layers(),
            }
        more: dict[str, Any] = {"weights": method.figures(live.net)}
        if self.drift is not None:
            more["kl_to_base"] = self.drift.measure(live.net)
        dead = self._dead(figures)
        if dead is not None:
            more["dead_layers"] = dead
        if self.ctx.rank == 0:
            self._say(figures, more)
        self.dead = dead or []
        return figures, more

    def _dead(self, figures: dict[str, Any]) -> list[int] | None:
        """Layers whose gate is closed for every token of the new language: no gradient can open them again."""
        opened = [f["open"] for name, f in figures.items() if name.split("/")[0] == self.ctx.language and "open" in f]
        if not opened:
            return None
        gated = layers.chosen(self.live.method.layers, self.live.net.config)  # type: ignore[union-attr]
        return [i for i in gated if all(shares[i] == 0 for shares in opened)]

    def _say(self, figures: dict[str, Any], more: dict[str, Any]) -> None:
        shown = "  ".join(f"{name} {f['bits_per_byte']:.4f}" for name, f in figures.items())
        kl = f"  KL to the base {more['kl_to_base']:.4f} nats per token" if "kl_to_base" in more else ""
        weights = "".join(f"  {name.replace('_', ' ')} {value:g}" for name, value in more["weights"].items())
        say(f"  held-out bits per byte: {shown}{kl}{weights}")
        dead = more.get("dead_layers") or []
        if dead and dead != self.dead:
            name = languages.find(self.ctx.language).name
            say(
                f"  warning: the gates of layers {', '.join(map(str, dead))} are closed for all held-out {name}; nothing opens "
                "them again. Use init lecun, a lower lr or a smaller alpha."
            )
