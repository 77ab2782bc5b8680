"""Links, anchors and commands of the pages: README, docs/ and the pages of the top level."""

import re
import shlex
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from langext.cli import app

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^(```+)[^\n]*\n(.*?)^\1", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """The page without its fenced code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts and mkdocs make them."""
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} (.+)$", prose(page), flags=re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        found.add(re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-"))
    return found


def broken(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    wrong = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


def commands(page: Path) -> list[str]:
    """The commands of langext in the fenced and in the indented code of a page."""
    text = page.read_text(encoding="utf-8")
    indented = re.findall(r"^    (langext .*)$", prose(page), flags=re.MULTILINE)
    code = "\n".join([*(block for _, block in FENCE.findall(text)), *indented])
    return re.findall(r"^(?:\.venv/bin/)?langext (.+)$", re.sub(r"\\\n\s*", "", code), flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert broken(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page = tmp_path / "a.md"
    page.write_text(
        "# One `two`\n[x](#one-two) [y](#three) [z](gone.md) [w](https://example.org)\n```\n[v](not-a-link.md)\n```\n"
    )
    assert broken(page) == ["#three", "gone.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_those_of_the_program(page):
    group = get_command(app.app)
    for line in commands(page):
        if "<" in line:
            line = re.sub(r"<[^>]*>", "x", line)
        words = shlex.split(line, comments=True)
        for end in ("|", ">", "&&"):
            words = words[: words.index(end)] if end in words else words
        command, name = group, "langext"
        while hasattr(command, "commands"):
            name, *words = words
            assert name in command.commands, line
            command = command.commands[name]
        command.make_context(name, words)  # raises for options and arguments that the command does not have
        for word in words:
            if re.match(r"(pipelines|configs)/", word):
                assert (ROOT / word).is_file(), line


def test_commands_are_found():
    assert len([line for page in PAGES for line in commands(page)]) > 50
    assert commands(ROOT / "README.md")


def test_every_command_is_in_the_table_of_what_runs_it():
    """And the test that is named there has the name of the command in it."""
    rows = re.findall(r"^\| (`.+?`) \| [^|]+ \| `(\S+)` \|$", (ROOT / "docs" / "commands.md").read_text(), flags=re.MULTILINE)
    runs = {name: file for names, file in rows for name in re.findall(r"`([^`]+)`", names)}
    group = get_command(app.app)
    assert isinstance(group, TyperGroup) and isinstance(data := group.commands["data"], TyperGroup)
    assert runs.keys() == (group.commands.keys() - {"data"}) | {f"data {name}" for name in data.commands}
    for name, file in runs.items():
        assert re.search(rf"\b{name.split()[-1]}\b", (ROOT / file).read_text(encoding="utf-8")), name
