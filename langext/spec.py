"""Typed configuration: turns YAML text into frozen pydantic objects, with errors that name the line.

The one rule: every setting in langext is a field of a `Spec`. There is no second configuration layer: the object that is
validated is the object that runs, so `width: 64` in a pipeline file is `self.width` in the code.
"""

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from langext.errors import ConfigError, Loc, holds_secret, read_text, reason

S = TypeVar("S", bound="Spec")


class _Later:
    """The type of `LATER`."""


LATER = _Later()
"""Marks a field that was added when runs without it already existed: `ema: Annotated[float | None, LATER] = None`.

The default of the field must give the same results as before the field existed. `Spec.recipe` then leaves the default out, so
old runs keep their fingerprint.
"""


class Spec(BaseModel):
    """Base class of every configuration object: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _machine_integer(cls, value: Any) -> Any:
        """What counts in 64 bits (sizes, seeds, limits) fails late and badly with a larger number."""
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("an integer of more than 64 bits")
        return value

    def recipe(self) -> dict[str, Any]:
        """The fields that decide the result, as plain values: all fields, except those marked LATER that have their default."""
        plain = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if LATER in field.metadata and value == field.get_default(call_default_factory=True):
                del plain[name]
            elif isinstance(value, Spec):
                plain[name] = value.recipe()
            elif isinstance(value, list | tuple):
                pairs = zip(value, plain[name], strict=True)
                plain[name] = [entry.recipe() if isinstance(entry, Spec) else shown for entry, shown in pairs]
        return plain


class Benchmarks(Spec):
    """The lm-eval tasks that one stage measures."""

    tasks: list[str]
    include_path: Path | None = None
    """Folder with the user's own task files."""


Line = Annotated[str, Field(pattern=r"^[^\n\r<>|`]*$")]
"""Text that stays what it is in a line or a table of Markdown."""


class Summary(Spec):
    """Subclass it and add `of: Literal["..."] = "..."`. What was measured may be nan or inf: such a record must be readable."""

    model_config = ConfigDict(allow_inf_nan=True)

    of: Any
    """Says which summary this is, in the manifest."""


def near(word: str, options: Iterable[str]) -> str:
    """' Did you mean a, b?' with the options most similar to `word`; an empty string when none is similar."""
    close = difflib.get_close_matches(word, list(options), n=3, cutoff=0.6)
    return f" Did you mean {', '.join(close)}?" if close else ""


def load(path: Path, cls: type[S], overrides: Sequence[str] = ()) -> S:
    """Read the file `path`, apply overrides (`a.b=value`) and validate as `cls`. Raises ConfigError, one line per problem."""
    text = read_text(path, "YAML")
    # Parsed twice: `doc` knows the lines for error messages, `plain` has plain values for pydantic.
    plain = parse(text, str(path), "safe")
    doc = parse(text, str(path), "rt")
    if not isinstance(plain, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {type(plain).__name__}")
    set_at: dict[Loc, str] = {}
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item}: expected key=value, for example train.steps=10")
        where = assign(plain, key.split("."), parse(value, f"--set {item}", "safe"), item)
        set_at[where] = f"--set {item}"
    _check_secrets(plain, path, doc, set_at)
    try:
        return cls.model_validate(plain)
    except ValidationError as error:
        # A default that depends on another key is not called when that key is wrong, and only the key is worth a line.
        errors = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
        problems = [_problem(e, cls, doc, set_at) for e in errors]
        raise ConfigError(f"{path}: {len(problems)} problem(s)\n" + "\n".join(problems)) from None


