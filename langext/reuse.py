"""Finished stages of other runs, taken instead of done again where their recipe is the same.

A stage that is taken is a symbolic link to the folder of the run that did it: nothing is copied, and `ls -l` shows whose it is.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langext.artifacts import BASE, MANIFEST, read_json


def stage(out: Path, fingerprint: str, others: Sequence[Path]) -> dict[str, Any] | None:
    """The manifest of a finished stage of this fingerprint in one of the runs `others`, to which `out` now leads; or None."""
    for root in others:
        for found in sorted(root.glob(f"[0-9][0-9]-*/{MANIFEST}")):
            manifest = read_json(found)
            if manifest["fingerprint"] == fingerprint:
                _lead(out, found.parent)
                return manifest
    return None


def base(out: Path, identity: dict[str, Any], others: Sequence[Path]) -> None:
    """Let `out` lead to the prepared base of one of the runs `others`, if it is the same base and `out` is not there."""
    clear(out)
    if out.exists():
        return
    for root in others:
        if (root / BASE / MANIFEST).exists() and read_json(root / BASE / MANIFEST)["identity"] == identity:
            return _lead(out, root / BASE)


def clear(out: Path) -> None:
    """Remove a link to what is not finished any more: the run that did the stage has been deleted, or does it again."""
    if out.is_symlink() and not (out / MANIFEST).exists():
        out.unlink()


def _lead(out: Path, home: Path) -> None:
    out.symlink_to(os.path.relpath(home.resolve(), out.parent.resolve()), target_is_directory=True)
