"""Text from standard input. Rule: it comes only once, so all of it is kept in the stage's folder before any of it is read."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from langext.console import say
from langext.data import formats, heads
from langext.data.formats import JSONL, MARK, PARQUET, PARQUET_MARK, TXT, UTF_8
from langext.errors import ConfigError

STDIN = "-"
"""The path of a source that is standard input."""
NAME = "stdin"
"""Its name, and that of the folder with the copy."""
COPIED_BYTES = 1 << 20


def copy(folder: Path, name: str, kind: str | None) -> Path:
    """The copy of standard input in `folder`; made now, if it is not there. `name` is how it begins.

    `kind` is txt, jsonl, csv, tsv or parquet; if it is not given, the first bytes say which of txt, jsonl and parquet it is.
    Raises ConfigError when nothing comes.
    """
    part = folder / f"{name}.part"
    made = [path for path in folder.glob(f"{name}.*") if path != part]
    if made:
        return made[0]
    stream = sys.stdin.buffer
    if stream.isatty():
        raise ConfigError("path: -: nothing is piped into langext; write: cat text.jsonl | langext run ...")
    folder.mkdir(parents=True, exist_ok=True)
    with part.open("wb") as file:
        shutil.copyfileobj(stream, file, COPIED_BYTES)
        file.flush()
        os.fsync(file.fileno())
    if not part.stat().st_size:
        part.unlink()
        raise ConfigError("path: -: nothing comes from standard input")
    with discarding(part), part.open("rb") as file:
        end = ending(file, kind)
    final = part.rename(folder / f"{name}{end}")
    say(f"  {name}: {final.stat().st_size / 1e6:.2f} MB from standard input, kept as {end.lstrip('.')} in {final.parent.name}")
    return final


def ending(file: BinaryIO, kind: str | None) -> str:
    """The end of the name of a file with these bytes."""
    head = file.read(heads.HEAD)
    packed = next((end for mark, end in formats.PACKED.items() if head.startswith(mark)), "")
    if kind is None:
        data = formats.check_packed(head, packed, "path: -", heads.HEAD) if packed else head
        text = data.decode(formats.wide(data[:4]) or UTF_8, "replace").removeprefix(MARK).lstrip()
        if re.match(r"\[\s*[{\"]", text):
            raise ConfigError("path: -: this is one array of JSON; write one object on each line: jq -c '.[]' file.json")
        kind = PARQUET if head.startswith(PARQUET_MARK) else JSONL if text.startswith("{") else TXT
    return f".{kind}{packed}"


@contextmanager
def discarding(path: Path) -> Iterator[None]:
    """A context in which a mistake in a copy removes it: the next time another text may come."""
    try:
        yield
    except ConfigError:
        path.unlink(missing_ok=True)
        raise
