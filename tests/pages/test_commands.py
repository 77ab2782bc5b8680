"""Every command that the pages show is one of the program that it names, and a test runs it or the page says what it needs.

Nothing of it is run here: words are given to the parser of each program, and no further.
"""

import argparse
import ast
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from langext.cli import app

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TABLES = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```+([^\n`]*)\n(.*?)^```+", re.DOTALL | re.MULTILINE)
SHELL, OTHERS = ("", "bash"), ("yaml", "python", "text", "json")
MARKS = ("a GPU", "the hub", "Docker", "another program", "long")
"""What a command may need that no test has."""
ENDS = ("|", ">", "&&")
SCRIPTS = {"certify.py": "langext/evaluation/certify.py"}
"""Files that lie in an exported folder -> the file that they are copies of."""


class Parsed(Exception):
    """The words were understood."""


def shown(page: Path) -> Iterator[str]:
    """The commands in the fenced and in the indented code of a page, a line each, without what is a choice ([...])."""
    text = page.read_text(encoding="utf-8")
    blocks = [code for language, code in FENCE.findall(text) if language in SHELL]
    indented = re.findall(r"^    (langext .*)$", FENCE.sub("", text), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", "\n".join([*blocks, *indented])).splitlines():
        if line.strip():
            yield re.sub(r"\[(--[^\]]*)\]", r"\1", re.sub(r"<[^>]*>", "x", line))


def words_of(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    for end in ENDS:
        words = words[: words.index(end)] if end in words else words
    return [words[0].removeprefix(".venv/bin/"), *words[1:]]


LINES = [(page, line) for page in PAGES for line in shown(page)]


@cache
def rows(heading: str) -> dict[str, str]:
    """Beginning of a command -> the last column of its row, of the table below a heading of docs/commands.md."""
    part = TABLES[TABLES.index(f"## {heading}") :].split("\n## ")[0]
    found = re.findall(r"^\| (`.+?`) \| [^|]* \| (.+?) \|$", part, flags=re.MULTILINE)
    return {name: last for names, last in found for name in re.findall(r"`([^`]+)`", names)}


RUN, OTHER = "What a command needs, and which test runs it", "Other programs in these pages"


def understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise AssertionError unless the program takes these words."""
    program, *rest = words
    if program == "langext":
        langext(rest)
    elif program == "sbatch":
        job = next(number for number, word in enumerate(rest) if not word.startswith("--"))
        assert (ROOT / rest[job]).is_file()
        langext(["run", *rest[job + 1 :]])
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program == "python" and rest[0] != "-m":
        script(ROOT / SCRIPTS.get(rest[0], rest[0]), rest[1:], monkeypatch)
    elif rest[:2] == ["-m", "tokenizer_tools"]:
        script(ROOT / "tokenizer_tools" / "__main__.py", rest[2:], monkeypatch)


def langext(words: list[str]) -> None:
    command, name = get_command(app.app), "langext"
    while isinstance(command, TyperGroup):
        name, *words = words
        assert name in command.commands
        command = command.commands[name]
    command.make_context(name, [*words])  # raises for options and arguments that the command does not have; empties the list


def script(path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give words to a script up to the end of its parsing."""
    if "argparse" not in path.read_text(encoding="utf-8"):
        assert not words, f"{path.name} takes no words"
        return
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, given: Any = None, namespace: Any = None) -> None:
        try:
            parse(parser, given, namespace)
        except SystemExit as end:
            assert not end.code, f"{path.name} does not take {words}"
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    monkeypatch.syspath_prepend(str(path.parent))
    with pytest.raises(Parsed):
        runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_program_takes_the_words_that_a_page_gives_it(page, monkeypatch):
    for line in shown(page):
        words = words_of(line)
        try:
            understood(words, monkeypatch)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{line}: {error!r}")
        for word in words[1:]:
            if re.match(r"(pipelines|configs|benchmarks|tests)/", word):
                assert (ROOT / word).exists(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_no_command_says_what_it_is(page):
    kinds = {kind for kind, _ in FENCE.findall(page.read_text(encoding="utf-8"))}
    assert kinds <= {*SHELL, *OTHERS}


def test_every_command_shown_is_run_by_a_test_or_says_what_it_needs():
    known = re.compile("|".join(re.escape(name) for name in [*(f"langext {name}" for name in rows(RUN)), *rows(OTHER)]))
    lines = [" ".join(words_of(line)) for _, line in LINES]
    unknown = [line for line in lines if not (found := known.match(line)) or line[found.end() : found.end() + 1] not in " /"]
    assert unknown == [] and len(LINES) > 80


def test_a_command_that_nobody_knows_is_found(tmp_path, monkeypatch):
    page = tmp_path / "x.md"
    page.write_text(
        "```\nlangext plna x.yaml\n```\n```yaml\nname: x\n```\n"
        "    langext run x.yaml --othr\n```bash\npython a.py \\\n  b\n```\n"
    )
    assert list(shown(page)) == ["langext plna x.yaml", "python a.py b", "langext run x.yaml --othr"]
    for line in ("langext plna x.yaml", "langext run x.yaml --othr", "make nothing", "python benchmarks/methods.py --stepz 3",
                 "python -m tokenizer_tools adit BASE"):  # fmt: skip
        with pytest.raises(BaseException):  # noqa: B017  # each parser has errors of its own
            understood(words_of(line), monkeypatch)


def called(file: Path) -> set[str]:
    """The words with which calls and lists of words begin in a test, in the order of the command line."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        given = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.List | ast.Tuple) else []
        found |= {str(first.value) for first in given[:1] if isinstance(first, ast.Constant)}
    return found


def test_every_command_of_langext_is_called_by_the_test_of_its_row():
    group = get_command(app.app)
    assert isinstance(group, TyperGroup) and isinstance(data := group.commands["data"], TyperGroup)
    assert rows(RUN).keys() == (group.commands.keys() - {"data"}) | {f"data {name}" for name in data.commands}
    for name, file in rows(RUN).items():
        assert name.split()[-1] in called(ROOT / file.strip("`")), f"{file} does not call {name}"


def test_other_programs_are_named_in_a_test_or_marked():
    for name, last in rows(OTHER).items():
        if file := re.fullmatch(r"`(\S+)`", last):
            assert Path(name.split()[-1]).name in (ROOT / file[1]).read_text(encoding="utf-8"), name
        else:
            assert last.removeprefix("not run: ") in MARKS, name
