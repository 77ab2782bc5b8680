"""The base class of all filters of text. The one rule: a filter is a frozen configuration that judges one text at a time."""

from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from langext.data.word_units import WordUnits
from langext.spec import Spec
from langext.text_summaries import LanguageRecord


class TextFilter(Spec):
    """One filter. A subclass adds `name: Literal["..."]`, its own fields, and `reason`."""

    name: Any

    def reason(self, text: str) -> str:
        """Why a text is dropped, in one word with underscores, which becomes its count in the funnel; empty to keep it."""
        raise NotImplementedError

    def step(self, units: WordUnits, language: LanguageRecord, rejects: DiskWriter) -> BaseFilter:
        """The step that does it, for filters that need to know the language, or that change text."""
        return Judge(self, rejects)


class Judge(BaseFilter):
    """Drops what a filter has a reason for."""

    name = "quality"

    def __init__(self, by: TextFilter, rejects: DiskWriter):
        super().__init__(rejects)
        self.by = by

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True, or False and the reason."""
        reason = self.by.reason(doc.text)
        return (False, reason) if reason else True
