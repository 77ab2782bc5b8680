"""Stage certify: measures how far the trained model has moved from its base, and lays the certificate into the export."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from langext.artifacts import BASE, Artifact, Checkpoint, Corpus, Model, read_json
from langext.console import warn
from langext.context import Context
from langext.evaluation.certificate import KEPT_KL
from langext.stages.base import Stage


class Neutrality(Artifact):
    """`neutrality.json`, and `neutrality.jsonl` with the passages that were measured."""


class Certify(Stage):
    """Measure, token by token in float32, what the model does on text that it should not have touched.

    After a stage export that wrote a Hugging Face folder, the exported model is measured as stock transformers loads it, and
    the certificate is laid into that folder too, with a script that measures again and a section of the model card. Otherwise
    the trained model itself is measured.
    """

    needs_extension: ClassVar[bool] = True
    uses: Literal["certify"]
    bytes: int = Field(40_000, ge=1000)
    """Held-out bytes of each domain of every language but the new one. More give a smaller error and take longer."""
    continuations: int = Field(32, ge=0)
    """Most passages of each domain whose first half both models continue greedily; 0 skips it."""
    new_tokens: int = Field(32, ge=1)
    """Length of a continuation, in tokens."""
    batch: int = Field(4, ge=1)
    """Passages in one forward pass, the same for both models. More need more memory."""
    kept_kl: float = Field(KEPT_KL, gt=0)
    """The report calls an original language kept only up to this KL(base || model), in nats per token."""
    keep_text: bool = True
    """Write the passages beside the figures, so that others can measure again. Turn it off for text that is not yours to give
    away."""

    def choices(self) -> dict[str, Any]:
        """Empty: measuring does not change what a model learns."""
        return {}

    def run(self, ctx: Context, model: Model, corpus: Corpus, checkpoint: Checkpoint | None = None) -> Neutrality:
        """Write neutrality.json here, and into `checkpoint` what belongs to it."""
        from langext.evaluation.neutrality import Settings
        from langext.exports import certificates

        text = certificates.Text()
        certificates.heldout(text, corpus, ctx.language, ctx.original_languages)
        device = "cuda" if self.runtime.gpus else "cpu"
        if checkpoint and checkpoint.manifest.inputs["model"].fingerprint != model.manifest.fingerprint:
            warn(f"{checkpoint.path.name} holds another model than the one that is certified, and stays without a certificate")
            checkpoint = None
        folder = checkpoint.path / "checkpoint" if checkpoint else None
        if folder and not (folder / "config.json").is_file():  # GGUF files or a delta
            folder = None
        if folder:
            own_code = read_json(folder / "export.json")["format"] == "remote"  # written by this run, and compared
            pair = certificates.of_export(folder, Model(model.path.parent / BASE), device, trust=own_code)
        else:
            pair = certificates.of_live(model, None, device)
        settings = Settings(self.batch, self.continuations, self.new_tokens)
        found, passages = certificates.measure(pair, text, settings, self.bytes, self.kept_kl, device)
        found = found if self.keep_text else certificates.without_text(found)
        for place in (ctx.out, *([folder] if folder else [])):
            certificates.lay(place, found, passages if self.keep_text else None, export=place is folder)
        ctx.report(found)
        return Neutrality(ctx.out)
