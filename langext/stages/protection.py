"""The text whose encoding stage extend_tokenizer leaves alone, and what is recorded of it.

The one rule: every document of it is compared when the new tokenizer is written, before anything is computed from that.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from langext.artifacts import Corpus
from langext.console import say, warn
from langext.summaries import ProtectedText, VocabularyGain
from tokenizer_tools import protect
from tokenizer_tools.words import telling, told


def sets(corpus: Corpus, codes: Sequence[str]) -> dict[str, Iterator[str]]:
    """`<language>/<domain>` -> all its training text, for the languages `codes`. It tells how far it is read."""
    from langext.data import documents

    files = {name: paths for code in codes for name, paths in documents.sources(corpus, "train", code).items()}
    tell = telling(say)
    return {name: told(chain.from_iterable(documents.batches(paths, 256)), tell) for name, paths in files.items()}


def languages(corpus: Corpus, new: str, wanted: bool) -> list[str]:
    """The languages of protected text: all but the new one. Warns where protection is `wanted` and there are none."""
    if not wanted:
        return []
    found = [code for code in corpus.languages("train") if code != new]
    if not found:
        warn(
            "protect: there is no training text of an original language and no source with protect, so nothing is protected "
            "and new tokens may change how such text is encoded; give some text, or set protect: false"
        )
    return found


def record(compared: Mapping[str, protect.Identity], kept_apart: int, unprotected: float) -> ProtectedText:
    """What the manifest says of protected text. `unprotected` are bytes per token of the new language without protection."""
    found = compared.values()
    return ProtectedText(
        documents=sum(each.documents for each in found), identical=sum(each.identical for each in found),
        tokens=sum(each.tokens for each in found), replaced=sum(each.replaced for each in found),
        kept_apart=kept_apart, bytes_per_token_without=unprotected,
        sets={name: each.documents for name, each in compared.items()},
    )  # fmt: skip


def tell_of(found: ProtectedText, gain: VocabularyGain) -> None:
    """Say what protection did and cost."""
    by_set = ", ".join(f"{name} {number:,}" for name, number in found.sets.items())
    say(
        f"  all {found.documents:,} protected documents are encoded as before ({by_set}); without protection "
        f"{found.bytes_per_token_without:.2f} bytes per token in place of {gain.bytes_per_token_after:.2f}"
    )
    if little := protect.few(found.documents):
        warn(little)
