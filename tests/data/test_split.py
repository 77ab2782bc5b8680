"""Passages: nothing is lost or measured twice, and a document is whole again but for what is held out."""

import pytest
from datatrove.data import Document
from toy import FRENCH, documents

from langext.data import split
from langext.data.split import Divide, HoldOut, Unite, passages, unit_hash

NOVEL = "\n\n".join(documents(FRENCH, 60, 1))


def pieces(texts, frac, which=True):
    data = iter([Document(text=text, id=str(n)) for n, text in enumerate(texts)])
    return list(Unite().run(HoldOut(frac).run(Divide([which]).run(data))))


@pytest.mark.parametrize(
    "text",
    [
        NOVEL,
        "\n" + NOVEL + "\n\n",
        "\n".join("x" * 600 for _ in range(9)),
        " ".join(documents(FRENCH, 40, 2)),
        "。".join("字" * 300 for _ in range(20)),
        "字" * 5432,
        " \n\n\n" * 900,
        "Title\n\n" + "\n".join(documents(FRENCH, 60, 3)),
    ],
)
def test_passages_are_long_enough_and_together_are_the_text(text):
    found = passages(text)
    assert "".join(passage + after for passage, after in found) == text
    assert all(split.PASSAGE <= len(passage) <= 2 * split.LONG for passage, _ in found[:-1])
    assert not any(after.strip() for _, after in found)
    assert len(found) > 3 or not text.strip()


@pytest.mark.parametrize("sizes", [(999, 2000, 997), (1998, 1998), (3996,), (1,) * 1333])
def test_how_long_a_text_must_be_to_be_divided(sizes):
    """With two characters between paragraphs these are just so long, and longer ones have no fewer passages."""
    text = "\n\n".join("x" * size for size in sizes)
    assert len(text) <= split.SURELY_DIVIDED
    assert len(passages(text + "x" * (split.SURELY_DIVIDED - len(text)))) > 1


def test_short_text_is_one_passage():
    assert [passages(text) for text in ("a\nb", "one line", "x" * 999)] == [[(t, "")] for t in ("a\nb", "one line", "x" * 999)]


def test_a_document_is_held_out_and_trained_on_by_its_passages():
    found = pieces([NOVEL, "short"], 0.3)
    held = [doc.text for doc in found if doc.metadata["split"] == "valid"]
    (trained,) = [doc for doc in found if doc.metadata["split"] == "train" and doc.id == "0"]
    texts = [text for text, _ in passages(NOVEL)]
    assert held == [text for text in texts if unit_hash(text) < 0.3] and len(held) > 2
    assert trained.text == "\n\n".join(text for text in texts if text not in held)


def test_documents_that_are_not_divided_stay_whole():
    texts = documents(FRENCH, 20, 2)
    found = pieces(texts, 0.3, which=False)
    assert [doc.text for doc in found] == texts and [doc.id for doc in found] == [str(n) for n in range(20)]
    assert {doc.text for doc in found if doc.metadata["split"] == "valid"} == {t for t in texts if unit_hash(t) < 0.3}
