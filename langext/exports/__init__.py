"""From an extended model to a folder that anybody can serve: write, reload in a fresh process, compare, describe."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langext import assets, families
from langext.artifacts import Checkpoint, Corpus, Model, read_json, write_json
from langext.spec import ConfigError

if TYPE_CHECKING:
    from langext.modeling import LiveModel

FORMATS = ("auto", "native", "remote")


def choose(config: Any, methods: Sequence[Any], form: str) -> str:
    """The format to write. Raises ConfigError with the reason when it cannot be exact, and names what can.

    `config` is the base's transformers config, or None while it is not on this machine. `methods` are those of all
    extensions, the first added first.
    """
    if form not in FORMATS:
        raise ConfigError(f"export format {form!r} is not known; choose {', '.join(FORMATS)}")
    reasons = {f: _obstacle(config, methods, f) for f in FORMATS[1:]}
    possible = [f for f in FORMATS[1:] if not reasons[f]]
    if form == "auto":
        form = possible[0] if possible else "native"
    if reasons[form]:
        raise ConfigError(f"format {form!r}: {reasons[form]}; possible: {', '.join(possible) or 'none'}", at=("format",))
    return form


def _obstacle(config: Any, methods: Sequence[Any], form: str) -> str:
    """Why a format cannot be exact here, or an empty string."""
    from langext.exports import native

    gates: list[Any] = [getattr(method, "gate", None) for method in methods]
    if form == "remote":
        return "" if all(gates) else f"{methods[-1].name} needs no code of its own"
    return native.obstacle(gates, config) if len(gates) > 1 else methods[-1].obstacle(config)


def architecture(config: Any, methods: Sequence[Any], form: str) -> str:
    """The architecture a checkpoint will have, in words, for `langext plan` and the model card."""
    from langext.exports import native

    if form == "remote":
        prefix = families.of(config).prefix if config is not None else "the base"
        return f"{prefix} with neutral residues (remote code in the folder)"
    if len(methods) > 1:
        return native.architecture([method.gate for method in methods], config)
    return methods[-1].architecture(config)


def write(model: Model, out: Path, form: str, texts: list[str], card: dict[str, Any]) -> dict[str, Any]:
    """Write `out`, verify it in a fresh process and add the model card. Beside and renamed: a failure leaves nothing behind.

    Three comparisons: the trained model with what it folds to, before rounding; that with its rounding to the weights'
    precision, which is recorded; and the rounded one with what a stranger loads. Raises ConfigError when the first or last
    differ.
    """
    from langext import modeling
    from langext.exports import modelcard, verify

    if out.exists():
        raise ConfigError(f"{out} exists already; name another folder")
    live = modeling.load(model, verify.WEIGHTS)
    if not live.methods:
        raise ConfigError("the model is the untouched base; there is nothing to export")
    form = choose(modeling.load_config(modeling.read_record(model).base), live.methods, form)
    described = architecture(modeling.load_config(modeling.read_record(model).base), live.methods, form)
    beside = out.with_name(out.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    ids = verify.encode(live.tokenizer, texts)
    trained = verify.logits(live.net.float(), ids)
    net = stock(live, form)
    verify.same(trained, verify.logits(net, ids))
    round_weights(net)
    expected = verify.Expected(ids, verify.logits(net, ids), [verify.greedy(net, row) for row in ids])
    rounding = verify.difference(trained, expected.logits)
    save(net, live, form, beside)
    figures = {"format": form, "architecture": described, "rounding": rounding}
    record = figures | verify.compare(beside, expected, form)
    write_json(beside / "export.json", record)
    modelcard.write(beside, record, card)
    os.replace(beside, out)
    return record


def stock(live: "LiveModel", form: str) -> Any:
    """The model that will be saved, in the precision of `live`, which is used up."""
    from langext import vocabulary

    vocabulary.fold(live.net)
    return live.net if form == "remote" else live.methods[-1].fold(live.net)


def round_weights(net: Any) -> None:
    """Round a float32 model's weights to the precision they are saved in; net.to() would round its rotary frequencies too."""
    from langext.exports import verify

    for parameter in net.parameters():
        parameter.data = parameter.data.to(verify.WEIGHTS).float()


def save(net: Any, live: "LiveModel", form: str, out: Path) -> None:
    """Write weights, config, tokenizer and generation config."""
    from langext.exports import remote, verify

    net.to(verify.WEIGHTS)
    if form == "remote":
        remote.write(net, out)
    else:
        net.save_pretrained(out)
    live.tokenizer.save_pretrained(out)
    if live.net.generation_config is not None:
        live.net.generation_config.save_pretrained(out)
    _both_rope_keys(out / "config.json")


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

    recorded = modeling.read_record(model)
    base = read_json(recorded.base / "config.json")
    base_manifest = read_json(_base_manifest(model))
    method = recorded.method
    assert method is not None
    named = base_manifest["root"]
    asset = assets.ASSETS.get(named.removeprefix(assets.PREFIX)) if named.startswith(assets.PREFIX) else None
    return {
        "languages": languages,
        "base": asset.about.split(",")[0] if asset else named,
        "licence": asset.licence if asset else None,
        "base_commit": base_manifest["commit"],
        "base_on_hub": base_manifest["commit"] is not None,
        "base_architecture": (base.get("architectures") or ["?"])[0],
        "method": method.model_dump(mode="json"),
        "paper": method.paper,
        **_history(model),
        "funnel": corpus.manifest["summary"]["funnel"] if corpus else [],
        "before": read_json(before.path / "scores.json") if before else None,
        "after": read_json(after.path / "scores.json") if after else None,
    }


def _history(model: Model) -> dict[str, Any]:
    """How the model came about: its `training`, None when it was merged, and what was done `afterwards`, in words."""
    done: list[str] = []
    while True:
        manifest = model.manifest
        stage, summary = manifest["stage"], manifest["summary"]
        if stage["uses"] == "train":
            return {"training": summary, "afterwards": done}
        if stage["uses"] == "merge":
            names = ", ".join(Path(name).name for name in stage["models"])
            merged = f"Merged from the runs {names} by {stage['rule']}, scale {summary['scale']:g}"
            return {"training": None, "afterwards": [merged + (", by layer (LiNeS)" if stage["lines"] else ""), *done]}
        if stage["uses"] == "rescale":
            done.insert(0, f"Rescaled layer by layer (LiNeS), alpha {summary['alpha']:g}")
        model = Model(model.path.parent / Path(manifest["inputs"]["model"]["path"]).name)


def _base_manifest(model: Model) -> Path:
    return model.path.parent / "base" / "manifest.json"
