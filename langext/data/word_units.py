"""Words of a language, for rules and comparisons that count them. The one rule: they never depend on spaces alone.

datatrove's steps take a `WordUnits` wherever they take a language.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import numpy as np
import regex
import xxhash
from datatrove.utils.text import NUMBERS_PATTERN, PUNCTUATION, TERMINAL_PUNCTUATION
from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer, simple_span_tokenize

from langext.data.unspaced import LETTERS, graphemes_per_word, is_unspaced

SLICE = 1 << 20
"""Characters of a long text that are compared at once."""
TOGETHER = {"Hani": ("spacy", "jieba"), "Jpan": ("spacy", "sudachipy", "sudachidict_core")}
"""Script -> packages that its tokenizer needs; datatrove names one at a time, or misses one when it begins to divide words."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_WORD = regex.compile(r"[\w\p{M}]+(?:['’·-][\w\p{M}]+)*")
_OTHER = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{LETTERS}]]"
_GRAPHEME = regex.compile(rf"{_OTHER}+|\X", regex.V1)
"""A grapheme; of scripts with spaces all of a word, because a few of its letters say little."""
_PUNCTUATION = regex.compile(f"[{regex.escape(PUNCTUATION)}]")
_MARKS = regex.compile(r"\p{Mn}+")
_SENTENCE_END = regex.compile(rf"[{regex.escape(''.join(TERMINAL_PUNCTUATION))}]+[\"'”»)]*(?=\s|$)|\n")


class WordUnits(WordTokenizer):
    """Divides text of one language into words: at spaces and punctuation, which is no word, as Gopher's rules have it.

    In scripts without spaces datatrove's word tokenizer divides it, if the package that it needs is installed, and else every
    grapheme (https://unicode.org/reports/tr29) is a unit; so are the words of other scripts in such text.
    """

    def __init__(self, code: str):
        """`code` is a FLORES-200 code."""
        super().__init__(code)
        self.kind = "words"
        """words, graphemes, or the name of datatrove's tokenizer."""
        self.last: tuple[str, list[str]] = "", []
        if is_unspaced(code[4:]):
            found = _tokenizer(code)
            self.kind = type(found).__name__ if found else "graphemes"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WordUnits) and other.language == self.language

    def __hash__(self) -> int:
        return hash(self.language)

    @property
    def are_words(self) -> bool:
        """False when the units are graphemes, of which nothing is known that holds for words."""
        return self.kind != "graphemes"

    @property
    def are_spaced(self) -> bool:
        """False in scripts that put no spaces between words, however these are found."""
        return self.kind == "words"

    @property
    def per_word(self) -> float:
        """How many units are about as long as a word."""
        return 1.0 if self.are_words else graphemes_per_word(str(self.language)[4:])

    def count(self, words: int) -> int:
        """How many units are about as long as so many words."""
        return math.ceil(words * self.per_word)

    def word_tokenize(self, text: str) -> list[str]:
        """The words, or else the graphemes that are no white space. Several rules ask for those of one text after another."""
        if text != self.last[0]:
            self.last = text, self._words(text)
        return self.last[1]

    def _words(self, text: str) -> list[str]:
        if self.kind == "words":
            return _WORD.findall(text)
        if self.kind == "graphemes":
            return [unit for unit in _GRAPHEME.findall(text) if not unit.isspace()]
        found = _tokenizer(str(self.language))
        assert found is not None
        return found.word_tokenize(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """The sentences: they end with a mark that ends sentences in any script, before white space, or with the line."""
        ends = [*(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
        parts = (text[start:end].strip() for start, end in zip([0, *ends], ends, strict=False))
        return [part for part in parts if part]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Begin and end of every sentence."""
        return list(simple_span_tokenize(text, self.sent_tokenize(text)))


def _tokenizer(code: str) -> WordTokenizer | None:
    """The tokenizer that datatrove has for a language; None when it has none, or when the package for it is not installed."""
    try:
        return _load(code)
    except (ValueError, ImportError):
        return None


def _load(code: str) -> WordTokenizer:
    """The tokenizer. Raises ValueError when there is none, and ImportError that names what to install when it is missing."""
    script = "Hani" if code[4:] in ("Hans", "Hant") else code[4:]
    if script == "Tibt":
        raise ValueError("botok fetches its dictionary from the network, unpinned, whenever it first divides a text")
    if lacking := [package for package in TOGETHER.get(script, ()) if find_spec(package) is None]:
        raise ImportError(f"pip install {' '.join(lacking)}")
    return load_word_tokenizer(f"{code[:3]}_{script}")


def missing(code: str) -> str:
    """The package without which nothing divides the words of a language; empty when something does, or nothing ever does."""
    try:
        if is_unspaced(code[4:]):
            _load(code)
    except ImportError as error:
        return str(error).rsplit("pip install ", 1)[-1].rstrip("`).")
    except ValueError:
        pass
    return ""


def simplified(text: str, units: WordUnits) -> list[str]:
    """The units of a text in which case, punctuation, diacritics and numbers make no difference, to find like text by.

    The same as datatrove's `simplify_text`, several times faster.
    """
    simple = _PUNCTUATION.sub(" ", NUMBERS_PATTERN.sub("0", text.lower()))
    if not simple.isascii():
        simple = _MARKS.sub("", unicodedata.normalize("NFD", simple))
    return simple.split() if units.kind == "words" else units.word_tokenize(" ".join(simple.split()))


def runs(text: str, units: WordUnits, words: int) -> np.ndarray:
    """A hash of every run of so many words: (number of different runs,) uint64, ascending; none of a text that is shorter."""
    return runs_of(text, units, [units.count(words)])


def runs_of(text: str, units: WordUnits, lengths: Sequence[int]) -> np.ndarray:
    """The same for runs of several `lengths` in units, all of them together.

    Long texts are read in slices, so that memory stays bounded. The slices overlap, so that no run is missed.
    """
    if not lengths:
        return np.zeros(0, np.uint64)
    step = max(SLICE // 2, SLICE - 64 * max(lengths))
    slices = (simplified(text[at : at + SLICE], units) for at in range(0, len(text), step))
    found = [hashes for part in slices for _, hashes in ordered_runs(part, lengths)]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)


def ordered_runs(units: Sequence[str], lengths: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Of every length that the units have a run of, ascending: a hash of each run, in their order, (number of runs,) uint64."""
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(unit.encode()) for unit in units), np.uint64, len(units))
    rolled = np.zeros(len(units), np.uint64)
    for length in range(1, min(max(lengths), len(units)) + 1):  # a polynomial in the hashes, modulo 2 ** 64
        count = len(units) - length + 1
        rolled = rolled[:count] * _FACTOR + hashes[length - 1 :]
        if length in lengths:
            yield length, rolled