def _check_secrets(plain: Any, path: Path, doc: Any, set_at: dict[Loc, str]) -> None:
    """Raise ConfigError for a password or a token: what is written here goes into runs, reports and model cards."""
    rest: list[tuple[Loc, Any]] = [((), plain)]
    while rest:
        loc, value = rest.pop()
        if isinstance(value, str) and holds_secret(value):
            where = next((text.partition("=")[0] for at, text in set_at.items() if _within(at, loc)), "")
            raise ConfigError(
                f"{path}: {where or f'line {_trace(doc, loc)[0]}'}: {'.'.join(map(str, loc))}: write no password or token into "
                "a pipeline, which runs, reports and model cards quote. Libraries take theirs from the environment or their "
                "own files; what a signed address gives can be piped in (path: -)"
            )
        if isinstance(value, dict):
            rest += [((*loc, key), part) for key, part in value.items()]
        elif isinstance(value, list):
            rest += [((*loc, number), part) for number, part in enumerate(value)]


MAX_VALUES = 100_000
"""Most values in a file of settings, each alias counted as what it stands for."""


def parse(text: str, where: str, kind: str) -> Any:
    """Parse YAML 1.2: `no` stays the string "no" (Norwegian), `3e-4` is a number, duplicate keys are errors.

    `where` is named in the ConfigError for invalid YAML, and for aliases that stand for more than MAX_VALUES values. `kind` is
    ruamel's "rt" (keeps line numbers) or "safe" (plain values).
    """
    try:
        value = YAML(typ=kind, pure=True).load(StringIO(text))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f": line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{where}{line}: not valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{where}: not valid YAML: nested too deeply") from None
    except (ValueError, TypeError, AttributeError, AssertionError) as error:  # numbers and keys that YAML allows, Python not
        raise ConfigError(f"{where}: not valid YAML: {reason(error)}") from None
    if kind == "safe":
        _bounded(value, where)
    return value


def _bounded(value: Any, where: str) -> None:
    """Raise ConfigError when `value` has more than MAX_VALUES parts, as it has when it contains itself."""
    rest, count = [value], 0
    while rest:
        part = rest.pop()
        count += 1
        if count > MAX_VALUES:
            raise ConfigError(f"{where}: more than {MAX_VALUES:,} values; do aliases (*name) stand for one another?")
        if isinstance(part, dict):
            rest += part.values()
        elif isinstance(part, list):
            rest += part


def assign(node: Any, keys: list[str], value: Any, shown: str) -> Loc:
    """Set the value at the nested `keys` of `node`, in place, and return its location.

    In a list of stages a key selects the stage of that name. Raises ConfigError, which quotes `shown`, for a key that names
    nothing.
    """
    loc: list[str | int] = []
    if isinstance(node, dict) and keys[0] not in node and isinstance(node.get("stages"), list):
        named = [s.get("name") or s.get("uses") for s in node["stages"] if isinstance(s, dict)]
        if keys[0] in named:  # `train.lr=1e-4` is short for `stages.train.lr=1e-4`
            node, loc = node["stages"], ["stages"]
        elif len(keys) > 1:
            raise ConfigError(f"--set {shown}: no stage named {keys[0]!r}; stages: {', '.join(map(str, named))}.")
    for key in keys[:-1]:
        part: str | int = _index(node, key, shown) if isinstance(node, list) else key
        if isinstance(node, dict):
            node.setdefault(key, {})
        node = node[part]  # type: ignore[index]
        loc.append(part)
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {shown}: {key!r} is a plain value, it has no keys below it")
    last: Any = _index(node, keys[-1], shown) if isinstance(node, list) else keys[-1]
    node[last] = value
    return (*loc, last)


def _index(items: list[Any], key: str, shown: str) -> int:
    names = [s.get("name") or s.get("uses") if isinstance(s, dict) else str(i) for i, s in enumerate(items)]
    if key in map(str, range(len(items))):
        return int(key)
    if names.count(key) != 1:
        raise ConfigError(f"--set {shown}: {key!r} must name one entry of the list; it has: {', '.join(map(str, names))}.")
    return names.index(key)


