"""The README.md of an exported checkpoint."""

import shutil
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from langext import assets, bases, languages
from langext.artifacts import Corpus, Model, read_json


def write(out: Path, record: dict[str, Any], card: dict[str, Any]) -> None:
    """Render README.md from the verification record and what `describe` found."""
    env = Environment(
        loader=PackageLoader("langext", "exports"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    named = [languages.find(code) for code in card["languages"]]
    text = env.get_template("modelcard.md.j2").render(**card, record=record, named=named, rows=_rows(card))
    (out / "README.md").write_text(text, encoding="utf-8")


def _rows(card: dict[str, Any]) -> list[dict[str, str]]:
    """Before and after, for every figure that both measured."""
    rows = []
    before, after = card["before"], card["after"]
    if not (before and after):
        return rows
    order = list(card["languages"])
    for name, now in sorted(after["bits_per_byte"].items(), key=lambda item: order.index(item[0].split("/")[0])):
        if name in before["bits_per_byte"]:
            then = before["bits_per_byte"][name]
            rows.append({"name": f"{name}, bits per byte", "before": _pm(then), "after": _pm(now)})
    for task, metrics in after["tasks"].items():
        for metric, now in metrics.items():
            if task in before["tasks"] and metric in before["tasks"][task]:
                rows.append({"name": f"{task}, {metric}", "before": _pm(before["tasks"][task][metric]), "after": _pm(now)})
    return rows


def _pm(figure: dict[str, float]) -> str:
    return f"{figure['value']:.4f} ± {figure['stderr']:.4f}"


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
    named_licence = asset.licence if asset else licence(recorded.base)
    return {
        "languages": languages,
        "base": asset.about.split(",")[0] if asset else named if base_manifest["commit"] else Path(named).name,
        "licence": named_licence,
        "licence_id": (asset.licence.lower() if " " not in asset.licence else None) if asset else named_licence,
        "base_commit": base_manifest["commit"],
        "base_on_hub": base_manifest["commit"] is not None,
        "base_public": asset is not None or base_manifest["commit"] is not None,
        "base_architecture": (base.get("architectures") or ["?"])[0],
        "method": method.model_dump(mode="json"),
        "paper": method.paper,
        **history(model),
        "funnel": corpus.manifest["summary"]["funnel"] if corpus else [],
        "before": read_json(before.path / "scores.json") if before else None,
        "after": read_json(after.path / "scores.json") if after else None,
    }


def licence(base: Path) -> str | None:
    """The `license` that the head of a model folder's README.md names; None without one."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    readme = base / "README.md"
    lines = readme.read_text(encoding="utf-8").splitlines() if readme.is_file() else []
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return None
    try:
        named = YAML(typ="safe", pure=True).load("\n".join(lines[1 : lines.index("---", 1)]))
    except YAMLError:
        return None
    found = named.get("license") if isinstance(named, dict) else None
    return found if isinstance(found, str) else None


def keep_licences(base: Path, out: Path) -> None:
    """Copy the base's licence and notice files beside the weights that they cover."""
    for pattern in bases.LICENCES:
        for path in base.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, out / path.name)


def history(model: Model) -> dict[str, Any]:
    """How the model came about: its `training`, None when it was merged, and what was done `afterwards`, in words."""
    done: list[str] = []
    while True:
        manifest = model.manifest
        stage, summary = manifest["stage"], manifest["summary"]
        if stage["uses"] == "apply":
            return summary
        if stage["uses"] == "train":
            return {"training": summary, "afterwards": done}
        if stage["uses"] == "merge":
            names = ", ".join(Path(name).name for name in stage["models"])
            merged = f"Merged from the runs {names} by {stage['rule']}, scale {summary['scale']:g}"
            return {"training": None, "afterwards": [merged + (", by layer (LiNeS)" if stage["lines"] else ""), *done]}
        if stage["uses"] == "regate":
            before, after = summary["bits_per_byte"]["relu"], summary["bits_per_byte"][summary["kept"]]
            costs = ", ".join(f"{name} {before[name]:.4f} to {after[name]:.4f}" for name in before)
            done.insert(0, f"Its relu gates were turned into hard sigmoids; bits per byte went from {costs}")
        if stage["uses"] == "rescale":
            done.insert(0, f"Rescaled layer by layer (LiNeS), alpha {summary['alpha']:g}")
        model = Model(model.path.parent / Path(manifest["inputs"]["model"]["path"]).name)


def _base_manifest(model: Model) -> Path:
    return model.path.parent / "base" / "manifest.json"
