"""The values of quality rules that FineWeb-2 publishes for a language, read from a copy of its folder `configs`.

The one rule: they are applied as FineWeb-2 applies them (https://arxiv.org/abs/2506.20920, section 3.5;
https://github.com/huggingface/fineweb-2/blob/main/fineweb-2-pipeline.py), or not at all. None of them comes with langext.
"""

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from langext import languages
from langext.artifacts import first_problem
from langext.console import say
from langext.errors import ConfigError, one_line, read_text
from langext.spec import parse
from langext.text_summaries import QualityValues


def find(folder: Path, code: str) -> Path | None:
    """The file of a language, under any of its codes; None when there is none.

    Raises ConfigError when `folder` is no folder with such files.
    """
    names = sorted(path.stem for path in folder.glob("*_*.yml")) if folder.is_dir() else []
    if not names:
        raise ConfigError(
            f"quality_values: {one_line(folder)} is no folder with files as swh_Latn.yml; it should be the folder configs of "
            "a copy of https://github.com/huggingface/fineweb-2"
        )
    try:
        return folder / f"{languages.label_of(languages.find(code), names)}.yml"
    except ConfigError:
        return None


def of(folder: Path, code: str) -> QualityValues | None:
    """The values of a language; None when there are none. Raises ConfigError when they are not complete, or as `find` does."""
    if not (path := find(folder, code)):
        return None
    try:
        return QualityValues.model_validate(parse(read_text(path, "YAML"), str(path), "safe"))
    except ValidationError as error:
        raise ConfigError(f"quality_values: {one_line(path)}: {first_problem(error)}") from None


def check(folder: Path, codes: Iterable[str]) -> None:
    """Say for which of these languages there are no values. Raises ConfigError when there are no languages, or as `of` does."""
    for code in (judged := list(dict.fromkeys(codes))):
        if of(folder, code) is None:
            say(f"quality_values: {one_line(folder)} has no values for {code}; they are found in its text")
    if not judged:
        raise ConfigError("quality_values: no source has quality: web, so nothing would be judged by them; leave them out")
