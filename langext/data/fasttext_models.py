"""Look at a fastText file before fastText does, whose own reader believes every number in it and allocates what it says.

The one rule: what this module lets pass is complete, to the byte. The format is that of `FastText::loadModel` in
https://github.com/facebookresearch/fastText/blob/main/src/fasttext.cc, and of `load` in args.cc, dictionary.cc, densematrix.cc,
quantmatrix.cc and productquantizer.cc beside it. Run as a program, it loads the file in a process with a limit to its memory.
"""

import contextlib
import functools
import mmap
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from langext.errors import ConfigError, one_line, placeholder_of

MAGIC, VERSIONS = 793712314, (11, 12)
SUPERVISED = 3
"""The kind of model that has labels."""
MOST_DIMENSIONS = 100_000
SECONDS = 600
"""Most time that loading may take."""
ROOM = 8 << 30
"""Bytes of address space for a process that loads a model, besides four times the size of the file."""


class _Damaged(Exception):
    """The file is no complete fastText model; says why."""


class _Bytes:
    """The bytes of a file, read from the front."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        """The next numbers, as `struct` names them."""
        self.skip(struct.calcsize("<" + form))
        return struct.unpack("<" + form, self.data[self.at - struct.calcsize("<" + form) : self.at])

    def skip(self, count: int) -> None:
        """Go past `count` bytes, which must be there."""
        if count < 0 or self.at + count > len(self.data):
            raise _Damaged("it ends too early, or a size in it is wrong")
        self.at += count

    def word(self) -> bytes:
        """The next bytes up to a zero byte."""
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise _Damaged("it ends in its dictionary")
        start, self.at = self.at, end + 1
        return self.data[start:end]


def labels(path: Path) -> list[str]:
    """The labels of the model in the file `path`, with their prefix, in the order of the file.

    Raises ConfigError for everything that is not a complete model with labels.
    """
    if not path.is_file():
        raise ConfigError(f"{one_line(path)}: " + ("not a file" if path.exists() else "no such file"))
    try:
        info = path.stat()
        return list(_labels(path, info.st_size, info.st_mtime_ns))
    except OSError as error:
        raise ConfigError(f"{one_line(path)}: cannot be read: {error.strerror}") from None
    except _Damaged as error:
        raise ConfigError(f"{one_line(path)}: not a fastText model: {error}") from None


def pruned(path: Path) -> np.ndarray | None:
    """The buckets that a model has kept of the parts of words, (num_kept, 2) int32: bucket, and row below those of the words.

    None when it has all. `path` is a complete model.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = _Bytes(data)
        found.take("ii12id")
        size, _, num_labels, _, num_pruned = found.take("iiiqq")
        if num_pruned < 0:
            return None
        _dictionary(found, size, num_labels)
        return np.frombuffer(data[found.at : found.at + 8 * num_pruned], np.int32).reshape(-1, 2)


@functools.cache
def _labels(path: Path, size: int, _modified_ns: int) -> tuple[str, ...]:
    if not size:
        raise _Damaged("the file is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if said := placeholder_of(data[:100]):
            raise _Damaged(said)
        return _read(_Bytes(data))


def _read(file: _Bytes) -> tuple[str, ...]:
    """Go through all of a model. Returns its labels."""
    magic, version = file.take("ii")
    if magic != MAGIC:
        raise _Damaged("it begins with other bytes")
    if version not in VERSIONS:
        raise _Damaged(f"its version is {version}, and fastText reads {VERSIONS[0]} and {VERSIONS[1]}")
    dim, _, _, _, _, ngrams, loss, kind, bucket, _, longest, _, _ = file.take("12id")
    if kind != SUPERVISED:
        raise _Damaged("it has word vectors and no labels")
    sane = 0 < dim <= MOST_DIMENSIONS and 1 <= loss <= 4 and bucket >= 0
    if not sane or (not bucket and version == VERSIONS[-1] and (ngrams > 1 or longest > 0)):
        raise _Damaged("its settings cannot be")
    size, num_words, num_labels, _, num_pruned = file.take("iiiqq")
    if num_words < 0 or num_labels < 1 or size != num_words + num_labels:
        raise _Damaged("the sizes of its dictionary cannot be")
    found = _dictionary(file, size, num_labels)
    file.skip(8 * max(0, num_pruned))
    rows = num_words + (bucket if num_pruned < 0 else num_pruned)
    (quantised,) = file.take("?")
    _matrix(file, quantised, rows, dim)
    (output_quantised,) = file.take("?")
    _matrix(file, quantised and output_quantised, num_labels, dim)
    if file.at != len(file.data):
        raise _Damaged(f"{len(file.data) - file.at} bytes are left after its end")
    return found


def _dictionary(file: _Bytes, size: int, num_labels: int) -> tuple[str, ...]:
    found: list[str] = []
    for _ in range(size):
        word = file.word()
        _, kind = file.take("qb")
        if kind == 1:
            try:
                found.append(word.decode())
            except UnicodeDecodeError:
                raise _Damaged("a label is not UTF-8") from None
        elif kind:
            raise _Damaged("an entry of its dictionary is neither a word nor a label")
    if len(found) != num_labels:
        raise _Damaged(f"it has {len(found)} labels and says {num_labels}")
    return tuple(found)


def _matrix(file: _Bytes, quantised: bool, rows: int, dim: int) -> None:
    """Go past a matrix, which must have at least `rows` rows and exactly `dim` columns."""
    norms = quantised and file.take("?")[0]
    height, width = file.take("qq")
    if height < rows or width != dim:
        raise _Damaged(f"a matrix has {height} x {width} numbers where {rows} x {dim} are needed")
    if not quantised:
        file.skip(4 * height * width)
        return
    (codes,) = file.take("i")
    file.skip(codes)
    parts = _quantiser(file, dim)
    if codes != height * parts:
        raise _Damaged("the sizes of a matrix do not fit each other")
    if norms:
        file.skip(height)
        _quantiser(file, 1)


def _quantiser(file: _Bytes, dim: int) -> int:
    """Go past a product quantiser. Returns the number of parts that a row is divided into."""
    width, parts, length, last = file.take("iiii")
    if width != dim or parts < 1 or length < 1 or (parts - 1) * length + last != width:
        raise _Damaged("the sizes of a matrix do not fit each other")
    file.skip(4 * width * 256)
    return parts


def try_out(path: Path) -> None:
    """Load the model in a process of its own, with a limit to memory and time. Raises ConfigError when that fails."""
    command = [sys.executable, "-m", __name__, str(path.resolve()), str(ROOM + 4 * path.stat().st_size)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{one_line(path)}: not a usable fastText model: loading takes longer than {SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = f"signal {-done.returncode}" if done.returncode < 0 else one_line(lines[-1] if lines else "no reason given")
        raise ConfigError(f"{one_line(path)}: not a usable fastText model: fastText fails on it ({reason})")


def main() -> None:
    """Load the model that is named first, within as many bytes of memory as are named second, and let it judge a text."""
    import fasttext

    with contextlib.suppress(ValueError, OSError):  # systems that know no such limit
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_AS)[1]))
    fasttext.load_model(sys.argv[1]).predict(["a b c"], k=1)


if __name__ == "__main__":
    main()
