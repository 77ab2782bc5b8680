"""docs/troubleshooting.md quotes messages as the code writes them."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [message for message in re.findall(r"^\| `([^`]+)` \|", PAGE, flags=re.MULTILINE)]


def texts(code: str) -> list[str]:
    """The pieces of text of a module on one line each; `…` stands for what is put into them."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return [" ".join(text.split()) for text in found]


SAID = [text for path in (ROOT / "langext").rglob("*.py") for text in texts(path.read_text(encoding="utf-8"))]


def unknown(messages: list[str]) -> list[str]:
    """The messages that no piece of text of the code holds."""
    return [message for message in messages if not any(message.strip() in said for said in SAID)]


def test_every_message_of_the_page_is_one_of_the_code():
    assert len(QUOTED) > 50
    assert unknown(QUOTED) == []


def test_a_message_that_nobody_says_is_found():
    assert unknown(["the disk is full", "the disk is on fire"]) == ["the disk is on fire"]
