"""What is held out is not trained on, paragraph by paragraph, and every source has something that is held out."""

import numpy as np
import pytest
from datatrove.data import Document
from toy import FRENCH, documents

from langext.data import heldout
from langext.data.split import unit_hash

LONG = [" ".join(text.split()) for text in documents(FRENCH, 40, 5) if len(text) > heldout.LEAST]


def test_equal_paragraphs_and_lines_are_taken_out_whatever_stands_around_them():
    held = heldout.keys(f"{LONG[0]}\n\n{LONG[1]}\n{LONG[2]}")
    text = f"Un titre\n\n{LONG[0].replace(' ', chr(10), 3)}\n\n{LONG[3]}\n{LONG[2]}\n\n\nFin"
    rest, removed = heldout.without(text, held)
    assert rest == f"Un titre\n\n{LONG[3]}\n\n\nFin"
    assert [" ".join(part.split()) for part in removed] == [LONG[0], LONG[2]]


def test_what_is_short_or_not_held_out_stays():
    text = f"{LONG[5]}\n\nUn titre\n\n"
    assert heldout.without(text, heldout.keys(f"Un titre\n\n{LONG[4]}")) == (text, [])
    assert heldout.without(LONG[4], heldout.keys(LONG[4])) == ("", [LONG[4]])


@pytest.mark.parametrize(("frac", "texts"), [(0.3, LONG), (1e-9, LONG), (1e-9, LONG[:2]), (1e-9, LONG[:1]), (0.01, [])])
def test_a_source_of_two_texts_has_one_that_is_held_out(tmp_path, frac, texts):
    parts = [texts[0::2], texts[1::2], []]
    for rank, part in enumerate(parts):
        list(heldout.Mark(frac, tmp_path).run([Document(text=text, id="0") for text in part], rank, 3))
    least, keys = heldout.chosen(tmp_path, 3, frac)
    held = [text for text in texts if unit_hash(text) < least]
    assert keys == {key for text in held for key in heldout.keys(text)}
    wanted = [text for text in texts if unit_hash(text) < frac]
    assert held == (wanted or ([min(texts, key=unit_hash)] if len(texts) > 1 else []))
    heldout.write(tmp_path / "held.npy", keys)
    assert np.load(tmp_path / "held.npy").tolist() == sorted(keys)
