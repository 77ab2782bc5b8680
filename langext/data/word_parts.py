"""The vectors of words in a fastText model: the sum over the parts of each, for many words at once.

The one rule: the parts are those of `Dictionary::computeSubwords`, and their rows those of `Dictionary::pushHash`, in
https://github.com/facebookresearch/fastText/blob/main/src/dictionary.cc.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

OFFSET, PRIME = np.uint32(2166136261), np.uint32(16777619)
"""FNV-1a, with which fastText hashes: http://www.isthe.com/chongo/tech/comp/fnv"""
MOST_NUMBERS, PARTS = 1 << 22, 40
"""Numbers of vectors that are summed together, and about how many parts a word has."""


class WordParts:
    """The input vectors of a model, by the parts of words that they stand for."""

    def __init__(self, model: Any, pruned: np.ndarray | None):
        """`model` is a loaded model of fasttext. `pruned` are the buckets that it has kept, (num_kept, 2): bucket and row."""
        self.model = model
        options = model.f.getArgs()
        self.dim, self.least, self.most, self.buckets = options.dim, options.minn, options.maxn, options.bucket
        self.words = len(model.f.getVocab("replace")[0]) if self.most else 0
        self.row_of = None if pruned is None else np.full(self.buckets, -1, np.int32)
        if pruned is not None and self.row_of is not None:
            self.row_of[pruned[:, 0]] = pruned[:, 1]
        quantised = model.f.isQuant()
        height = self.words + (len(pruned) if pruned is not None else self.buckets)
        self.vectors = np.zeros((height, self.dim), np.float32) if quantised else np.asarray(model.f.getInputMatrix())
        self.here = np.full(height, not quantised)

    def sums(self, words: Sequence[str]) -> np.ndarray:
        """The sum over the parts of each word, and how many these are: (num_words, dim + 1) float32."""
        found = np.zeros((len(words), self.dim + 1), np.float32)
        unknown = [number for number, word in enumerate(words) if self.model.f.getWordId(word) < 0]
        for number in set(range(len(words))).difference(unknown):
            count = np.float32(len(self.model.get_subwords(words[number], "replace")[1]))
            found[number, :-1], found[number, -1] = self.model.get_word_vector(words[number]) * count, count
        step = max(64, MOST_NUMBERS // (self.dim * PARTS))
        for start in range(0, len(unknown), step):
            block = unknown[start : start + step]
            found[block] = self._unknown([words[number] for number in block])
        return found

    def _unknown(self, words: Sequence[str]) -> np.ndarray:
        """The same for words that are not in the dictionary of the model."""
        found = np.zeros((len(words), self.dim + 1), np.float32)
        if not self.most:
            return found
        rows, owners = self._parts(words)
        self._fetch(rows)
        counts = np.bincount(owners, minlength=len(words))
        some = np.flatnonzero(counts)
        if len(some):
            starts = (np.cumsum(counts) - counts)[some]
            found[some, :-1] = np.add.reduceat(self.vectors[rows], starts, axis=0)
            found[some, -1] = counts[some]
        return found

    def _fetch(self, rows: np.ndarray) -> None:
        """Have the vectors of `rows` in `vectors`; those of a quantised model are asked for one by one, once."""
        for row in np.unique(rows[~self.here[rows]]).tolist():
            self.vectors[row] = self.model.get_input_vector(row)
            self.here[row] = True

    def _parts(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The row of every part of the words, and the number of the word that it is of, ascending."""
        octets = np.frombuffer("".join(f"<{word}>" for word in words).encode(), np.uint8)
        starts = np.flatnonzero((octets & 0xC0) != 0x80)
        sizes = np.diff(starts, append=len(octets))
        owner = np.repeat(np.arange(len(words)), [len(word) + 2 for word in words])
        signed = np.append(octets.astype(np.int8).astype(np.uint32), np.zeros(4, np.uint32))  # fastText takes bytes as signed
        edge = np.append(True, owner[1:] != owner[:-1]) | np.append(owner[1:] != owner[:-1], True)
        hashed = np.full(len(starts), OFFSET)
        rows = np.full((len(starts), self.most), -1, np.int64)
        for length in range(1, self.most + 1):
            whole = len(starts) - length + 1  # so many parts of this length begin before the end
            if whole <= 0:
                break
            at, size = starts[length - 1 :], sizes[length - 1 :]
            hashed = hashed[:whole]
            for octet in range(int(sizes.max())):
                hashed = np.where(octet < size, (hashed ^ signed[at + octet]) * PRIME, hashed)
            if length >= self.least:
                inside = owner[:whole] == owner[length - 1 :]
                inside &= ~edge if length == 1 else True
                rows[:whole, length - 1] = np.where(inside, self._rows(hashed), -1)
        there = rows >= 0
        return rows[there], np.repeat(owner, there.sum(axis=1))

    def _rows(self, hashed: np.ndarray) -> np.ndarray:
        """The rows of parts with these hashes; -1 of those that the model has no vector for."""
        buckets = (hashed % np.uint32(self.buckets)).astype(np.int64)
        if self.row_of is None:
            return self.words + buckets
        kept = self.row_of[buckets]
        return np.where(kept < 0, -1, self.words + kept)
