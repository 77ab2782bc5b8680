"""Filter length: drops short and long documents. Lengths are in characters, so that they mean the same in every script."""

from typing import Literal

import regex
from pydantic import Field

from langext.data.filters.base import TextFilter

_CHARACTER = regex.compile(r"\X")


class Length(TextFilter):
    """Keep documents of a certain length."""

    name: Literal["length"]
    min_characters: int = Field(0, ge=0)
    """Least characters, as readers count them (a letter with its accents is one)."""
    max_characters: int | None = Field(None, ge=1)
    """Most characters; no limit when not given."""

    def reason(self, text: str) -> str:
        """too_short, too_long or nothing."""
        # Counting characters takes time, and there are never more of them than code points.
        if len(text) < self.min_characters or sum(1 for _ in _CHARACTER.finditer(text)) < self.min_characters:
            return "too_short"
        most = self.max_characters
        return "too_long" if most and len(text) > most and sum(1 for _ in _CHARACTER.finditer(text)) > most else ""
