"""Write filtered documents. Rule: a file that is closed is on the disk, or an error says why not."""

import gzip
import os
from pathlib import Path
from typing import IO, Any

from datatrove.data import Document
from datatrove.io import OutputFileManager
from datatrove.pipeline.writers.jsonl import JsonlWriter
from fsspec.implementations.local import LocalFileSystem

from langext.data.halves import mend, mend_all

LEVEL = 2
"""How hard gzip tries, from 1 to 9: 9, its default, takes six times as long and saves a seventh."""


class _Files(OutputFileManager):
    """Gzipped files, the same bytes for the same text: no time and no name is written into them."""

    def get_file(self, filename: str) -> IO[Any]:
        """The open file of that name."""
        if filename not in self._output_files:
            below = self.fs.open(filename, mode="wb")
            self._output_files[filename] = gzip.GzipFile("", "wb", LEVEL, fileobj=below, mtime=0)
        return self._output_files[filename]


class Writer(JsonlWriter):
    """datatrove's writer of gzipped JSON Lines into a local folder.

    That one leaves the last buffer of every file to the garbage collector, so that nobody hears of a disk that is full then.
    """

    name = "writer"

    def __init__(self, folder: Path, file_name: str):
        # The file system is named, because a path may hold what fsspec takes for an address.
        super().__init__((str(folder.resolve()), LocalFileSystem()), file_name)
        self.output_mg = _Files(self.output_folder)

    def write(self, document: Document, rank: int = 0, **kwargs: Any) -> None:
        """Write a document. What stands in its name and metadata may come from a source as it is, with halves of characters."""
        document.text, document.id = mend(document.text), mend(document.id)
        document.metadata = mend_all(document.metadata)
        super().write(document, rank, **kwargs)

    def close(self) -> None:
        """Finish all files. Raises OSError when the disk does not take them."""
        below = [file.fileobj for file in self.output_mg.get_open_files().values()]
        super().close()
        for file in below:
            file.flush()
            os.fsync(file.fileno())
            file.close()
