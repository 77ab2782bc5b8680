"""langext doctor: what this machine has, and what each key of a pipeline file means."""

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any, get_args

from langext import assets
from langext.console import say, table
from langext.spec import Spec

PACKAGES = (
    "torch", "transformers", "tokenizers", "deepspeed", "datasets", "datatrove", "lm_eval", "safetensors", "gguf", "pydantic",
)  # fmt: skip


def show() -> int:
    """Print packages, devices, disk and assets. Returns 0, or 1 when something that is needed is missing."""
    import torch

    rows, missing = [], []
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, "MISSING"))
            missing.append(name)
    if importlib.util.find_spec("fasttext") is None:
        missing.append("fasttext")
        rows.append(("fasttext", "MISSING"))
    rows.insert(0, ("python", platform.python_version()))
    table("packages", ("package", "version"), rows)
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            say(f"GPU {i}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        say(f"no GPU; {os.cpu_count()} CPU cores, bf16 in hardware: {'yes' if _cpu_bf16() else 'no (set precision: fp32)'}")
    say(f"disk free here: {shutil.disk_usage('.').free / 2**30:.0f} GiB")
    for name, asset in assets.ASSETS.items():
        here = (assets.cache() / name / assets.RECORD).is_file()
        say(f"asset {name}: {'here' if here else 'not fetched'} ({asset.about})")
    if missing:
        say(f"missing: {', '.join(missing)}; install langext again with pip")
    return 1 if missing else 0


def _cpu_bf16() -> bool:
    import torch

    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def fields() -> int:
    """Print every key of a pipeline file with its type, default and meaning."""
    from langext.methods import AnyMethod
    from langext.pipeline import Pipeline
    from langext.stages import AnyStage

    for cls in (Pipeline, *_members(AnyStage), *_members(AnyMethod)):
        tag = next((get_args(cls.model_fields[key].annotation)[0] for key in ("uses", "name") if _is_tag(cls, key)), "")
        rows = [
            (key, _type(info.annotation), "required" if info.is_required() else repr(info.default), info.description or "")
            for key, info in cls.model_fields.items()
            if not _is_tag(cls, key)
        ]
        table(tag or "pipeline", ("key", "type", "default", "meaning"), rows)
    return 0


def _members(union: Any) -> tuple[type[Spec], ...]:
    return get_args(get_args(union)[0])


def _is_tag(cls: type[Spec], key: str) -> bool:
    info = cls.model_fields.get(key)
    return info is not None and "Literal" in str(info.annotation) and info.is_required() and key in ("uses", "name")


def _type(annotation: Any) -> str:
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("langext.stages.filter.", "").replace("pathlib._local.", "")
