"""The model card of an export: its README.md, and the licence files of the base.

The one rule: the card states only what is recorded, and says plainly what is not known or was not measured.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from langext import languages
from langext.artifacts import Corpus, Model, Scores, read_base, read_json
from langext.data import assets
from langext.evaluation import scores, significance
from langext.evaluation.scores import ScoresFile
from langext.export_summary import ExportSummary, PublicBase
from langext.methods.base import Method
from langext.methods.gates import GATES
from langext.models import base_files, loading
from langext.summaries import History, HistorySummary, RecalibrateSummary, Training, TrainSummary, TransplantSummary
from langext.text_summaries import ROLES, FilterSummary, FunnelRow
from langext.weight_summaries import MergeSummary, RegateSummary, RescaleSummary

LIBRARIES = {"gguf": "llama.cpp", "delta": "langext"}
"""Export format -> the library that loads it. All other formats are loaded by transformers."""

MARKUP = str.maketrans({"<": "&lt;", "|": "\\|", "[": "\\[", "`": "'"})
"""What could begin a tag, a cell, a link or an end of code in Markdown -> what shows as itself."""


@dataclass(frozen=True)
class Card:
    """What a model card says, apart from the results of the export itself (`ExportSummary`)."""

    languages: tuple[str, ...]
    """Language codes, the new language first."""
    base: str
    """The base's name for readers."""
    licence: str | None
    """The base's licence in words; None where it is not known."""
    licence_id: str | None
    """The hub's name for that licence; None where the hub has no single name for it."""
    public: PublicBase | None
    """Where the base is on the hub; None where it is not there."""
    base_public: bool
    """True if others can get the base, from the hub or as an asset of langext."""
    base_architecture: str
    method: Method
    history: History
    funnel: list[FunnelRow]
    base_scores: ScoresFile | None
    model_scores: ScoresFile | None

    @property
    def title(self) -> str:
        """The title of the model: the name of the base and the name of the new language."""
        return f"{self.base} + {languages.find(self.languages[0]).name}"


