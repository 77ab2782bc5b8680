"""From an extended model to a folder that anybody can serve: write, reload in a fresh process, compare, describe."""

import os
import shutil
from pathlib import Path
from typing import Any

from langext import assets
from langext.artifacts import Checkpoint, Corpus, Model, read_json, write_json
from langext.spec import ConfigError

FORMATS = ("auto", "native", "remote")


def choose(config: Any, method: Any, form: str) -> str:
    """The format to write. Raises ConfigError with the reason when it cannot be exact, and names what can.

    `config` is the base's transformers config, or None while it is not on this machine.
    """
    if form not in FORMATS:
        raise ConfigError(f"export format {form!r} is not known; choose {', '.join(FORMATS)}")
    reasons = {f: _obstacle(config, method, f) for f in FORMATS[1:]}
    possible = [f for f in FORMATS[1:] if not reasons[f]]
    if form == "auto":
        form = possible[0] if possible else "native"
    if reasons[form]:
        raise ConfigError(f"format {form!r}: {reasons[form]}; possible: {', '.join(possible) or 'none'}")
    return form


def _obstacle(config: Any, method: Any, form: str) -> str:
    """Why a format cannot be exact here, or an empty string."""
    gate = getattr(method, "gate", None)
    if form == "remote":
        return "" if gate else f"{method.name} needs no code of its own"
    if gate == "relu":
        return f"no stock architecture computes {method.name} with a relu gate"
    if config is None or gate in (None, "none"):
        return ""
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return f"{architecture(method, form)} has no place for this base's biases"
    if gate == "sigmoid" and config.hidden_size != config.num_attention_heads * config.head_dim:
        return f"{architecture(method, form)} has no explicit head_dim"
    return ""


def architecture(method: Any, form: str) -> str:
    """The architecture a checkpoint will have, in words, for `langext plan` and the model card."""
    if form == "remote":
        return "NeutralResidueLlama (remote code in the folder)"
    stock = {
        "sigmoid": "GraniteMoeShared",
        "hard_sigmoid": "Glm4Moe",
        "none": "the base's own, with a wider feed-forward network",
    }
    return stock.get(getattr(method, "gate", ""), "the base's own")


def write(model: Model, out: Path, form: str, texts: list[str], card: dict[str, Any]) -> dict[str, Any]:
    """Write `out`, verify it in a fresh process and add the model card. Beside and renamed: a failure leaves nothing behind.

    Returns the verification record. Raises ConfigError when the reloaded model differs.
    """
    from langext import modeling, vocabulary
    from langext.exports import modelcard, native, remote, verify

    if out.exists():
        raise ConfigError(f"{out} exists already; name another folder")
    beside = out.with_name(out.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    live = modeling.load(model, verify.WEIGHTS)
    if live.method is None:
        raise ConfigError("the model is the untouched base; there is nothing to export")
    form = choose(live.net.config, live.method, form)
    expected = verify.expect(live, texts)
    vocabulary.fold(live.net)
    (remote if form == "remote" else native).write(live, beside)
    live.tokenizer.save_pretrained(beside)
    if live.net.generation_config is not None:
        live.net.generation_config.save_pretrained(beside)
    _both_rope_keys(beside / "config.json")
    record = {"format": form, "architecture": architecture(live.method, form), **verify.compare(beside, expected, form)}
    write_json(beside / "export.json", record)
    modelcard.write(beside, record, card)
    os.replace(beside, out)
    return record


def _both_rope_keys(path: Path) -> None:
    """Transformers 5 writes `rope_parameters` alone, and version 4 then falls back to a wrong rope_theta without a word."""
    config = read_json(path)
    rope = dict(config.get("rope_parameters") or {})
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
        config["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope["partial_rotary_factor"]
        write_json(path, config)


def verification_texts(corpus: Corpus, languages: tuple[str, ...]) -> list[str]:
    """A passage of held-out text of each language and domain."""
    from langext import bpb, documents

    found = documents.heldout(corpus, languages)
    return [passage for texts in found.values() for passage in bpb.passages(texts, 800, 1600)]


def from_run(root: Path, out: Path, form: str) -> Checkpoint:
    """Export the newest trained model of a run folder to `out`."""
    from langext.console import say
    from langext.report import finished

    stages = finished(root)
    models = [path for path, manifest in stages if manifest["kind"] == "Model" and manifest["stage"]["uses"] != "extend"]
    corpora = [path for path, manifest in stages if manifest["kind"] == "Corpus"]
    if not models or not corpora:
        raise ConfigError(f"{root}: no finished filter and train stage here; run the pipeline first")
    job = read_json(models[-1] / "job.json")
    languages = (job["language"], *job["original_languages"])
    card = describe(Model(models[-1]), languages, Corpus(corpora[-1]), None, None)
    record = write(Model(models[-1]), out, form, verification_texts(Corpus(corpora[-1]), languages), card)
    say(f"{out}: {record['architecture']}, largest logit difference to the trained model {record['max_abs_difference']:.1e}")
    return Checkpoint(out)


def describe(model: Model, languages: tuple[str, ...], corpus: Corpus | None, before: Any, after: Any) -> dict[str, Any]:
    """What the model card says besides the verification. Scores may be None."""
    from langext import modeling

    base = read_json(modeling.base_folder(model) / "config.json")
    base_manifest = read_json(_base_manifest(model))
    method = modeling.method_of(model)
    assert method is not None
    named = base_manifest["identity"]["base_model"]
    asset = assets.ASSETS.get(named.removeprefix(assets.PREFIX)) if named.startswith(assets.PREFIX) else None
    return {
        "languages": languages,
        "base": asset.about.split(",")[0] if asset else named,
        "licence": asset.licence if asset else None,
        "base_commit": base_manifest["commit"],
        "base_architecture": (base.get("architectures") or ["?"])[0],
        "method": method.model_dump(mode="json"),
        "paper": method.paper,
        "training": model.manifest["summary"],
        "funnel": corpus.manifest["summary"]["funnel"] if corpus else [],
        "before": read_json(before.path / "scores.json") if before else None,
        "after": read_json(after.path / "scores.json") if after else None,
    }


def _base_manifest(model: Model) -> Path:
    return model.path.parent / "base" / "manifest.json"
