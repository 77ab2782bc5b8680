"""Duplicates: which are found, and which of them stays."""

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupSignature
from toy import FRENCH, documents, sentences

from langext.data import duplicates
from langext.data.split import Divide, passages
from langext.data.word_units import WordUnits

UNITS = WordUnits("fra_Latn")
A, B, C = documents(FRENCH, 3, 1)


def near(text):
    """The same text with its last words changed."""
    return text.rsplit(" ", 3)[0] + " mais pas tout à fait"


def dropped(folder, parts, exact=False, divided=()):
    """What is decided for every text of some parts, or every passage of those that are `divided`."""
    wholes = {part: len(parts) + number for number, part in enumerate(divided)}
    for rank, texts in enumerate([*parts, *(parts[part] for part in divided)]):
        data = iter([Document(text=text, id="") for text in texts])
        data = Divide([part in divided for part in range(rank + 1)]).run(data, rank)
        prints = duplicates.Prints(folder / "prints").run(data, rank)
        duplicates.Signatures(folder / "signatures", UNITS).run(prints, rank)
    for rank in range(3):  # the buckets are shared among three tasks
        duplicates.Pairs(folder / "signatures", folder / "pairs").run(None, rank, 3)
    duplicates.clusters(folder / "pairs", folder / "found").run()
    found = None if exact else folder / "found"
    list(duplicates.Choose(folder / "prints", found, len(parts), folder / "drops", wholes).run())
    return [np.load(folder / "drops" / f"{rank:05d}.npy").tolist() for rank in range(len(parts))]


def test_the_first_of_texts_that_are_alike_stays_in_whatever_part(tmp_path):
    parts = [[A, B, "a b"], [near(A), A, C], [], ["a b", near(near(C)), near(C), C]]
    assert dropped(tmp_path, parts) == [[0, 0, 0], [2, 1, 0], [], [1, 2, 2, 1]]


def test_exact_duplicates_alone(tmp_path):
    assert dropped(tmp_path, [[A, near(A)], [A, B]], exact=True) == [[0, 0], [1, 0]]


LONG, OTHER = ("\n\n".join(sentences(FRENCH, 20, seed)) for seed in (4, 5))
FIRST, SECOND, *_ = [text for text, _ in passages(LONG)]


@pytest.mark.parametrize(
    ("parts", "divided", "drops"),
    [
        ([[LONG, OTHER], [near(LONG), A]], [1], [[0, 0], [2, 2, 0]]),
        ([[near(LONG), A], [LONG, OTHER]], [0], [[0, 0, 0], [2, 0]]),
        ([[near(LONG), A], [A, LONG]], [0, 1], [[0, 0, 0], [1, 1, 2]]),
        ([[LONG], ["Un début.\n\n" + LONG]], [0, 1], [[0, 0], [2, 1]]),
        ([[FIRST], [LONG], [near(SECOND)]], [1], [[0], [1, 0], [2]]),
    ],
)
def test_documents_are_compared_where_parts_are_divided_and_so_are_passages(tmp_path, parts, divided, drops):
    """A document of one passage is not taken for a copy of itself; a passage goes with its document, or by itself."""
    assert dropped(tmp_path, parts, divided=divided) == drops


@pytest.mark.parametrize("length", [1, 100, 700])
def test_signatures_are_those_of_datatrove(tmp_path, length):
    """Only computed without divisions, and a part of a long text at a time."""
    shingles = np.random.default_rng(1).integers(0, 2**64, (length, 1), np.uint64)
    step = MinhashDedupSignature(str(tmp_path), duplicates.MINHASH, UNITS)
    assert duplicates.Signatures(tmp_path / "s", UNITS).get_signature(shingles) == step.get_signature(shingles)
