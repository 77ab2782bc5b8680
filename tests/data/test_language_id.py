"""Files that are no complete fastText model are refused before fastText sees them; and how text is shown to a model."""

import gzip
import os
import struct
import sys

import pytest
from toy import ENGLISH, FRENCH, write_fasttext

from langext.data import fasttext_models, language_id
from langext.data.language_id import LanguageId
from langext.errors import ConfigError

ARGUMENTS = "<ii12id"
"""Magic number, version and settings, with which every model begins; then the sizes of the dictionary."""


def changed(data: bytes, at: int, form: str, value: int) -> bytes:
    return data[:at] + struct.pack("<" + form, value) + data[at + struct.calcsize("<" + form) :]


SIZES = struct.calcsize(ARGUMENTS)
WORDS, LABELS, PRUNED = SIZES + 4, SIZES + 8, SIZES + 20
BUCKET, DIMENSIONS, KIND, NGRAMS = 8 + 4 * 8, 8, 8 + 4 * 7, 8 + 4 * 5
BAD = {
    "empty": (lambda data: b"", "the file is empty"),
    "text": (lambda data: b"no model", "it begins with other bytes"),
    "gzipped": (gzip.compress, "it begins with other bytes"),
    "an LFS pointer": (lambda data: b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer.*git lfs pull"),
    "a web page": (lambda data: b"<!DOCTYPE html><html>", "this is a web page"),
    "another version": (lambda data: changed(data, 4, "i", 99), "its version is 99"),
    "word vectors": (lambda data: changed(data, KIND, "i", 2), "word vectors and no labels"),
    "no room for n-grams": (lambda data: changed(data, NGRAMS, "i", 2), "settings"),
    "many dimensions": (lambda data: changed(data, DIMENSIONS, "i", 2_000_000_000), "settings"),
    "other dimensions": (lambda data: changed(data, DIMENSIONS, "i", 3), "numbers where .* x 3 are needed"),
    "many n-grams": (lambda data: changed(data, BUCKET, "i", 2_000_000_000), "numbers where 2000"),
    "many words": (lambda data: changed(changed(data, SIZES, "i", 2_000_000_002), WORDS, "i", 2_000_000_000), "dictionary"),
    "other sizes": (lambda data: changed(data, WORDS, "i", -5), "sizes of its dictionary"),
    "no label": (lambda data: changed(changed(data, WORDS, "i", 2 + len(FRENCH + ENGLISH)), LABELS, "i", 0), "sizes"),
    "many pruned": (lambda data: changed(data, PRUNED, "q", 1 << 60), "it ends too early"),
    "a little more": (lambda data: data + b"x", "1 bytes are left"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_no_model_is_refused(tmp_path, lid, case):
    make, said = BAD[case]
    path = tmp_path / "x.bin"
    path.write_bytes(make(lid.read_bytes()))
    with pytest.raises(ConfigError, match=f"x.bin: not a fastText model: .*{said}"):
        LanguageId(path).labels()


def test_a_model_that_is_cut_anywhere_is_refused(tmp_path, lid):
    data = lid.read_bytes()
    for length in range(1, len(data), 7):
        path = tmp_path / f"{length}.bin"
        path.write_bytes(data[:length])
        with pytest.raises(ConfigError, match="not a fastText model"):
            LanguageId(path).labels()


def test_what_is_no_file_is_refused(tmp_path):
    for path, said in ((tmp_path, "not a file"), (tmp_path / "none", "no such file")):
        with pytest.raises(ConfigError, match=said):
            LanguageId(path).labels()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a file"):
        LanguageId(tmp_path / "pipe").labels()


def test_a_whole_model_is_tried_out_and_has_its_labels(lid):
    model = LanguageId(lid)
    assert model.labels() == list(model.model.get_labels()) == ["__label__fr", "__label__en"]
    model.try_out()


def test_what_crashes_fasttext_is_said_in_one_line(tmp_path, monkeypatch):
    """There is no file that the checks let pass and that fastText fails on, so the checks are left out here."""
    path = tmp_path / "x.bin"
    data = write_fasttext(path, {"fr": ["le"], "en": ["the"]}).read_bytes()
    rows_of_input = len(data) - (1 + 16 + 4 * 2 * 2) - (16 + 4 * 2 * 2)
    path.write_bytes(changed(data, rows_of_input, "q", 1 << 32))
    monkeypatch.setattr(fasttext_models, "ROOM", 4 << 30)
    with pytest.raises(ConfigError, match="x.bin: not a usable fastText model: fastText fails on it") as raised:
        LanguageId(path).try_out()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""), ("Abc", "Abc"), ("ABc", "abc"), ("ÀÉß", "àéß"), ("ешь ЕЩЁ ЩЁ", "ешь ещё щё"), ("ÇA VA ?", "ça va ?"),
        ("漢字", "漢字"), ("A漢字かな", "a漢字かな"), ("ΤΟ ΝΕΡΟ", "το νερο"), ("ՀԱՅԵՐԵՆ", "հայերեն"), ("ᲥᲐᲠᲗᲣᲚᲘ", "ქართული"),
        ("ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ", "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ"), ("ᏣᎳᎩ USA", "ᏣᎳᎩ usa"), ("A\ud800b", "A\ud800b"), ("ﬁﬂＡＢ", "ﬁﬂＡＢ"),
    ],
)  # fmt: skip
def test_text_in_capitals_is_shown_in_small_letters_where_these_are_the_norm(lid, text, shown):
    assert LanguageId(lid).shown(text) == shown


def test_no_letter_beyond_the_table_has_a_case():
    assert not any(c.isupper() or c.islower() for c in map(chr, range(language_id._NO_CASE, sys.maxunicode + 1)))
