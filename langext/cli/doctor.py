"""What `langext doctor` does: show what this machine has, or explain each key of a pipeline file."""

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from langext.console import say, table
from langext.context import compiler
from langext.data import assets, carriers
from langext.spec import Spec

PACKAGES = (
    "torch", "transformers", "tokenizers", "sentencepiece", "deepspeed", "datasets", "datatrove", "lm_eval", "peft",
    "safetensors", "gguf", "protobuf", "pydantic", "psutil",
)  # fmt: skip
SOMETIMES = {"tensorboard": "runtime.monitor"}
"""Package that is not installed with langext -> what needs it."""
PROGRAMS = {"pdsh": "runtime.nodes > 1", "ssh": "runtime.nodes > 1"}
"""Program that DeepSpeed starts -> what needs it."""


def show() -> int:
    """Print packages, programs, devices, disk and assets. Returns the exit code: 0, or 1 when a needed package is missing.

    What only some runs need may be missing.
    """
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
    table("sometimes needed", ("what", "here", "needed for"), _sometimes())
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            say(f"GPU {i}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        say(f"no GPU; {os.cpu_count()} CPU cores, bf16 in hardware: {'yes' if _cpu_bf16() else 'no (set precision: fp32)'}")
    say(f"disk free here: {shutil.disk_usage('.').free / 2**30:.0f} GiB")
    for name, asset in assets.ASSETS.items():
        here = (carriers.cache() / name / assets.ASSET_FILE).is_file()
        say(f"asset {name}: {'here' if here else 'not fetched'} ({asset.about})")
    if missing:
        say(f"missing: {', '.join(missing)}; install langext again with pip")
    return 1 if missing else 0


def _sometimes() -> list[tuple[str, str, str]]:
    """What only some runs need: its name, its version or path, and what needs it."""
    rows = []
    for name, need in SOMETIMES.items():
        try:
            rows.append((name, version(name), need))
        except PackageNotFoundError:
            rows.append((name, "MISSING", need))
    paths = {name: (shutil.which(name), need) for name, need in PROGRAMS.items()}
    paths["C++ compiler"] = (compiler(), "runtime.compile on a CPU")
    return [*rows, *((name, at or "MISSING", need) for name, (at, need) in paths.items())]


def _cpu_bf16() -> bool:
    import torch

    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def fields() -> int:
    """Print every key of a pipeline file with its type, default and meaning. Returns the exit code 0."""
    from langext.context import Runtime
    from langext.methods import AnyMethod
    from langext.methods.penalties import AnyPenalty
    from langext.pipeline.plan import Pipeline
    from langext.stages import AnyStage
    from langext.stages.filter import Source

    members = [cls for union in (AnyStage, AnyMethod, AnyPenalty) for cls in get_args(get_args(union)[0])]
    for cls in (Pipeline, Runtime, Source, *members):
        rows = [
            (key, _type(info.annotation), _default(info), info.description or "")
            for key, info in cls.model_fields.items()
            if key != _tag_key(cls)
        ]
        table(_tag(cls), ("key", "type", "default", "meaning"), rows)
    return 0


def _tag_key(cls: Any) -> str:
    """The key that selects this class: `uses` for a stage, `name` for a method or penalty; "" for other classes."""
    return next(
        (k for k in ("uses", "name") if k in cls.model_fields and get_origin(cls.model_fields[k].annotation) is Literal), ""
    )


def _tag(cls: Any) -> str:
    key = _tag_key(cls)
    return get_args(cls.model_fields[key].annotation)[0] if key else cls.__name__.lower()


def _default(info: Any) -> str:
    if info.is_required():
        return "required"
    return "see there" if info.default_factory or isinstance(info.default, Spec) else str(info.default)


def _type(annotation: Any) -> str:
    """An annotation in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0])
    if origin is Literal:
        return ", ".join(map(str, args))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(arg) for arg in args if arg is not NoneType))
    if origin in (list, tuple):
        return f"list of {_type(args[0])}"
    if origin is dict:
        return f"{_type(args[0])}: {_type(args[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return _tag(annotation)
    return getattr(annotation, "__name__", str(annotation)).lower()
