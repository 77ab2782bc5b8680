"""Stage regate: a model trained with the paper's ReLU gate becomes one that stock architectures compute."""

from itertools import islice, zip_longest
from typing import Any, ClassVar, Literal

from pydantic import Field

from langext.artifacts import Corpus, Model
from langext.console import Progress, say
from langext.context import Context
from langext.methods.base import Method
from langext.methods.gates import GATES, GateName
from langext.spec import ConfigError
from langext.stages.base import Stage
from langext.summaries import RegateSummary


class Regate(Stage):
    """Turn the ReLU gates of the newest language's blocks into hard sigmoids, and say what it costs."""

    needs_extension: ClassVar[bool] = True
    uses: Literal["regate"]
    steps: int = Field(60, ge=0)
    """Steps of distillation after the fit, kept when held-out text says that it is better; 0 leaves it at the fit."""
    batch_sequences: int = Field(8, ge=1)
    """Sequences of a step, the languages in turns."""
    sequence_length: int = Field(512, ge=8)
    """Tokens of a sequence at most."""
    lr: float = Field(5e-3, gt=0)
    """Size of the first step, as a share of a gate row's root mean square."""
    eval_bytes: int = Field(50_000, ge=1000)
    """Held-out bytes per language and domain that tell what it costs."""

    def methods(self, given: tuple[Method, ...]) -> tuple[Method, ...]:
        """The newest one, with the other gate."""
        return (*given[:-1], *(_regated(method) for method in given[-1:]))

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """There is a ReLU gate to turn."""
        if _goal(given[-1]) is None:
            ways = ", ".join(f"{name} into {gate.regates_to}" for name, gate in GATES.items() if gate.regates_to)
            gate = given[-1].block_gate
            raise ConfigError(f"regate turns the gate {ways}; {given[-1].name} has {f'the gate {gate}' if gate else 'none'}")

    def run(self, ctx: Context, model: Model, corpus: Corpus) -> Model:
        """Write the delta with new gate rows and output matrices. Bits per byte before, fitted and distilled are recorded."""
        from dataclasses import replace

        import torch

        from langext.evaluation.bpb import Ruler
        from langext.methods.residue import stacks
        from langext.models import loading, regating

        torch.manual_seed(ctx.seed)
        live = loading.load(model, torch.bfloat16, "cuda" if self.runtime.gpus else "cpu")
        ruler = Ruler(ctx, corpus, self.eval_bytes)
        rows = self._rows(ctx, corpus, live.tokenizer)
        cost = {"trained": ruler.measure(live.net, live.tokenizer)}
        goal = _goal(live.methods[-1])
        assert goal is not None, "refused when planning"
        blocks = list(stacks(live.net)[-1].values())
        regated = regating.start(live.net, blocks, goal, rows[: 8 * self.batch_sequences])
        regating.settle(regated, torch.bfloat16)
        cost["fitted"] = ruler.measure(live.net, live.tokenizer)
        kept, kls = "fitted", []
        if self.steps:
            fitted = [one.row.detach().clone() for one in regated]
            size = self.batch_sequences
            batches = [[rows[(i * size + k) % len(rows)] for k in range(size)] for i in range(self.steps)]
            progress = Progress("distilling the gates", self.steps)
            for step, kl in enumerate(regating.distil(live.net, regated, batches, self.lr), 1):
                kls.append(kl)
                progress.at(step)
            regating.settle(regated, torch.bfloat16)
            cost["distilled"] = ruler.measure(live.net, live.tokenizer)
            if ruler.every(cost["distilled"], cost["trained"]) > ruler.every(cost["fitted"], cost["trained"]):
                kept = "distilled"
            else:
                for one, row in zip(regated, fitted, strict=True):
                    one.row.data.copy_(row)
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
        """Token ids of training documents: the languages in turns, each one's sources in turns, from the start again where text
        ends. Raises ConfigError for a language without any.
        """
        from langext.data import documents

        each = -(-max(self.steps, 8) * self.batch_sequences // len(ctx.languages))
        found = []
        for code in ctx.languages:
            sources = documents.sources(corpus, "train", code).values()
            texts = [list(islice((d["text"] for path in paths for d in documents.read(path)), each)) for paths in sources]
            if not any(texts):
                raise ConfigError(f"no training text of {code} to distil the gates with")
            turns = [text for turn in zip_longest(*texts) for text in turn if text is not None]
            rows = [row[: self.sequence_length] for row in documents.encode(tokenizer, turns[:each])]
            found.append([rows[i % len(rows)] for i in range(each)])
        return [row for turn in zip(*found, strict=True) for row in turn]


def _regated(method: Method) -> Method:
    return method.model_copy(update={"gate": _goal(method)})


def _goal(method: Method) -> GateName | None:
    """The gate that the method's gate is turned into; None where there is none to turn."""
    return GATES[method.block_gate].regates_to if method.block_gate else None