def write(out: Path, record: ExportSummary, card: Card) -> None:
    """Write README.md into `out`. Its head holds metadata that the hub reads."""
    env = Environment(
        loader=PackageLoader("langext", "exports"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        finalize=in_markdown,
    )
    named = [languages.find(code) for code in card.languages]
    metadata = ModelCardData(
        language=["code" if language.code == languages.ZXX else language.iso1 or language.iso3 for language in named],
        base_model=card.base if card.public else None,
        library_name=LIBRARIES.get(record.format, "transformers"),
        license=card.licence_id,
        tags=["langext", "language-extension"],
    )
    settings, gate = card.method.model_dump(mode="json"), card.method.block_gate
    text = env.get_template("modelcard.md.j2").render(
        card=card, record=record, named=named, settings=settings, metadata=Markup(metadata.to_yaml()), rows=_rows(card),
        fixed_gates=gate is not None and GATES[gate].threshold,
    )  # fmt: skip
    (out / "README.md").write_text(text, encoding="utf-8")


def in_markdown(value: Any) -> Any:
    """What a template of Markdown shows of a value: names from outside stay text, in lines, in cells and between backticks."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return " ".join(value.split("\n")).translate(MARKUP)


def _rows(card: Card) -> list[dict[str, str]]:
    """One table row for every figure that was measured of both the base and the model."""
    pair = card.base_scores, card.model_scores
    bits = sorted(significance.bits(*pair), key=lambda row: card.languages.index(row.name.split("/")[0]))
    named = [(f"{row.name}, bits per byte", row) for row in bits]
    roles = {name: ROLES[other.role] for name, other in card.model_scores.others.items()} if card.model_scores else {}
    named += [(f"{row.name} ({roles[row.name]}), bits per byte", row) for row in significance.others(*pair)]
    named += [(row.name, row) for row in significance.tasks(*pair)]
    return [
        {
            "name": name,
            "before": _plus_minus(row.before, row.before_stderr),
            "after": _plus_minus(row.after, row.after_stderr),
            "change": _change(row),
        }
        for name, row in named
    ]


def _plus_minus(value: float, stderr: float) -> str:
    return f"{value:.4f}" + (f" ± {stderr:.4f}" if isfinite(stderr) else "")


def _change(row: significance.Change) -> str:
    low, high = row.difference.low, row.difference.high
    return (f"{low:+.4f} to {high:+.4f}" if isfinite(low + high) else f"{row.difference.value:+.4f}") + f" ({row.verdict})"


def describe(
    model: Model, codes: Sequence[str], corpus: Corpus | None, base_scores: Scores | None, model_scores: Scores | None
) -> Card:
    """Collect what the card of a trained model in a run folder says. `codes` are its languages, the new one first."""
    recorded, manifest = loading.read_record(model), read_base(model.path.parent)
    assert recorded.method is not None and manifest is not None, "a trained model of a run"
    config, root = read_json(recorded.base / "config.json"), manifest.root
    asset = assets.ASSETS.get(root.removeprefix(assets.PREFIX)) if root.startswith(assets.PREFIX) else None
    stated: str | None = asset.licence if asset else licence(recorded.base)
    text = corpus.manifest.summary_as(FilterSummary) if corpus else None
    return Card(
        languages=tuple(codes),
        # The path of a private base's folder says something about the machine, so only its last part is shown.
        base=asset.about.split(",")[0] if asset else root if manifest.commit else Path(root).name,
        licence=stated,
        # An asset's licence may be a sentence; the hub refuses anything but one of its own names.
        licence_id=(stated.lower() if " " not in stated else None) if asset and stated else stated,
        public=PublicBase(hub=root, commit=manifest.commit) if manifest.commit else None,
        base_public=asset is not None or manifest.commit is not None,
        base_architecture=(config.get("architectures") or ["?"])[0],
        method=recorded.method,
        history=history(model),
        funnel=text.funnel if text else [],
        base_scores=scores.read(base_scores) if base_scores else None,
        model_scores=scores.read(model_scores) if model_scores else None,
    )


def licence(base: Path) -> str | None:
    """The value of `license` in the metadata of a model folder's README.md; None if there is none."""
    try:
        metadata: Any = metadata_load(base / "README.md")
    except (OSError, ValueError):  # no README.md, or its metadata cannot be read
        return None
    stated = metadata.get("license") if isinstance(metadata, dict) else None
    return stated if isinstance(stated, str) else None


def keep_licences(base: Path, out: Path) -> None:
    """Copy the base's licence and notice files beside the weights that they cover."""
    for path in base_files.licences(base):
        shutil.copyfile(path, out / path.name)


def history(model: Model) -> History:
    """Return what a model was trained on, and what was done to it after that, in words.

    Walks from the model's manifest back to the training (or merge, or delta) that it came from.
    """
    done: list[str] = []
    while True:
        manifest = model.manifest
        if recorded := manifest.summary_as(HistorySummary) or manifest.summary_as(TransplantSummary):
            return History(training=recorded.history.training, afterwards=[*recorded.history.afterwards, *done])
        if trained := manifest.summary_as(TrainSummary):
            training = Training(**{key: getattr(trained, key) for key in Training.model_fields})
            return History(training=training, afterwards=done)
        if merged := manifest.summary_as(MergeSummary):
            return History(training=None, afterwards=[_merged(merged), *done])
        if regated := manifest.summary_as(RegateSummary):
            before, after = regated.bits_per_byte["trained"], regated.bits_per_byte[regated.kept]
            costs = ", ".join(f"{name} {before[name]:.4f} to {after[name]:.4f}" for name in before)
            done.insert(0, f"Its gates were turned into ones that stock architectures have; bits per byte went from {costs}")
        if dialled := manifest.summary_as(RecalibrateSummary):
            done.insert(
                0, f"The thresholds of its gates were set to close all of them on {dialled.gates.closed:.1%} of original text"
            )
        if rescaled := manifest.summary_as(RescaleSummary):
            scaled = rescaled.alpha is not None and f"Rescaled layer by layer (LiNeS), alpha {rescaled.alpha:g}"
            numbers = ", ".join(map(str, rescaled.reverted))
            done.insert(0, scaled or f"Reverted to what they were before the training: the layers {numbers}, counted from 0")
        model = Model(model.path.parent / Path(manifest.inputs["model"].path).name)


def _merged(summary: MergeSummary) -> str:
    names = ", ".join(Path(name).name for name in summary.models)
    by_layer = ", by layer (LiNeS)" if summary.lines else ""
    return f"Merged from the runs {names} by {summary.rule}, scale {summary.scale:g}{by_layer}"
