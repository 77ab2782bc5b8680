"""Hooks of mkdocs: files of the repository that the pages link to are part of the site, and so is a page of all keys.

The one rule: a link is right on a code host and on the site. Pages say `../pipelines/quickstart.yaml`, which lies outside of
docs/, so the site gets a copy at `pipelines/quickstart.yaml`, and the pages of the top level get the site's own paths.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from langext.cli import doctor

ROOT = Path(__file__).parent.parent
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
"""Pages of the top level that are pages of the site too."""
OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages of the top level, every file outside of docs/ that a page links to, and a page of all keys."""
    linked = {path for page in (ROOT / "docs").glob("*.md") for path in OUTSIDE.findall(page.read_text(encoding="utf-8"))}
    for path in sorted({*PAGES, *linked}):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "fields.md", content=doctor.page()))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page with links as they are on the site."""
    if page.file.src_uri in PAGES:
        return markdown.replace("](docs/", "](")
    return OUTSIDE.sub(r"](\1", markdown)
