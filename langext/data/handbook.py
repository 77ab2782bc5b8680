"""Read the Debian Administrator's Handbook as plain text. It is one book in many languages, with one HTML page per section."""

from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

ROOT = "usr/share/doc/debian-handbook/html"
_SKIP = {"pre", "script", "style", "head", "table"}
_BREAK = {"div", "p", "h1", "h2", "h3", "h4", "h5", "li", "ul", "ol", "dt", "dd", "dl", "blockquote"}
_VOID = {"img", "br", "hr", "meta", "link", "input"}


class _Prose(HTMLParser):
    """Collects the paragraphs of a page, without code listings, tables and navigation."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._text: list[str] = []
        self._skipping: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:  # has no end tag, so it would never leave the stack of skipped tags
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
    """Yield the pages of one edition (fr-FR, en-US, ...) from an unpacked package, as {"id", "text"}.

    A blank line separates paragraphs. A paragraph that appears on more than a tenth of the pages is navigation and left out.
    """
    by_page = {}
    for path in sorted((tree / ROOT / edition).glob("*.html")):
        prose = _Prose()
        prose.feed(path.read_text(encoding="utf-8"))
        prose.close()
        by_page[path.stem] = prose.paragraphs
    num_pages = Counter(paragraph for paragraphs in by_page.values() for paragraph in set(paragraphs))
    for stem, paragraphs in by_page.items():
        text = "\n\n".join(p for p in paragraphs if num_pages[p] <= max(1, len(by_page) / 10))
        if text:
            yield {"id": f"{edition}/{stem}", "text": text}
