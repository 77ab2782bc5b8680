"""What a fastText model takes text for, as fastText itself finds it, but with what it finds for a word kept for the next time.

The one rule: what comes out is what fastText's `predict` gives, but for the last digits. A text is to fastText the mean of the
vectors of all parts of its words (`FastText::predict` in https://github.com/facebookresearch/fastText/blob/main/src/fasttext.cc),
so the sum over the parts of a word, and their number, are all that is needed of it. Most words of a text were there before.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from langext.data.word_parts import WordParts

END = "</s>"
"""fastText's word for the end of a line, at which it stops reading wherever it stands in it: here it is no word."""
LONGEST, USUAL = 128, 20
"""Letters of a word that is kept, at the most, and on average in a text: of scripts without spaces nothing comes again."""
MOST_WORDS, MOST_BYTES = 1 << 18, 64 << 20
"""Words that are kept, and bytes of their sums. When there are more, all are forgotten."""
SLICE, GROUP = 4096, 32768
"""Words of a text, and of several, that are looked up together."""
TINY = 1e-5
"""fastText adds this to every probability before it takes the logarithm (`std_log` in loss.cc)."""


class WordSums:
    """A model whose guesses are found from sums of words where that is possible, and else by fastText."""

    def __init__(self, model: Any, pruned: np.ndarray | None):
        """`model` is a loaded model of fasttext with labels; `pruned` as of `WordParts`."""
        self.model = model
        options = model.f.getArgs()
        loss = str(options.loss).rsplit(".", 1)[-1]
        self.dim, self.prefix = int(options.dim), str(options.label)
        labels, counts = model.f.getLabels("replace")
        self.labels: list[str] = list(labels)
        self.tree = _tree(counts) if loss == "hs" else None
        self.output = _output(model, loss)
        self.plain = options.wordNgrams == 1 and self.output is not None
        self.most = max(2 * GROUP, min(MOST_WORDS, MOST_BYTES // (4 * (self.dim + 1))))
        if self.plain:
            self.parts = WordParts(model, pruned)
            self.end = self.parts.sums([END])[0].astype(np.float64)
        self._forget()

    def _forget(self) -> None:
        self.known, self.sums = _Known(), np.zeros((0, self.dim + 1), np.float32)

    def guesses(self, lines: Sequence[str], count: int) -> list[list[tuple[str, float]]]:
        """The `count` most likely labels of each line with their probabilities, the most likely first.

        A line has words with one space between them. It has no guess when the model knows none of its words.
        """
        split = [line.split(" ") for line in lines]
        summed = [self.plain and _repeats(words, len(line)) for words, line in zip(split, lines, strict=True)]
        texts = [words for words, known in zip(split, summed, strict=True) if known]
        found = iter(self._found(self._totals(texts), count) if texts else ())
        return [next(found) if known else self._asked(words, count) for words, known in zip(split, summed, strict=True)]

    def _totals(self, texts: Sequence[list[str]]) -> np.ndarray:
        """The sum over the parts of all words of each text, and how many these are: (num_texts, dim + 1) float64."""
        totals = np.tile(self.end, (len(texts), 1))
        group, size = list[tuple[int, list[str]]](), 0
        for number, words in enumerate(texts):
            for start in range(0, len(words), SLICE):
                group.append((number, words[start : start + SLICE]))
                size += len(group[-1][1])
                if size >= GROUP:
                    self._add(group, totals)
                    group, size = [], 0
        self._add(group, totals)
        return totals

    def _add(self, group: Sequence[tuple[int, list[str]]], totals: np.ndarray) -> None:
        """Add the sums of the words of texts, each with its number, to `totals`. What is not known is learnt."""
        if len(self.known) > self.most - GROUP - SLICE:
            self._forget()
        rows = [(number, list(map(self.known.__getitem__, words))) for number, words in group]
        self._learn()
        for number, at in rows:
            totals[number] += self.sums.take(at, axis=0).sum(axis=0)

    def _learn(self) -> None:
        """Find the sums of the words that were looked up for the first time."""
        first, count = len(self.known) - len(self.known.new), len(self.known)
        if count > len(self.sums):
            more = np.zeros((max(count, 2 * len(self.sums)) - len(self.sums), self.dim + 1), np.float32)
            self.sums = np.concatenate([self.sums, more])
        if self.known.new:
            self.sums[first:count] = self.parts.sums(self.known.new)
            for row, word in enumerate(self.known.new, first):
                if not word or word == END or word.startswith(self.prefix):  # these are no words to fastText
                    self.sums[row] = 0
            self.known.new = []

    def _asked(self, words: list[str], count: int) -> list[tuple[str, float]]:
        """What fastText itself says. Not by its Python call, whose arrays are made for one version of NumPy."""
        line = " ".join(word for word in words if word != END)
        return [(label, score) for score, label in self.model.f.predict(line + "\n", count, 0.0, "replace")]

    def _found(self, sums: np.ndarray, count: int) -> list[list[tuple[str, float]]]:
        """Guesses for texts of which the sums (num_texts, dim + 1) are known."""
        assert self.output is not None
        hidden = (sums[:, :-1] / np.maximum(sums[:, -1:], 1)).astype(np.float32)
        # Not by a matrix product, whose last digits depend on how many texts there are, and which may start threads.
        scores = np.einsum("od,td->ot", self.output, hidden)
        logs = _leaves(scores, self.tree) if self.tree is not None else _softmax(scores)
        count = min(count, len(self.labels))
        best = _best(logs, count)
        chances = np.exp(np.take_along_axis(logs, best, axis=0)).T.tolist()
        least = TINY if self.tree is not None else 0.0  # in a tree fastText does not follow branches below it
        rows = zip(best.T.tolist(), chances, sums[:, -1].tolist(), strict=True)
        return [
            [(self.labels[i], p) for i, p in zip(at, ps, strict=True) if p >= least] if parts else [] for at, ps, parts in rows
        ]


class _Known(dict[str, int]):
    """Word -> row of its sum. A word that is looked up for the first time gets the next row, and is among the `new`."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        row = self[word] = len(self)
        self.new.append(word)
        return row


def _repeats(words: Sequence[str], letters: int) -> bool:
    """Whether a text has words of the length of words."""
    return letters <= (USUAL + 1) * len(words) and max(map(len, words)) <= LONGEST


def _output(model: Any, loss: str) -> np.ndarray | None:
    """The output matrix (num_labels, dim) of a model whose loss is computed here; None of others."""
    if loss not in ("hs", "softmax"):
        return None
    try:
        return np.array(model.f.getOutputMatrix(), np.float32)
    except RuntimeError:  # it is quantised
        return None


def _tree(counts: Sequence[int]) -> list[tuple[int, int]]:
    """The Huffman tree over labels: left and right child of each inner node, of which the first has number `len(counts)`.

    As `HierarchicalSoftmaxLoss::buildTree` in https://github.com/facebookresearch/fastText/blob/main/src/loss.cc.
    """
    leaves = len(counts)
    weights = [int(count) for count in counts] + [10**15] * (leaves - 1)
    leaf, node, children = leaves - 1, leaves, list[tuple[int, int]]()
    for inner in range(leaves, 2 * leaves - 1):
        least = []
        for _ in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                least.append(leaf)
                leaf -= 1
            else:
                least.append(node)
                node += 1
        weights[inner] = weights[least[0]] + weights[least[1]]
        children.append((least[0], least[1]))
    return children


def _leaves(scores: np.ndarray, tree: list[tuple[int, int]]) -> np.ndarray:
    """Logarithm of the probability of each label (num_labels, num_texts), from the scores of the inner nodes of the tree."""
    leaves, texts = len(tree) + 1, scores.shape[1]
    right = 1 / (1 + np.exp(-scores.astype(np.float64)))
    ways = np.log(1 - right + TINY), np.log(right + TINY)
    logs = np.zeros((2 * leaves - 1, texts))
    for inner in range(len(tree) - 1, -1, -1):  # from the root, which is the last
        for child, way in zip(tree[inner], ways, strict=True):
            logs[child] = logs[leaves + inner] + way[inner]
    return logs[:leaves]


def _softmax(scores: np.ndarray) -> np.ndarray:
    chances = np.exp(scores.astype(np.float64) - scores.max(axis=0))
    return np.log(chances / chances.sum(axis=0) + TINY)


def _best(logs: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the `count` largest of each column, the largest first: (count, num_columns)."""
    rest, found = logs.copy(), []
    for _ in range(count):
        found.append(rest.argmax(axis=0))
        np.put_along_axis(rest, found[-1][None], -np.inf, axis=0)
    return np.array(found)