def _problem(error: Any, cls: type[Spec], doc: Any, set_at: dict[Loc, str]) -> str:
    loc: Loc = error["loc"]
    line, written = _trace(doc, loc)
    where = next((text for at, text in set_at.items() if _within(at, loc)), f"line {line}")
    name = ".".join(str(p) for p in written) or "."
    if error["type"] == "extra_forbidden":
        allowed = fields_at(cls, loc[:-1])
        what = f"unknown key {loc[-1]!r}.{near(str(loc[-1]), allowed)} Allowed: {', '.join(sorted(allowed))}."
    elif error["type"] == "union_tag_invalid":
        tags = [t.strip().strip("'") for t in error["ctx"]["expected_tags"].split(",")]
        kind, tag = error["ctx"]["discriminator"].strip("'"), error["ctx"]["tag"]
        what = f"unknown {kind} {tag!r}.{near(tag, tags)}"
        what += f" Known: {', '.join(tags)}."
    elif error["type"] == "missing":
        what = f"key {loc[-1]!r} is required"
    else:
        what = f"{error['msg'].removeprefix('Value error, ')}"
        if error["type"] != "value_error":
            what += f" (got {_shown(error['input'])})"
    return f"  {where}: {name:.80}: {what:.600}"


def _shown(value: Any) -> str:
    """A value as a person writes it, cut to 60 letters."""
    try:
        return f"{reprlib.repr(value):.60}"
    except ValueError:  # Python does not write out numbers of more than 4,300 digits
        return "a number of thousands of digits"


def located(error: ConfigError, path: Path, overrides: Sequence[str] = ()) -> str:
    """The message of the error. If it is about a key, the file and the line, or the override that set the key, come first.

    Of an error for several mistakes, a numbered list of these.
    """
    if len(error.each) > 1:
        return ConfigError.listed([located(one, path, overrides) for one in error.each])
    if not error.at:
        return str(error)
    doc, plain = (parse(read_text(path, "YAML"), str(path), kind) for kind in ("rt", "safe"))
    for item in overrides:
        key, _, value = item.partition("=")
        at = assign(plain, key.split("."), parse(value, item, "safe"), item)
        if at[: len(error.at)] == error.at or error.at[: len(at)] == at:
            return f"{path}: --set {item}: {error}"
    return f"{path}: line {_trace(doc, error.at)[0]}: {error}"


def _within(at: Loc, loc: Loc) -> bool:
    """True when `at` occurs in `loc`, not counting the union tags that pydantic adds to `loc`."""
    rest = iter(loc)  # `in` below moves this iterator forward, so the parts must occur in order
    return all(part in rest for part in at)


def _trace(doc: Any, loc: Loc) -> tuple[int, list[str | int]]:
    """The line of a pydantic error location, from 1, and the location without the union tags, which are not in the file."""
    line, written = 0, []
    for i, part in enumerate(loc):
        try:
            line = (doc.lc.key(part) if hasattr(doc, "keys") else doc.lc.item(part))[0]
            doc = doc[part]
            written.append(part)
        except (KeyError, IndexError, AttributeError, TypeError):
            if i == len(loc) - 1:
                written.append(part)
    return line + 1, written


def fields_at(cls: Any, loc: Loc) -> list[str]:
    """Names of the fields that are allowed at a pydantic error location inside `cls`."""
    for part in loc:
        members = _members(cls)
        if isinstance(part, int):
            cls = get_args(cls)[0] if get_args(cls) else cls
            continue
        tagged = [m for m in members if any(part in get_args(f.annotation) for f in m.model_fields.values())]
        if len(members) > 1 and tagged:
            cls = tagged[0]
        elif members and part in members[0].model_fields:
            cls = members[0].model_fields[part].annotation
    members = _members(cls)
    return list(members[0].model_fields) if members else []


def _members(annotation: Any) -> list[type[Spec]]:
    """The Spec classes in an annotation, which is a class, a union, or a list of these."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [m for arg in get_args(annotation) for m in _members(arg)]
