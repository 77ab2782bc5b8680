"""The README.md of an exported checkpoint."""

import shutil
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import Field

from langext import languages
from langext.artifacts import Corpus, Model, read_json
from langext.data import assets
from langext.evaluation import scores, significance
from langext.models import bases
from langext.spec import Spec

Line = Annotated[str, Field(pattern=r"^[^\n\r<>|`]*$")]
"""Text that stays what it is in a line or a table of Markdown."""


class Training(Spec):
    """What a model was trained on."""

    tokens: int
    steps: int
    shares: dict[Line, float]
    """Of the tokens, by language."""
    epochs: dict[Line, float]
    """How often each language's text was read."""


class History(Spec):
    """How a model came about."""

    training: Training | None
    """None when it was merged."""
    afterwards: list[Line]
    """What was done then, in words."""


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
    before, after = card["before"], card["after"]
    order = list(card["languages"])
    bits = sorted(significance.bits(before, after), key=lambda row: order.index(row.name.split("/")[0]))
    rows = [(f"{row.name}, bits per byte", row) for row in bits] + [
        (row.name, row) for row in significance.tasks(before, after)
    ]
    return [
        {
            "name": name,
            "before": _pm(row.before, row.before_stderr),
            "after": _pm(row.after, row.after_stderr),
            "change": _change(row),
        }
        for name, row in rows
    ]


def _pm(value: float, stderr: float) -> str:
    return f"{value:.4f}" + (f" ± {stderr:.4f}" if isfinite(stderr) else "")


def _change(row: significance.Change) -> str:
    low, high = row.difference.low, row.difference.high
    return (f"{low:+.4f} to {high:+.4f}" if isfinite(low + high) else f"{row.difference.value:+.4f}") + f" ({row.verdict})"


def describe(model: Model, languages: tuple[str, ...], corpus: Corpus | None, before: Any, after: Any) -> dict[str, Any]:
    """What the model card says besides the verification. Scores may be None."""
    from langext.models import loading

    recorded = loading.read_record(model)
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
        **history(model).model_dump(),
        "funnel": corpus.manifest["summary"]["funnel"] if corpus else [],
        "before": scores.read(before) if before else None,
        "after": scores.read(after) if after else None,
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


def history(model: Model) -> History:
    """How a model came about."""
    done: list[str] = []
    while True:
        manifest = model.manifest
        stage, summary = manifest["stage"], manifest["summary"]
        if "history" in summary:  # of a delta, or of a training that has not ended
            told = History.model_validate(summary["history"])
            return History(training=told.training, afterwards=[*told.afterwards, *done])
        if stage["uses"] == "train":
            return History(training=Training(**{key: summary[key] for key in Training.model_fields}), afterwards=done)
        if stage["uses"] == "merge":
            names = ", ".join(Path(name).name for name in stage["models"])
            merged = f"Merged from the runs {names} by {stage['rule']}, scale {summary['scale']:g}"
            return History(training=None, afterwards=[merged + (", by layer (LiNeS)" if stage["lines"] else ""), *done])
        if stage["uses"] == "regate":
            before, after = summary["bits_per_byte"]["relu"], summary["bits_per_byte"][summary["kept"]]
            costs = ", ".join(f"{name} {before[name]:.4f} to {after[name]:.4f}" for name in before)
            done.insert(0, f"Its relu gates were turned into hard sigmoids; bits per byte went from {costs}")
        if stage["uses"] == "rescale":
            done.insert(0, f"Rescaled layer by layer (LiNeS), alpha {summary['alpha']:g}")
        model = Model(model.path.parent / Path(manifest["inputs"]["model"]["path"]).name)


def _base_manifest(model: Model) -> Path:
    return model.path.parent / "base" / "manifest.json"
