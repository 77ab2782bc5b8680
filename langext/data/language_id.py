"""Identify the language of text with fastText.

Rule: a model says what text is taken for, with probabilities. What is kept is decided elsewhere, in `verdict`.
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import regex

from langext.data import fasttext_models
from langext.data.neighbours import PREFIX
from langext.data.word_sums import WordSums


@functools.cache
def _load(path: Path) -> WordSums:
    import fasttext

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WordSums(fasttext.load_model(str(path)), fasttext_models.pruned(path))


Guesses = Sequence[tuple[str, float]]
"""What a model takes a text for: labels without their prefix and their probabilities (0 to 1), the most likely first."""
_NOT_WORDS = regex.compile(r"[^\p{Word}\p{Zs}]|\d")
_NO_CASE = 0x20000
"""The first code point from which on no letter has a case."""
_CAPITALS = regex.compile(r"[[\p{Lu}\p{Lt}]&&[\p{Latin}\p{Cyrillic}\p{Greek}\p{Armenian}\p{Georgian}]]+", regex.V1)
"""Capital letters of scripts that are mostly written in small ones. In Cherokee it is the other way round."""
NO_LANGUAGE, MOST_LABELS = "zxx_Zxxx", 400
"""A label that models in the style of OpenLID have, and more labels than those have."""


@functools.cache
def _cases() -> np.ndarray:
    """For each code point 1 for a capital letter of `_CAPITALS`, -1 for a small one, else 0; the last stands for all others."""
    every = (chr(point) for point in range(_NO_CASE))
    return np.array([*(bool(_CAPITALS.match(c)) - c.islower() for c in every), 0], np.int8)


def in_capitals(text: str) -> bool:
    """Whether a text has more capital than small letters, in scripts that are mostly written in small ones."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return int(_cases()[np.minimum(points, _NO_CASE)].sum(dtype=np.int64)) > 0


@dataclass(frozen=True)
class LanguageId:
    """A fastText model for language identification. It is loaded on first use, once per process."""

    path: Path
    text: Literal["auto", "plain", "words"] = "auto"
    """How the model is shown text: see `shown`."""

    @property
    def model(self) -> Any:
        """The loaded model, as the package fasttext has it. Raises ConfigError when the file is no complete fastText model."""
        self.labels()
        return _load(self.path).model

    def labels(self) -> list[str]:
        """All labels that the model can return, in its own spelling. The model is not loaded for it."""
        return fasttext_models.labels(self.path)

    def try_out(self) -> None:
        """Load the model in a process of its own. Raises ConfigError when fastText fails on it."""
        fasttext_models.try_out(self.path)

    @functools.cached_property
    def words_alone(self) -> bool:
        """Whether the model knows words in lower case alone, as OpenLID does, whose preparation of text is part of the model.

        See https://huggingface.co/HPLT/OpenLID-v3. lid.176 and GlotLID take text as it is.
        """
        labels = self.labels()
        return self.text == "words" or (self.text == "auto" and PREFIX + NO_LANGUAGE in labels and len(labels) <= MOST_LABELS)

    def shown(self, text: str) -> str:
        """A text as the model is shown it: in one line, because fastText stops reading at a line break.

        Text in capital letters, which lid.176 recognises badly (44 % right), is put in lower case. For a model of words alone
        so is all text, and digits and punctuation are left out.
        """
        line = " ".join(text.split())
        if self.words_alone:
            return " ".join(_NOT_WORDS.sub("", line.lower()).split())
        return _CAPITALS.sub(lambda found: found[0].lower(), line) if in_capitals(line) else line

    def guesses(self, texts: list[str], count: int = 2) -> list[Guesses]:
        """The `count` most likely labels of each text; none for a text without a word that the model knows."""
        self.labels()
        found = _load(self.path).guesses([self.shown(text) for text in texts], count)
        return [[(label.removeprefix(PREFIX), min(1.0, score)) for label, score in row] for row in found]
