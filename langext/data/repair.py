"""Repair text whose letters were decoded wrongly (mojibake). The one rule: only what looks wrongly decoded to ftfy changes."""

import re
from collections.abc import Iterator
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from ftfy import TextFixerConfig, fix_text
from ftfy.chardata import UTF8_CLUES

REPAIRED = "repaired"
"""Count: documents that were changed."""
_HOW = TextFixerConfig(
    unescape_html=False, fix_latin_ligatures=False, fix_character_width=False, uncurl_quotes=False, fix_line_breaks=False
)
"""Of what ftfy can do, only what mends damage: quotes, ligatures and wide letters are how people write."""
_ONE, _TWO, _THREE = (UTF8_CLUES[f"utf8_first_of_{length}"] for length in (2, 3, 4))
_REST = UTF8_CLUES["utf8_continuation"].replace(" ", "")
_CONTROL = r"\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufff9-\ufffd"
_SUSPECT = re.compile(
    rf"[{_ONE}{_TWO}{_THREE}{_CONTROL}]"  # all that it can begin with comes first, for speed
    rf"(?:(?<=[{_CONTROL}])|(?<=[{_ONE}])[{_REST}]|(?<=[{_TWO}])[{_REST}]{{2}}|(?<=[{_THREE}])[{_REST}]{{3}}|(?<=Ã) )"
)
"""What ftfy can mend has this: the bytes of a letter in UTF-8, read as letters of their own, or a control character. Letters
read as Mac OS Roman or code page 437 are not looked for, because their signs are ordinary text too."""


def repair(text: str) -> str:
    """The text with wrongly decoded letters mended and control characters removed, in the form NFC.

    See https://ftfy.readthedocs.io/en/latest/fixes.html. ftfy reads about 1 MB/s, so it sees only lines that may need it.
    """
    if not _SUSPECT.search(text):
        return text
    return "\n".join(fix_text(line, _HOW) if _SUSPECT.search(line) else line for line in text.split("\n"))


class Repair(PipelineStep):
    """Repairs every document."""

    name = "repair"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield every document, and count those that changed."""
        for document in data:
            mended = repair(document.text)
            if mended != document.text:
                self.stat_update(REPAIRED)
                document.text = mended
            yield document
