"""Passages: nothing is lost or measured twice, and a document is whole again but for what is held out."""

from datatrove.data import Document
from toy import FRENCH, documents

from langext.data import split
from langext.data.split import Divide, HoldOut, Unite, passages, unit_hash

NOVEL = "\n\n".join(documents(FRENCH, 60, 1))


def pieces(texts, frac, which=True):
    data = iter([Document(text=text, id=str(n)) for n, text in enumerate(texts)])
    return list(Unite().run(HoldOut(frac).run(Divide([which]).run(data))))


def test_passages_are_paragraphs_until_they_are_long_enough():
    found, gap = passages(NOVEL)
    assert gap.join(found) == NOVEL and all(len(text) >= split.PASSAGE for text in found) and len(found) > 10
    assert passages("a\nb") == (["a\nb"], "\n") and passages("one line") == (["one line"], "")
    lines, gap = passages("\n".join("x" * 600 for _ in range(4)))
    assert len(lines) == 2 and gap == "\n"


def test_a_document_is_held_out_and_trained_on_by_its_passages():
    found = pieces([NOVEL, "short"], 0.3)
    held = [doc.text for doc in found if doc.metadata["split"] == "valid"]
    (trained,) = [doc for doc in found if doc.metadata["split"] == "train" and doc.id == "0"]
    assert held == [text for text in passages(NOVEL)[0] if unit_hash(text) < 0.3] and len(held) > 2
    assert trained.text == "\n\n".join(text for text in passages(NOVEL)[0] if text not in held)


def test_documents_that_are_not_divided_stay_whole():
    texts = documents(FRENCH, 20, 2)
    found = pieces(texts, 0.3, which=False)
    assert [doc.text for doc in found] == texts and [doc.id for doc in found] == [str(n) for n in range(20)]
    assert {doc.text for doc in found if doc.metadata["split"] == "valid"} == {t for t in texts if unit_hash(t) < 0.3}
