"""Which classes may be in the pickled files of a checkpoint. DeepSpeed saves with torch.save, and would load anything.

The one rule: a checkpoint can come from a stranger, so nothing is made out of its files but tensors, plain values and the
classes named here. Loading anything else could run code: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import os
import pickle
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from torch import Tensor, serialization

from langext.errors import RunFailed

KNOWN = (
    "deepspeed.runtime.fp16.loss_scaler:LossScaler",
    "deepspeed.runtime.zero.config:ZeroStageEnum",
    "deepspeed.utils.tensor_fragment:fragment_address",
)
"""The classes that DeepSpeed puts into its files, besides those that torch knows itself. None of them does more than hold
values. `restrict` imports them, so DeepSpeed need not be imported for what only reads this file."""


MEND = "Remove this checkpoint and run the same command again, or start the stage over with --redo"
"""What to do about a checkpoint that is not read."""


def restrict() -> None:
    """From now on torch.load, also where DeepSpeed calls it, makes nothing but tensors, plain values and `KNOWN` classes.

    It holds for this process and for all that it starts, but these must name the classes again. The variable of torch counts
    more than the argument `weights_only=False`, with which DeepSpeed asks for everything.
    """
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    serialization.add_safe_globals([resolve_name(name) for name in KNOWN])


def check(folder: Path) -> None:
    """Raise RunFailed, with the file and the name, when a file below `folder` holds something that may not be loaded.

    All files that DeepSpeed would load are looked through without loading them.
    """
    known = {name.replace(":", ".") for name in KNOWN}
    for path in sorted(folder.rglob("*.pt")):
        with reading(path):
            unknown = set(serialization.get_unsafe_globals_in_checkpoint(path)) - known
        if unknown:
            raise RunFailed(
                f"{path}: asks for {min(unknown)}, which is in no checkpoint of langext and is not loaded: the file is "
                f"damaged, or somebody has put it there. {MEND}"
            )


def weight(held: Mapping[str, Any], name: str, like: Tensor, checkpoint: Path) -> Tensor:
    """The weight `name` of those that a checkpoint held, in the shape of `like`.

    Raises RunFailed when it is missing or has another size.
    """
    value = held.get(name)
    if not isinstance(value, Tensor) or value.numel() != like.numel():
        raise RunFailed(f"{checkpoint}: does not hold the weight {name} of this model. {MEND}")
    return value.reshape(like.shape)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A context in which pickled files are read. RunFailed, in one line, for a file that is damaged or may not be loaded."""
    try:
        yield
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, struct.error, RuntimeError) as error:
        # torch names its own reader in the RuntimeError for a damaged file. Others, such as full memory, are not of the file.
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        raise RunFailed(f"{path}: cannot be read: {reason(str(error))}. {MEND}") from None


def reason(text: str) -> str:
    """What a long error text says, on one line: the class that may not be loaded, if it is about one, else its last line."""
    if unknown := re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", text):
        return f"it asks for {unknown[1]}, which is not loaded"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it is damaged"
