"""Stage export: writes the trained model in a format that other programs load, and verifies it."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from langext.artifacts import BASE, Checkpoint, Corpus, Model, Scores
from langext.console import say, warn
from langext.context import Context
from langext.errors import ConfigError
from langext.exports import formats, targets, write
from langext.methods.base import Method
from langext.stages.base import Stage


class Export(Stage):
    """Write checkpoint/ and check that it computes the same as the trained model."""

    needs_extension: ClassVar[bool] = True
    uses: Literal["export"]
    format: formats.Format = "auto"
    """native is a stock architecture of transformers; dense is the architecture of the base, wider or deeper if needed; remote
    comes with its own code; gguf is for llama.cpp and Ollama; delta holds only what was learnt, without the base, for langext;
    auto takes native if that is exact, else remote."""
    gguf: tuple[formats.Precision, ...] = Field(("bf16",), min_length=1)
    """Precisions of GGUF files, one file each: f32, f16, bf16, q8_0. Only for format gguf."""
    gguf_pre: str | None = None
    """The name that llama.cpp uses for the pre-tokenizer of the base; needed if langext does not recognise the tokenizer."""

    def choices(self) -> dict[str, Any]:
        """Empty: the format does not change what a model learns."""
        return {}

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """Raise ConfigError when the format cannot represent the model exactly, or when a gguf key is wrong or unused."""
        targets.choose(config, given, self.format, self.gguf_pre)
        if len(set(self.gguf)) < len(self.gguf):
            raise ConfigError("a precision is named twice", at=("gguf",))
        unused = {"gguf", "gguf_pre"} & self.model_fields_set
        if unused and self.format != "gguf":
            raise ConfigError(f"{min(unused)} is for format gguf only, and the format is {self.format}", at=(min(unused),))

    def run(
        self, ctx: Context, model: Model, corpus: Corpus, scores: Scores | None = None, before: Scores | None = None
    ) -> Checkpoint:
        """Write checkpoint/ with export.json and a model card. `scores` measured this model, `before` measured the base."""
        import shutil

        from langext.exports import modelcard
        from langext.exports.gguf import check

        folder = ctx.out / "checkpoint"
        for left in ctx.out.glob("checkpoint*"):  # left by an interrupted attempt: a finished stage never runs again
            shutil.rmtree(left)
        # An input that is not pinned takes the newest scores, so `before` may be the same evaluation as `scores`.
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
