"""Stage export: the trained model in a format that others load, verified."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from langext.artifacts import BASE, Checkpoint, Corpus, Model, Scores
from langext.console import say, warn
from langext.context import Context
from langext.exports import formats, targets, write
from langext.exports.gguf import check
from langext.methods.base import Method
from langext.spec import ConfigError
from langext.stages.base import Stage


class Export(Stage):
    """Write checkpoint/ and prove that it is the model that was trained."""

    needs_extension: ClassVar[bool] = True
    uses: Literal["export"]
    format: formats.Format = "auto"
    """native is a stock architecture of transformers; dense is the base's own, wider or deeper where need be; remote travels
    with its own code; gguf is for llama.cpp and Ollama; delta is what was learnt without the base, for langext; auto takes
    native where that is exact, else remote."""
    gguf: tuple[formats.Precision, ...] = Field(("bf16",), min_length=1)
    """Precisions of GGUF files, one file each: f32, f16, bf16, q8_0. Only for format gguf."""
    gguf_pre: str | None = None
    """What llama.cpp calls the base's pre-tokenizer, for tokenizers that langext does not recognise."""

    def choices(self) -> dict[str, Any]:
        """None: the format decides nothing of what a model learns."""
        return {}

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """The format can be exact."""
        targets.choose(config, given, self.format, self.gguf_pre)
        if len(set(self.gguf)) < len(self.gguf):
            raise ConfigError("a precision is named twice", at=("gguf",))
        unused = {"gguf", "gguf_pre"} & self.model_fields_set
        if unused and self.format != "gguf":
            raise ConfigError(f"{min(unused)} is for format gguf only, and the format is {self.format}", at=(min(unused),))

    def run(
        self, ctx: Context, model: Model, corpus: Corpus, scores: Scores | None = None, before: Scores | None = None
    ) -> Checkpoint:
        """Write checkpoint/ with export.json and a model card. `before` is pinned to the evaluation of the base."""
        import shutil

        from langext.exports import modelcard

        folder = ctx.out / "checkpoint"
        for left in ctx.out.glob("checkpoint*"):  # by an interrupted attempt: a finished one is never run again
            shutil.rmtree(left)
        if before == scores:
            before = None
        if scores and scores.manifest.inputs["model"].fingerprint != model.manifest.fingerprint:
            warn(
                f"{scores.path.name} measured another model than the one that is exported; its scores are left out of the card"
            )
            scores = None
        if before and before.manifest.inputs["model"].stage != BASE:
            warn(f"{before.path.name} did not measure the base; its scores are left out of the card")
            before = None
        card = modelcard.describe(model, ctx.languages, corpus, before, scores)
        texts = write.verification_texts(corpus, ctx.languages)
        record = write.write(model, folder, self.format, texts, card, formats.GGUF(self.gguf, self.gguf_pre))
        ctx.report(record)
        say(
            f"  {record.loads_as} ({record.format}): max |logit difference| {record.max_abs_difference:.1e}, "
            f"KL {record.kl_per_token_nats:.1e}, same top token {record.top1_agreement:.2%}, "
            f"same greedy text {record.greedy_equal}/{record.texts}"
        )
        for line in check.lines(record):
            say(line)
        return Checkpoint(ctx.out)
