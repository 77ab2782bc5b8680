"""Errors that users read, and the reading of files that users name.

The one rule: what a user got wrong is told in one line, with what, where and what was allowed; never with a traceback.
"""

import errno
import json
import os
import re
import signal
import tempfile
import traceback
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

Loc = tuple[str | int, ...]
"""Keys and list indices from the top of a file to a value."""
MAX_TEXT_BYTES = 10_000_000
"""Largest file of settings that is read."""
_LFS_SAID = "this is a Git LFS pointer, not the file itself; fetch the file with: git lfs pull"
PLACEHOLDERS = {
    b"version https://git-lfs.github.com/spec/": _LFS_SAID,
    b"version https://hawser.github.com/spec/": _LFS_SAID,
    b"/annex/objects/": "this is a pointer of git-annex, not the file itself; fetch the file with: git annex get",
    b"# xet version": "this is a pointer of Xet, not the file itself; fetch the file with: git xet, or hf download",
}
"""Beginning of a file that a program has put in place of a large one -> what is said of it. See
https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md and https://git-annex.branchable.com/internals/pointer_file/."""
_WEB_PAGES = (b"<!doctype html", b"<html")
_WEB_PAGE_SAID = "this is a web page, not the file itself: one that shows the file, asks to log in or says what failed"
_HEAD = 100
"""Bytes that tell a placeholder."""
SECRET_NAME = re.compile(r"\w+_(TOKEN|KEY|SECRET|PASSWORD)")
"""Names of environment variables that hold what nobody else may read."""
SECRETS = (
    re.compile(r"(?<=://)[^\s/@:]+:[^\s/@]*(?=@)|(?<=http://)[^\s/@]+(?=@)|(?<=https://)[^\s/@]+(?=@)"),
    re.compile(r"(?<=[?&])(x-(amz|goog)-(signature|security-token|credential)|\w*(token|secret|password|signature)|(api_?)?key"
               r"|sig)=[\w%.~+/=-]+", re.IGNORECASE),
    re.compile(r"\b(hf_[A-Za-z0-9]{30,}|gh[opsu]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|sk-[\w-]{30,}|AKIA[0-9A-Z]{16})\b"),
)  # fmt: skip
"""Passwords and tokens: in the address of a host, as a parameter of an address, and those of hub and clouds by their form."""


def printable(text: str) -> str:
    """The text with control characters, but for line feeds and tabs, as escapes: no file may steer the terminal. Passwords and
    tokens become ***, since what is printed is kept and shown to others.
    """
    plain = "".join(repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in text)
    return discreet(plain)


def holds_secret(text: str) -> bool:
    """Whether a text holds something that has the form of a password or a token."""
    return any(pattern.search(text) for pattern in SECRETS)


def discreet(text: str) -> str:
    """The text with *** for passwords and tokens: those that have the form of one, and those that the environment holds."""
    for name, value in os.environ.items():
        if len(value) >= 8 and SECRET_NAME.fullmatch(name):
            text = text.replace(value, "***")
    for pattern in SECRETS:
        text = pattern.sub("***", text)
    return text


class ConfigError(ValueError):
    """The user's input is wrong. The message says what is wrong, where, and what is allowed, so no traceback is needed."""

    def __init__(self, message: str, at: Loc = ()):
        super().__init__(printable(message))
        self.at = at
        """Location of the wrong key, from which `located` finds the line; empty when the error is not about a key."""
        self.each: tuple[ConfigError, ...] = (self,)
        """The mistakes that it stands for: itself, but for an error that was made of several."""

    @staticmethod
    def listed(messages: Sequence[str]) -> str:
        """One message as it is, several as a numbered list."""
        if len(messages) == 1:
            return messages[0]
        return "\n".join([f"{len(messages)} problems:", *(f"  {n}. {message}" for n, message in enumerate(messages, 1))])


