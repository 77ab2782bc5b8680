"""What a model takes text for is what fastText's own predict says of it, whatever kind of model it is."""

import random
import struct
from pathlib import Path

import fasttext
import numpy as np
import pytest

from langext.data import fasttext_models, word_sums
from langext.data.word_sums import WordSums

SYLLABLES = {
    "fr": "le mai son à côté é tait où nous ça",
    "sw": "ni ku ma ji wa ha ba ri ya ng'",
    "th": "ภา ษา ไท ยนี้ ไม่ มี ช่อง",
    "emoji": "😀 𝄞 ॐ",
}
SUPERVISED, SOFTMAX, TREE, ALL = 3, 3, 1, 4
MODELS = {
    "softmax": {"loss": SOFTMAX, "least": 2, "most": 5},
    "tree": {"loss": TREE, "least": 2, "most": 4},
    "single letters": {"loss": SOFTMAX, "least": 1, "most": 2},
    "words alone": {"loss": SOFTMAX, "least": 0, "most": 0},
    "pairs of words": {"loss": SOFTMAX, "least": 2, "most": 3, "ngrams": 2},
    "one against all": {"loss": ALL, "least": 2, "most": 3},
    "quantised tree": {"loss": TREE, "least": 2, "most": 4, "quantised": {"cutoff": 300}},
    "all quantised": {"loss": SOFTMAX, "least": 2, "most": 3, "quantised": {"qout": True}},
}
DIM, BUCKETS = 8, 2000


def texts(seed: int, count: int) -> list[str]:
    """Words of made-up languages."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        parts = draw.choice(list(SYLLABLES.values())).split()
        words = ["".join(draw.choices(parts, k=draw.randint(1, 3))) for _ in range(draw.randint(3, 12))]
        made.append(" ".join(words))
    return made


def write(path: Path, loss: int, least: int, most: int, ngrams: int = 1) -> None:
    """A model of random numbers (see `toy.write_fasttext`), which knows some words and, of the others, the parts."""
    draw = np.random.default_rng(0)
    words = ["</s>", *sorted({word for text in texts(1, 60) for word in text.split()})[::2]]
    labels = [f"__label__l{number}" for number in range(300)]  # as many as it takes to be quantised
    out = struct.pack("<ii", 793712314, 12)
    out += struct.pack("<12id", DIM, 5, 5, 1, 5, ngrams, loss, SUPERVISED, BUCKETS, least, most, 100, 1e-4)
    out += struct.pack("<iiiqq", len(words) + len(labels), len(words), len(labels), 5000, -1)
    for number, (name, kind) in enumerate([*((word, 0) for word in words), *((label, 1) for label in labels)]):
        out += name.encode() + b"\0" + struct.pack("<qb", 5000 // (number % 97 + 1), kind)
    for height, scale in ((len(words) + BUCKETS, 1.0), (len(labels), 4.0)):
        matrix = draw.normal(0, scale, (height, DIM)).astype("<f4")
        out += struct.pack("<?qq", False, height, DIM) + matrix.tobytes()
    path.write_bytes(out)


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """A model of one kind, and its file."""
    path = tmp_path_factory.mktemp("model") / "model.bin"
    options = dict(MODELS[request.param])
    quantised = options.pop("quantised", None)
    write(path, **options)
    if quantised is not None:
        whole = fasttext.load_model(str(path))
        whole.quantize(**quantised)
        whole.save_model(str(path))
    return fasttext.load_model(str(path)), path


ODD = [
    "",
    "a",
    "__label__fr le",
    "\u200b",
    "naïve 😀😀 x",
    "le" * 300,
    "é" * 129,
    " ".join(["côté"] * 1500),
    "\ufeffle\u00a0mai",
]


@pytest.mark.parametrize("group", [32768, 40])
def test_guesses_are_those_of_fasttext(model, group, monkeypatch):
    monkeypatch.setattr(word_sums, "GROUP", group)
    monkeypatch.setattr(word_sums, "SLICE", 16)
    loaded, path = model
    sums = WordSums(loaded, fasttext_models.pruned(path))
    lines = texts(2, 120) + ODD
    labels, chances = loaded.predict(lines, k=3)
    for line, found, names, given in zip(lines, sums.guesses(lines, 3), labels, chances, strict=True):
        assert [chance for _, chance in found] == pytest.approx(np.array(given).tolist(), abs=1e-4), line[
            :40
        ]  # its sums over long texts are in float32
        sure = [(a, b) for a, b in zip(given, [*given[1:], 0.0], strict=True)]
        for (label, _), name, (mine, after) in zip(found, names, sure, strict=True):
            if mine - after > 2e-4:
                assert label == name, line[:40]
                continue
            break  # two that are as likely may change places


def test_the_end_of_a_line_in_a_text_does_not_end_it(model):
    loaded, path = model
    sums = WordSums(loaded, fasttext_models.pruned(path))
    plain, marked = sums.guesses(["ni kuma jiwa haba riya", "ni </s> kuma jiwa </s> haba riya"], 2)
    assert marked == plain


@pytest.mark.parametrize("model", ["tree", "quantised tree"], indirect=True)
def test_words_that_are_kept_are_bounded_and_forgetting_changes_nothing(model, monkeypatch):
    loaded, path = model
    whole = WordSums(loaded, fasttext_models.pruned(path))
    monkeypatch.setattr(word_sums, "GROUP", 50)
    monkeypatch.setattr(word_sums, "SLICE", 10)
    small = WordSums(loaded, fasttext_models.pruned(path))
    small.most = 150
    lines = texts(3, 200)
    for start in range(0, len(lines), 20):
        part = lines[start : start + 20]
        assert small.guesses(part, 2) == whole.guesses(part, 2)
        assert len(small.known) <= 150
