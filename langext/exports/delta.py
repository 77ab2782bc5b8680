"""An extension by itself: what was learnt, without the base. A folder that becomes a run folder wherever the base is.

delta.json names the base with the hashes of its weights, the languages, the methods and how the model came about;
delta.safetensors holds what the newest extension learnt, earlier-<k>.safetensors what those before it did, vocabulary/ an
extended tokenizer.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from langext import assets, bases, modeling
from langext.artifacts import BASE, JOB, MANIFEST, Model, list_files, read_json, write_json
from langext.exports import modelcard, stock
from langext.spec import ConfigError

RECORD = "delta.json"
FORMAT = "langext delta 1"
USES = "apply"
"""What the manifest of a model says that came out of a delta."""


def write(model: Model, out: Path) -> None:
    """Write the delta of a trained model into the empty folder `out`, its weights rounded as those of every export are."""
    record, job = modeling.read_record(model), read_json(model.path / JOB)
    base = read_json(model.path.parent / BASE / MANIFEST)
    public = base["commit"] is not None or base["root"].startswith(assets.PREFIX)
    _round(model.path / modeling.DELTA, out / modeling.DELTA)
    earlier = [replace(e, delta=out / f"earlier-{k}.safetensors") for k, e in enumerate(record.earlier)]
    for had, has in zip(record.earlier, earlier, strict=True):
        _round(had.delta, has.delta)
    tokenizer = record.tokenizer
    if tokenizer:
        shutil.copytree(tokenizer, out / "vocabulary" / "tokenizer")
        shutil.copyfile(tokenizer.parent / "new_tokens.json", out / "vocabulary" / "new_tokens.json")
        tokenizer = out / "vocabulary" / "tokenizer"
    modeling.write_record(out, replace(record, tokenizer=tokenizer, earlier=tuple(earlier)))
    modeling.set_base(out, None)
    told = {
        "format": FORMAT,
        "base": {
            "name": base["root"] if public else Path(base["root"]).name,
            "public": public,
            "commit": base["commit"],
            "weights": _weights(base),
        },
        "language": job["language"],
        "original_languages": job["original_languages"],
        "history": modelcard.history(model),
        "fingerprint": model.manifest["fingerprint"],
    }
    write_json(out / RECORD, told)


def rebuilt(folder: Path, base: Path, scratch: Path) -> Model:
    """The model that a delta gives on a base that is known to be its own, in the new folder `scratch`."""
    shutil.copytree(folder, scratch)
    modeling.set_base(scratch, base)
    return Model(scratch)


def _weights(manifest: dict[str, Any]) -> dict[str, str]:
    """sha256 of a base's files of weights."""
    return {f["name"]: f["sha256"] for f in manifest["files"] if f["name"].endswith(".safetensors")}


def _round(source: Path, target: Path) -> None:
    save_file({name: tensor.to(stock.WEIGHTS) for name, tensor in load_file(source).items()}, target)


def apply(folder: Path, base: str | None, out: Path) -> Model:
    """Make a run folder `out` of a delta and its base, which is `base` or the public one that the delta names.

    Raises ConfigError when the folder holds no delta or the base is another one.
    """
    if not (folder / RECORD).is_file():
        raise ConfigError(f"{folder}: no {RECORD} here, so this is no delta that `langext export --format delta` wrote")
    told = read_json(folder / RECORD)
    if told["format"] != FORMAT:
        raise ConfigError(f"{folder / RECORD}: format {told['format']!r}; this version of langext reads {FORMAT!r}")
    if out.exists():
        raise ConfigError(f"{out} exists already; name another folder")
    if base is None and not told["base"]["public"]:
        raise ConfigError(f"{folder}: its base, {told['base']['name']}, is no public one; give its folder with --base")
    try:
        return _unpacked(folder, told, base, out)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _unpacked(folder: Path, told: dict[str, Any], base: str | None, out: Path) -> Model:
    wanted = told["base"]
    prepared = bases.prepare(base or wanted["name"], None if base else wanted["commit"], out / BASE)
    manifest = prepared.manifest
    if _weights(manifest) != wanted["weights"]:
        raise ConfigError(f"{base or wanted['name']}: its weights are not those of {wanted['name']}, the delta's base")
    if wanted["public"]:
        write_json(out / BASE / MANIFEST, manifest | {"root": wanted["name"], "commit": wanted["commit"]})
    made = rebuilt(folder, modeling.read_record(prepared).base, out / f"01-{USES}")
    write_json(made.path / JOB, {key: told[key] for key in ("language", "original_languages")})
    done = {
        "kind": "Model", "stage": {"uses": USES}, "inputs": {}, "summary": told["history"], "fingerprint": told["fingerprint"],
        "seconds": 0.0, "files": list_files(made.path),
    }  # fmt: skip
    write_json(made.path / MANIFEST, done)
    return made