class Mistakes:
    """Collects what the user wrote wrong, so that all of it is said at once."""

    def __init__(self) -> None:
        self.found: list[ConfigError] = []

    @contextmanager
    def part(self, *at: str | int) -> Iterator[None]:
        """A context that keeps a ConfigError for later. `at` leads from the top to what the context looks at.

        What has been said already is not said again.
        """
        try:
            yield
        except ConfigError as error:
            for one in error.each:
                self.add(ConfigError(str(one), (*at, *one.at)))

    def add(self, error: ConfigError) -> None:
        """Keep one more, unless it has been said."""
        if str(error) not in map(str, self.found):
            self.found.append(error)

    def end(self) -> None:
        """Raise one ConfigError for all that was found, if anything was."""
        if not self.found:
            return
        whole = ConfigError(ConfigError.listed([str(error) for error in self.found]))
        whole.at = next((error.at for error in self.found if error.at), ())
        whole.each = tuple(self.found)
        raise whole


class RunFailed(RuntimeError):
    """The work failed while it ran: a loss that is not finite, a full disk, an export that differs, a damaged file.

    The message says where, and how to go on. Everything that was finished before is kept.
    """

    exit_code = 4

    def __init__(self, message: str):
        super().__init__(printable(message))


class Stopped(RunFailed):
    """A signal other than Ctrl-C has asked work to end, and it has. The exit code is that of a shell, 128 + signal."""

    def __init__(self, what: str, number: int):
        name = signal.Signals(number).name
        super().__init__(
            f"{what} was stopped by {name}. Nothing half-done counts as done; run the same command again to go on."
        )
        self.exit_code = 128 + number

    @classmethod
    def by(cls, asked: Sequence[int], what: str) -> "Stopped | KeyboardInterrupt":
        """What to raise when these signals have asked for the end: KeyboardInterrupt for Ctrl-C."""
        return KeyboardInterrupt() if signal.SIGINT in asked else cls(what, asked[0])


EXIT_CONFIG = 2
"""Exit code after a ConfigError."""
EXIT_CONDITION = 3
"""Exit code when a condition of --fail-if is true."""
EXIT_RUN_FAILED = RunFailed.exit_code
"""Exit code after a RunFailed."""
EXIT_BUG = 70
"""Exit code after an error that langext does not know: a mistake in langext. The number is EX_SOFTWARE of sysexits.h."""


DISK = {
    errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "the disk is read-only",
    errno.EACCES: "no permission", errno.EPERM: "not permitted",
}  # fmt: skip
"""Failures of a disk that a user can do something about."""


def disk_problem(error: Exception) -> str:
    """What is wrong with the disk, and what to do; empty when the error is of another kind.

    The safetensors library tells the number of the system's error in its text alone: "... (os error 28)".
    """
    number = error.errno if isinstance(error, OSError) else None
    if type(error).__name__ == "SafetensorError" and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if number not in DISK:
        return ""
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    return f"{where}{DISK[number]}; mend that and run the same command again to go on"


def machine_problem(error: Exception) -> str:
    """What the machine lacks, and what to do: disk, memory, another process. Empty when the error is of another kind.

    PyTorch has classes of its own for GPUs and NCCL alone; on a CPU and from gloo it raises a RuntimeError that says so.
    """
    told, kind = str(error), type(error)
    if kind.__name__ == "OutOfMemoryError":
        return "the memory of the GPU is used up; lower runtime.micro_batch (results stay the same), or use ZeRO 2 or 3"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in told:
        return "the memory of this machine is used up; lower runtime.micro_batch (results stay the same)"
    if (kind.__module__.startswith("torch") and kind.__name__.startswith("Dist")) or "third_party/gloo" in told:
        return "another process of this stage has ended, or cannot be reached; what it printed says why"
    return disk_problem(error)


def bug(error: BaseException) -> str:
    """Save the traceback of an error that nothing else knows, and return one line that says where it is.

    The file is in the folder $LANGEXT_BUGS, or else in the system's folder for temporary files.
    """
    what = f"{type(error).__name__}: {discreet(reason(error))}. This is a mistake in langext; please report it"
    named = {"prefix": "langext-bug-", "suffix": ".txt", "dir": os.environ.get("LANGEXT_BUGS")}
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", errors="backslashreplace", delete=False, **named) as file:
            file.writelines(map(discreet, traceback.format_exception(error)))
    except OSError:
        return what
    return f"{what} with {file.name}"


