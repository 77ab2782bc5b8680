"""Stage regate: turns a model trained with the paper's ReLU gate into one that stock architectures can compute."""

from itertools import islice, zip_longest
from typing import Any, ClassVar, Literal

from pydantic import Field

from langext.artifacts import Corpus, Model
from langext.console import Progress, say
from langext.context import Context
from langext.errors import ConfigError
from langext.methods.base import Method
from langext.methods.gates import GATES, GateName
from langext.stages.base import Stage
from langext.weight_summaries import RegateSummary


class Regate(Stage):
    """Replace the ReLU gates in the blocks of the newest language by hard sigmoids, and measure what this costs."""

    needs_extension: ClassVar[bool] = True
    uses: Literal["regate"]
    steps: int = Field(60, ge=0)
    """Steps of distillation after the fit. The result is kept only if it is better on held-out text; 0 keeps the fit."""
    batch_sequences: int = Field(8, ge=1)
    """Sequences in one step; the languages take turns. More give a steadier step and take longer."""
    sequence_length: int = Field(512, ge=8)
    """Most tokens in a sequence."""
    lr: float = Field(5e-3, gt=0)
    """Size of the first step, as a share of the root mean square of a gate row."""
    eval_bytes: int = Field(50_000, ge=1000)
    """Held-out bytes per language and domain that measure the cost. More are more exact and take longer."""

    def methods(self, given: tuple[Method, ...]) -> tuple[Method, ...]:
        """The methods `given`, the newest of them with the new gate."""
        return (*given[:-1], *(_regated(method) for method in given[-1:]))

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """Raise ConfigError when the newest method has no gate that this stage can replace."""
        if _goal(given[-1]) is None:
            ways = ", ".join(f"{name} into {gate.regates_to}" for name, gate in GATES.items() if gate.regates_to)
            gate = given[-1].block_gate
            raise ConfigError(f"regate turns the gate {ways}; {given[-1].name} has {f'the gate {gate}' if gate else 'none'}")

    def run(self, ctx: Context, model: Model, corpus: Corpus) -> Model:
        """Write the delta with new gate rows and output matrices. Records bits per byte as trained, fitted and distilled."""
        from dataclasses import replace

        import torch

        from langext.architectures import precision
        from langext.evaluation.bpb import Ruler, best
        from langext.methods.residue import stacks
        from langext.models import loading, regating

        torch.manual_seed(ctx.seed)
        live = loading.load(model, precision.here(self.runtime.gpus), "cuda" if self.runtime.gpus else "cpu")
        ruler = Ruler(ctx, corpus, self.eval_bytes)
        rows = self._rows(ctx, corpus, live.tokenizer)
        cost = {"trained": ruler.measure(live.net, live.tokenizer)}
        goal = _goal(live.methods[-1])
        assert goal is not None, "refused when planning"
        blocks = list(stacks(live.net)[-1].values())
        regated = regating.start(live.net, blocks, goal, rows[: 8 * self.batch_sequences])
        regating.settle(regated, torch.bfloat16)
        cost["fitted"] = ruler.measure(live.net, live.tokenizer)
        fitted = [gate.row.detach().clone() for gate in regated]
        kls: list[float] = []
        if self.steps:
            size = self.batch_sequences
            batches = [[rows[(i * size + k) % len(rows)] for k in range(size)] for i in range(self.steps)]
            progress = Progress("distilling the gates", self.steps)
            for step, kl in enumerate(regating.distil(live.net, regated, batches, self.lr), 1):
                kls.append(kl)
                progress.at(step)
            regating.settle(regated, torch.bfloat16)
            cost["distilled"] = ruler.measure(live.net, live.tokenizer)
        ways = [{"how": how, "score": ruler.every(cost[how], cost["trained"])} for how in cost if how != "trained"]
        kept = best(ways)["how"]
        if kept == "fitted":
            for gate, row in zip(regated, fitted, strict=True):
                gate.row.data.copy_(row)
        record = loading.read_record(model)
        assert record.method is not None, "refused when planning"
        loading.save_delta(ctx.out, live.delta())
        loading.write_record(ctx.out, replace(record, method=_regated(record.method)))
        ctx.report(RegateSummary(bits_per_byte=cost, kept=kept, kl_per_token=kls))
        for name, before in cost["trained"].items():
            after = ", ".join(f"{how} {cost[how][name]:.4f}" for how in cost if how != "trained")
            say(f"  {name}: {before:.4f} bits per byte as trained, {after}")
        say(f"  the {kept} gates are kept")
        return Model(ctx.out)

    def _rows(self, ctx: Context, corpus: Corpus, tokenizer: Any) -> list[list[int]]:
        """Token ids of training documents, each cut to `sequence_length`. Languages take turns, and so do their sources.

        Starts again from the first document when the text ends. Raises ConfigError for a language without training text.
        """
        from langext.data import documents

        each = -(-max(self.steps, 8) * self.batch_sequences // len(ctx.languages))
        by_language = []
        for code in ctx.languages:
            sources = documents.sources(corpus, "train", code).values()
            texts = [list(islice((d["text"] for path in paths for d in documents.read(path)), each)) for paths in sources]
            if not any(texts):
                raise ConfigError(f"no training text of {code} to distil the gates with")
            turns = [text for turn in zip_longest(*texts) for text in turn if text is not None]
            rows = [row[: self.sequence_length] for row in documents.encode(tokenizer, turns[:each])]
            by_language.append([rows[i % len(rows)] for i in range(each)])
        return [row for turn in zip(*by_language, strict=True) for row in turn]


def _regated(method: Method) -> Method:
    return method.model_copy(update={"gate": _goal(method)})


def _goal(method: Method) -> GateName | None:
    """The gate that replaces the gate of the method; None when the method has no gate that can be replaced."""
    return GATES[method.block_gate].regates_to if method.block_gate else None
