"""Write filtered documents. Rule: a file that is closed is on the disk, or an error says why not."""

import os
from pathlib import Path

from datatrove.pipeline.writers.jsonl import JsonlWriter
from fsspec.implementations.local import LocalFileSystem


class Writer(JsonlWriter):
    """datatrove's writer of gzipped JSON Lines into a local folder.

    That one leaves the last buffer of every file to the garbage collector, so that nobody hears of a disk that is full then.
    """

    name = "writer"

    def __init__(self, folder: Path, file_name: str):
        # The file system is named, because a path may hold what fsspec takes for an address.
        super().__init__((str(folder.resolve()), LocalFileSystem()), file_name)

    def close(self) -> None:
        """Finish all files. Raises OSError when the disk does not take them."""
        below = [file.fileobj for file in self.output_mg.get_open_files().values()]
        super().close()
        for file in below:
            file.flush()
            os.fsync(file.fileno())
            file.close()
