"""The files of a source of text: which are read, which are not, and what they were when they were read.

The one rule: everything in a folder is either read or named. Hidden things are never read, and nothing but a regular file is
ever opened.
"""

import difflib
import errno
import glob
import os
import stat
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from langext.artifacts import sha256_file
from langext.data import remote
from langext.data.formats import CSV, JSONL, READS, SUFFIXES, TSV, TXT, kind, packing, pattern
from langext.data.remote import Remote
from langext.errors import ConfigError, RunFailed, one_line, user_path
from langext.text_summaries import SourceFile

Place = Path | Remote
"""Where a file is: on this machine, or in an object store."""
Division = Literal["blocks", "lines", "files"]
"""What one document of a .txt file is: the text between blank lines, a line, or all of the file."""
EVERY = ("",)
"""In place of `SUFFIXES`: every name has this end."""
LINED = (TXT, JSONL, CSV, TSV)
"""Kinds of files that are read line by line."""
SHOWN, RECORDED = 5, 1000
"""Most names of unread files in a message, and in the manifest."""
LISTED = 200
"""Most names of a folder that are compared with a pattern that matches nothing."""


@dataclass(frozen=True)
class Found:
    """What is at the path of a source."""

    files: dict[str, Place]
    """Name below the folder -> place, of every file that is read, in the order of reading."""
    unread: list[str]
    """Names of what is not read, with the reason in brackets where the name does not say it."""

    def told(self) -> str:
        """What is not read, in one line: how much, and the first names; empty when all is read."""
        return f"{len(self.unread)} not read: {', '.join(self.first(SHOWN))}" if self.unread else ""

    def first(self, count: int) -> list[str]:
        """The first names of what is not read, and how many there are besides."""
        rest = len(self.unread) - count
        return [*self.unread[:count], *([f"and {rest} more"] if rest > 0 else [])]


def base(path: str) -> Path:
    """The file or folder at `path`, or the folder that what matches a pattern is below. Raises ConfigError as user_path."""
    return user_path(parts(path)[0] if is_pattern(path) else path, "path")


def is_pattern(path: str) -> bool:
    """True when there is a pattern in a path, and no file or folder of that very name."""
    return pattern(path) >= 0 and not user_path(path, "path").exists()


def matches(path: str) -> list[Path]:
    """The files and folders that match a pattern, in order."""
    return [base(path) / match for match in sorted(glob.glob(parts(path)[1], root_dir=base(path), recursive=True))]


def parts(path: str) -> tuple[str, str]:
    """The folder before the first part of a path that is a pattern, and the rest."""
    folder, slash, _ = path[: pattern(path)].rpartition("/")
    return folder or slash or ".", path[len(folder + slash) :]


def search(path: str) -> Found:
    """What is at `path`: a file, a folder, what matches a pattern (text/*.jsonl.gz), or one of these in an object store.

    Raises ConfigError when there is nothing to read.
    """
    if remote.is_remote(path):
        return _in_store(path)
    folder = base(path)
    if not is_pattern(path):
        return find(folder)
    if not folder.is_dir():
        raise ConfigError(f"{one_line(path)}: there is no folder {one_line(folder)}")
    found = matches(path)
    if not found:
        there = [str(at.relative_to(folder)) for at in islice(folder.rglob("[!.]*"), LISTED) if at.is_file()]
        _no_match(path, parts(path)[1], there)
    return find(folder, SUFFIXES, found)


def _in_store(url: str) -> Found:
    """What is at an address of an object store. It has no links, and folders only in names."""
    address, sizes = remote.listed(url)
    files: dict[str, Place] = {}
    unread: list[str] = []
    for name, said in sizes.items():
        place = Remote(f"{address}/{name}")
        hidden = any(part.startswith(".") for part in name.split("/"))
        if hidden or not place.name.casefold().endswith(SUFFIXES):
            unread.append(one_line(name))
        elif not (size(place) if said is None else said) and kind(place) in LINED and not packing(place):
            unread.append(f"{one_line(name)} (empty)")
        else:
            files[name] = place
    if not files and remote.has_pattern(url) and not unread:
        _no_match(url, parts(url)[1], list(remote.listed(parts(url)[0])[1])[:LISTED])
    if not files:
        told = f" ({Found({}, unread).told()})" if unread else ""
        raise ConfigError(f"{one_line(url)}: nothing to read here{told}; langext reads {READS}")
    return Found({name: files[name] for name in sorted(files)}, sorted(unread))


def _no_match(path: str, rest: str, there: Sequence[str]) -> None:
    names = difflib.get_close_matches(rest, there, n=3, cutoff=0.5)
    near = f" Did you mean {', '.join(map(one_line, names))}?" if names else ""
    shown = near or (f" There is: {', '.join(map(one_line, there[:SHOWN]))}." if there else " There is no file.")
    raise ConfigError(f"{one_line(path)}: nothing matches.{shown}")


