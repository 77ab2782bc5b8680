"""Texts whose encoding an extended vocabulary must leave alone, those of the original languages and of code.

A new merge joins two neighbours. As long as no pair of neighbours of protected text is joined, no new token ever appears in it,
and so no later merge that has a new token for a part can apply there either. It is therefore enough to keep the pairs of base
tokens apart that stand side by side in protected text, and its encoding stays the same to the last id.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

TEMPLATE = "chat template"
"""The set of texts that `template` gives."""
ENOUGH = 1000
"""Protected documents from which on nothing is said of their number."""


def pairs(tokenizer: Tokenizer, words: Counter[str]) -> set[tuple[str, str]]:
    """The pairs of base tokens that are neighbours within a word of protected text; `words` as of `byte_bpe.word_counts`."""
    found: set[tuple[str, str]] = set()
    for word in words:
        found.update(itertools.pairwise(token.value for token in tokenizer.model.tokenize(word)))
    return found


def few(documents: int) -> str:
    """What is said of so many protected documents; empty where they are enough."""
    if documents >= ENOUGH:
        return ""
    return f"only {documents:,} protected documents: they say little of other text; {ENOUGH:,} or more do"


def template(tokenizer: Any) -> list[str]:
    """What the chat template of a tokenizer writes around messages, without special tokens; [] when it has none."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    divider = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")
    found: list[str] = []
    for roles in (("system", "user", "assistant"), ("user", "assistant"), ("user",)):
        messages = [{"role": role, "content": ""} for role in roles]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # no template, or one without this role: it is a program, and can fail in any way
            continue
        found += [part for part in divider.split(text) if part]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Identity:
    """How much of some text two tokenizers encode alike."""

    documents: int
    identical: int
    """Documents with the same ids, all of them and in the same order."""
    tokens: int
    """Of the base."""
    replaced: int
    """Tokens of the base that new tokens stand for in the extended encoding."""

    @property
    def share(self) -> float:
        """Share of the documents that are identical; 1 without documents."""
        return self.identical / self.documents if self.documents else 1.0


def identity(encoded: Iterable[tuple[Sequence[int], Sequence[int]]], spelt: Mapping[int, Sequence[int]]) -> Identity:
    """Compare the ids of documents by the base and by the extended tokenizer. `spelt` has the base ids of each new token."""
    documents = identical = tokens = replaced = 0
    for before, after in encoded:
        documents, tokens = documents + 1, tokens + len(before)
        identical += before == after
        replaced += sum(len(spelt[i]) for i in after if i in spelt)
    return Identity(documents, identical, tokens, replaced)