def one_line(text: object) -> str:
    """A name or a path for a message: on one line, without control characters, at most about 200 letters."""
    plain = str(text)
    shown = plain if plain.isprintable() else repr(plain)[1:-1]
    return shown if len(shown) <= 200 else f"{shown[:90]}...{shown[-90:]}"


def user_path(text: str | Path, what: str) -> Path:
    """The path that a user wrote, with ~ expanded; nothing needs to be there.

    `what` says in the error where it was written: "key 'text'", "--out". Raises ConfigError, in one line, for text that can be
    no path: empty, with a NUL, too long, ~ of an unknown user, below a file, links in a circle, behind a closed folder.
    """
    if not str(text):
        raise ConfigError(f"{what}: the path is empty")
    path = Path(text)
    try:
        path = path.expanduser()
        path.stat()
    except FileNotFoundError:
        return path
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: the home folder of ~name is not known
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{what}: {one_line(text)} cannot be a path here: {reason}") from None
    return path


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """A context that reads the file or folder `path`, which a user named, with a library: `what` is what it should be.

    A failure of the machine becomes a RunFailed, every other one a ConfigError of one line with the path and the reason.
    Libraries raise errors of nearly every class for a damaged file, so all of them are taken; nothing else than the reading
    belongs into this context.
    """
    try:
        yield
    except (ConfigError, RunFailed):
        raise
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename or path}: no such file") from None
    except Exception as error:
        if not isinstance(error, MemoryError) and (problem := machine_problem(error)):
            raise RunFailed(problem) from None
        raise ConfigError(f"{path}: {_unreadable(path, what, error)}") from None


def _unreadable(path: Path, what: str, error: Exception) -> str:
    """Why a file that is there cannot be read."""
    if said := placeholder(path):
        return said
    if isinstance(error, json.JSONDecodeError):
        if error.doc.startswith("\ufeff"):
            return "begins with a byte order mark, and JSON has none; save it as UTF-8 without it"
        return f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"
    why = reason(error)
    if isinstance(error, RecursionError):
        why = "nested too deeply"
    elif isinstance(error, MemoryError):
        why = "it asks for more memory than there is"
    elif isinstance(error, UnicodeDecodeError):
        why = f"not UTF-8 text (byte {error.start})"
    return f"cannot be read as {what}: {why}"


def placeholder(path: Path) -> str:
    """What is said of a file that stands for another one, which was not downloaded; empty of any other."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return placeholder_of(file.read(_HEAD))


def placeholder_of(head: bytes, *, pages: bool = True) -> str:
    """The same of the first bytes of a file. Without `pages` a web page is a file like others."""
    if pages and head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_WEB_PAGES):
        return _WEB_PAGE_SAID
    return next((said for beginning, said in PLACEHOLDERS.items() if head.startswith(beginning)), "")


def cause(error: BaseException) -> str:
    """The class of an error of a library and what it says, and so of the one that caused it, which often says more."""
    said = [f"{type(one).__name__}: {one_line(one)}" for one in (error, error.__cause__) if one is not None]
    return ", from ".join(said)


def reason(error: BaseException) -> str:
    """What an error of a library says, on one line; the name of its class when it says nothing."""
    return one_line(" ".join(str(getattr(error, "strerror", None) or error).split())) or type(error).__name__


def read_text(path: Path, what: str) -> str:
    """The text of a small UTF-8 file that a user wrote; a byte order mark is no part of it. `what` is what it should be.

    Raises ConfigError when it is no file, is larger than MAX_TEXT_BYTES, or is not UTF-8.
    """
    path = user_path(path, what)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file" if not path.exists() else f"{path}: not a file that holds {what}")
    with reading(path, what):
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise ConfigError(f"{path}: too large for {what} that a person writes ({path.stat().st_size:,} bytes)")
        return path.read_text(encoding="utf-8-sig")
