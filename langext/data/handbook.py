"""The Debian Administrator's Handbook as plain text: one book in many languages, one HTML page a section."""

from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

ROOT = "usr/share/doc/debian-handbook/html"
_SKIP = {"pre", "script", "style", "head", "table"}
_BREAK = {"div", "p", "h1", "h2", "h3", "h4", "h5", "li", "ul", "ol", "dt", "dd", "dl", "blockquote"}
_VOID = {"img", "br", "hr", "meta", "link", "input"}


class _Prose(HTMLParser):
    """Collects paragraphs; leaves out code listings, tables and navigation."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._text: list[str] = []
        self._skipping: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            return
        if self._skipping or tag in _SKIP or "docnav" in (dict(attrs).get("class") or "") or ("id", "title") in attrs:
            self._skipping.append(tag)
        elif tag in _BREAK:
            self._end()

    def handle_endtag(self, tag: str) -> None:
        if self._skipping:
            if tag == self._skipping[-1]:
                self._skipping.pop()
        elif tag in _BREAK:
            self._end()

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._text.append(data)

    def _end(self) -> None:
        text = " ".join("".join(self._text).split())
        self._text = []
        if text:
            self.paragraphs.append(text)


def pages(tree: Path, edition: str) -> Iterator[dict[str, str]]:
    """The pages of one edition (fr-FR, en-US, ...) of an unpacked package, as {"id", "text"}.

    Paragraphs are apart by a blank line; those that stand on more than a tenth of the pages (navigation) are left out.
    """
    found = {}
    for path in sorted((tree / ROOT / edition).glob("*.html")):
        prose = _Prose()
        prose.feed(path.read_text(encoding="utf-8"))
        prose.close()
        found[path.stem] = prose.paragraphs
    seen = Counter(paragraph for paragraphs in found.values() for paragraph in set(paragraphs))
    for stem, paragraphs in found.items():
        text = "\n\n".join(p for p in paragraphs if seen[p] <= max(1, len(found) / 10))
        if text:
            yield {"id": f"{edition}/{stem}", "text": text}
