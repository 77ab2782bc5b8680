"""Stage export: the trained model as a Hugging Face folder that loads without langext, verified."""

from typing import Any, ClassVar, Literal

from langext import exports
from langext.artifacts import BASE, Checkpoint, Corpus, Model, Scores
from langext.console import say, warn
from langext.methods.base import Method
from langext.stage import Context, Stage


class Export(Stage):
    """Write checkpoint/ and prove that it is the model that was trained."""

    needs_extension: ClassVar[bool] = True
    uses: Literal["export"]
    format: Literal["auto", "native", "remote"] = "auto"
    """native is a stock architecture of transformers; remote travels with its own code; auto takes the best that is exact."""

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """The format can be exact."""
        exports.choose(config, given, self.format)

    def run(
        self, ctx: Context, model: Model, corpus: Corpus, scores: Scores | None = None, before: Scores | None = None
    ) -> Checkpoint:
        """Write checkpoint/ with export.json and a model card. `before` is pinned to the evaluation of the base."""
        import shutil

        folder = ctx.out / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted attempt: a finished one is never run again
        if before == scores:
            before = None
        if scores and scores.manifest["inputs"]["model"]["fingerprint"] != model.manifest["fingerprint"]:
            warn(
                f"{scores.path.name} measured another model than the one that is exported; its scores are left out of the card"
            )
            scores = None
        if before and before.manifest["inputs"]["model"]["stage"] != BASE:
            warn(f"{before.path.name} did not measure the base; its scores are left out of the card")
            before = None
        card = exports.describe(model, ctx.languages, corpus, before, scores)
        record = exports.write(model, folder, self.format, exports.verification_texts(corpus, ctx.languages), card)
        ctx.summary.update(record)
        say(
            f"  {record['class']} ({record['format']}): max |logit difference| {record['max_abs_difference']:.1e}, "
            f"KL {record['kl_per_token_nats']:.1e}, same top token {record['top1_agreement']:.2%}, "
            f"same greedy text {record['greedy_equal']}/{record['texts']}"
        )
        return Checkpoint(ctx.out)