def find(path: Path, suffixes: Collection[str] = SUFFIXES, starts: Sequence[Path] | None = None) -> Found:
    """The file `path`, or everything in the folder `path`; only what is at `starts`, if given, and below it.

    Links are followed, and each file and folder is met once. Raises ConfigError when there is nothing to read, for a link to
    nothing, a folder that cannot be listed, and a file whose name is not UTF-8.
    """
    files: dict[str, Place] = {}
    unread: list[str] = []
    met: dict[tuple[int, int], str] = {}
    # Links come last, so that what lies here itself has its own name.
    here, links = deque([path] if starts is None else starts), deque[Path]()
    while here or links:
        at = (here or links).popleft()
        name = str(at.relative_to(path)) if at != path else path.name
        info = _stat(at)
        key = (info.st_dev, info.st_ino)
        if stat.S_ISDIR(info.st_mode):
            if key not in met:
                met[key] = name
                for child in _children(at):
                    if child.name.startswith("."):
                        unread.append(one_line(child.relative_to(path)))
                    else:
                        (links if child.is_symlink() else here).append(child)
            continue
        if reason := _not_read(at, info, suffixes, met.get(key, "")):
            unread.append(one_line(name) + (f" ({reason})" if reason != "name" else ""))
            continue
        if not name.isascii() and name.encode(errors="replace").decode() != name:
            raise ConfigError(f"{one_line(at)}: the name is not UTF-8; rename the file")
        met[key] = name
        files[name] = at
    if not files:
        _nothing(path, unread)
    order = sorted(files, key=Path)
    return Found({name: files[name] for name in order}, sorted(unread))


def _not_read(path: Path, info: os.stat_result, suffixes: Collection[str], met: str) -> str:
    """Why a file is not read; "name" when its name says it, and an empty string when it is read."""
    if not stat.S_ISREG(info.st_mode):
        return "no regular file"
    if not path.name.casefold().endswith(tuple(suffixes)):
        return "name"
    if met:
        return f"the same file as {one_line(met)}"
    # An empty file of text is a part without documents; of the other kinds it is damaged, which `heads.check` says.
    return "empty" if not info.st_size and kind(path) in LINED and not packing(path) else ""


def _nothing(path: Path, unread: list[str]) -> None:
    if path.is_dir():
        what = f"{one_line(path)}: nothing to read here" + (f" ({Found({}, unread).told()})" if unread else "")
    else:
        what = f"cannot read {one_line(path.parent)}/{unread[0]}"
    raise ConfigError(f"{what}; langext reads {READS}")


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{one_line(folder)}: cannot be listed: {error.strerror}") from None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        if error.errno == errno.ENOENT and not path.is_symlink():
            raise ConfigError(f"{one_line(path)}: no such file or folder") from None
        reason = "leads to nothing" if error.errno == errno.ENOENT else f"cannot be followed: {error.strerror}"
        what = f"the link to {one_line(path.readlink())} {reason}" if path.is_symlink() else str(error.strerror)
        raise ConfigError(f"{one_line(path)}: {what}; mend or remove it") from None


def names(columns: Collection[Any]) -> str:
    """Names of columns for a message, cut where there are many: they come with the data."""
    shown = [f"{one_line(name)[:40]}" for name in list(columns)[:20]]
    return ", ".join([*shown, *(["..."] if len(columns) > len(shown) else [])])


def size(place: Place) -> int:
    """Bytes of a file. Raises ConfigError when it is gone."""
    return place.record("", "").bytes if isinstance(place, Remote) else _stat(place).st_size


def record(source: str, name: str, place: Place) -> SourceFile:
    """What a file is now: with its sha256, or in an object store with its version there.

    Raises RunFailed when it changes meanwhile or cannot be read.
    """
    if isinstance(place, Remote):
        return place.record(source, name)
    try:
        before = place.stat()
        sha256 = sha256_file(place)
        after = place.stat()
    except OSError as error:
        raise _unread(place, error) from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise RunFailed(f"{one_line(place)}: it changed while it was read; run the same command again when it is complete")
    return glance(source, name, place).model_copy(
        update={"bytes": after.st_size, "modified_ns": after.st_mtime_ns, "sha256": sha256}
    )


def glance(source: str, name: str, place: Place) -> SourceFile:
    """What a file is now, without reading it. Raises ConfigError when it is gone."""
    if isinstance(place, Remote):
        return place.record(source, name)
    info = _stat(place)
    return SourceFile(
        source=source, name=name, path=str(place.resolve()), bytes=info.st_size, modified_ns=info.st_mtime_ns, sha256=""
    )


def changed(place: Place, then: SourceFile) -> bool:
    """True when the file differs from `then`. Its bytes are hashed only if the size is equal and the time is not.

    Of a file in an object store size and version are compared. Raises RunFailed when it cannot be read.
    """
    if isinstance(place, Remote):
        now = place.record(then.source, then.name)
        return (now.bytes, now.etag) != (then.bytes, then.etag)
    try:
        info = place.stat()
        if info.st_size != then.bytes:
            return True
        return info.st_mtime_ns != then.modified_ns and sha256_file(place) != then.sha256
    except OSError as error:
        raise _unread(place, error) from None


def _unread(path: Path, error: OSError) -> RunFailed:
    return RunFailed(f"{one_line(path)}: cannot be read: {error.strerror}; run the same command again to go on")
