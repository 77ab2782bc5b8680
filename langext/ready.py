"""What comes with langext as files and is found by name: pipelines, DeepSpeed configurations, formats of lm-eval tasks, and
the script of Slurm.

They are the folders `pipelines` and `configs` of the repository: `langext/ready_files` links to them, and a wheel holds the
files themselves in place of the links. So they are found wherever langext is installed and whatever the working directory is.
"""

from pathlib import Path

from langext.errors import ConfigError, Loc, user_path
from langext.spec import near

FOLDERS = Path(__file__).parent / "ready_files"


def names(kind: str, suffix: str) -> list[str]:
    """The names of all ready files of a kind (`pipelines`, `deepspeed`, `lm_eval`), such as quickstart and methods/lora."""
    folder = FOLDERS / kind
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob(f"*{suffix}"))


def find(kind: str, name: str, suffix: str, at: Loc = ()) -> Path:
    """The file that a user means: a path if there is such a file, else a ready one of this name.

    Raises ConfigError naming the ready ones; `at` is the key that is meant.
    """
    path = user_path(name, kind)
    if path.is_file():
        return path
    known = names(kind, suffix)
    if name in known:
        return FOLDERS / kind / f"{name}{suffix}"
    raise ConfigError(
        f"{name}: no such file, and none of this name comes with langext.{near(name, known)} There are: {', '.join(known)}.", at
    )
