"""Files in object stores, through fsspec: s3://, gs://, hf://, https:// and what else a driver is installed for.

The one rule: what is read is what was recorded. A store tells size and version (etag) of a file without reading it.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

import fsspec

from langext.data.formats import pattern
from langext.errors import ConfigError, RunFailed, holds_secret, one_line, reason
from langext.spec import near
from langext.text_summaries import SourceFile

SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
"""How the address of a place in a store begins."""
VERSIONS = ("ETag", "etag", "md5Hash", "crc32c", "content_md5", "sha256", "blob_id", "md5")
"""Entries of a store's information on a file that are another when its bytes are."""
TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")
"""Those that say when it was written, for stores that have none of the others."""
WEB = ("http://", "https://")
"""How an address begins in which a question mark begins a query (`?download=true`), and is no pattern."""
BLOCK_BYTES = 1 << 20
"""Bytes that are asked for at once, at the least."""


@dataclass(frozen=True)
class Remote:
    """One file in an object store. It has of a Path what is needed to read it."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the address, without a query."""
        return _without_query(self.url).rsplit("/", 1)[-1]

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The bytes of the file. Opening and reading raise ConfigError or RunFailed when the store does not give them."""
        assert mode == "rb", "text is only read"
        with asking(self.url):
            system, path = fsspec.url_to_fs(self.url)
            return cast(IO[bytes], io.BufferedReader(_Stream(self.url, system.open(path, "rb")), BLOCK_BYTES))

    def record(self, source: str, name: str) -> SourceFile:
        """What the file is now: its size, and what the store has as its version or time. Not a byte of it is read."""
        with asking(self.url):
            system, path = fsspec.url_to_fs(self.url)
            system.invalidate_cache()
            info = system.info(path)
        if info.get("size") is None:
            raise ConfigError(
                f"{one_line(self.url)}: the server does not say how many bytes this file has, so that a part of it could not "
                "be told from all of it; download it, and give the path of the copy"
            )
        known = next((f"{key} {info[key]}" for key in (*VERSIONS, *TIMES) if info.get(key)), "")
        return SourceFile(
            source=source, name=name, path=self.url, bytes=int(info["size"]), modified_ns=0, sha256="", etag=known
        )


class _Stream(io.RawIOBase):
    """A file of fsspec, whose failures are told like those of a disk."""

    def __init__(self, url: str, file: Any):
        self.url, self.file = url, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self.file.seekable()) and getattr(self.file, "size", 0) is not None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            with asking(self.url):
                data = self.file.read(len(buffer))
        except ConfigError as error:  # it was right when it was opened: a permission that has ended, for one
            raise RunFailed(f"{error}; run the same command again to go on") from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


@contextmanager
def asking(url: str) -> Iterator[None]:
    """A context that asks a store for what is at `url`.

    Drivers raise errors of nearly every class for a connection that fails, so all of them are taken; nothing else than the
    asking belongs into this context. What the user can mend is a ConfigError, what a second try may mend a RunFailed.
    """
    shown = one_line(url)
    scheme = url.partition("://")[0]
    try:
        yield
    except (ConfigError, RunFailed):
        raise
    except ImportError as error:
        raise ConfigError(f"{shown}: {scheme}:// needs a package that is not here: {reason(error)}") from None
    except FileNotFoundError:
        raise ConfigError(f"{shown}: no such file or folder") from None
    except PermissionError as error:
        raise ConfigError(f"{shown}: no permission: {reason(error)}") from None
    except Exception as error:
        if scheme not in fsspec.available_protocols():
            options = near(scheme, fsspec.available_protocols())
            raise ConfigError(f"{shown}: {scheme}:// is not known.{options}") from None
        raise RunFailed(f"{shown}: cannot be read: {reason(error)}; run the same command again to go on") from None


def is_remote(path: str) -> bool:
    """True for an address of a store, as s3://bucket/folder."""
    return SCHEME.match(path) is not None


def check_address(path: str) -> None:
    """Raise ValueError for an address with a password in it: a pipeline file is copied into runs, reports and model cards."""
    if holds_secret(path):
        raise ValueError("write no password into an address; the driver takes it from its own settings or the environment")


def has_pattern(url: str) -> bool:
    """True for an address with *, ? or [ in it, but for the query of a web address."""
    return pattern(_without_query(url)) >= 0


def _without_query(url: str) -> str:
    """An address without the query of a web address."""
    return url.partition("?")[0] if url.casefold().startswith(WEB) else url


def listed(url: str) -> tuple[str, dict[str, int | None]]:
    """The address that names are below, and the size in bytes of every file at `url`, a file, folder or glob, by its name.

    Names end with the query of a web address. None where the list does not say a size, as the pages of web servers.
    """
    with asking(url):
        system, path = fsspec.url_to_fs(url)
        system.invalidate_cache()
        if has_pattern(url):
            found = {name: info for name, info in system.glob(path, detail=True).items() if info["type"] == "file"}
            base = path[: pattern(path)].rpartition("/")[0]
        elif not url.endswith("/") and system.isfile(path):  # for a web server, the page that lists a folder is a file too
            found, base = {path: system.info(path)}, _without_query(path).rpartition("/")[0]
        else:
            found, base = system.find(path, detail=True), path.rstrip("/")
        address = system.unstrip_protocol(base)
    names = {name.removeprefix(base).lstrip("/"): info.get("size") for name, info in found.items()}
    return address.rstrip("/"), names
