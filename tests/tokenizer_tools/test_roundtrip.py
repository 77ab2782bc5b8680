"""Text survives an extended vocabulary wherever it survives the base's, and half a character is refused."""

import sys
import unicodedata

import pytest
import spm
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers
from toy import ENGLISH, FRENCH, make_tokenizer, sentences

from tokenizer_tools import kinds, roundtrip
from tokenizer_tools.vocabulary import next_id

ALPHABETS = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from("eE\u0301a\u0300c\u0327nfêçøß œ\ufb01\u00a0\u2003"),
    st.sampled_from("😀👩\u200d🚀🏳️\u200d🌈🇫🇷👍🏽"),
    st.sampled_from("שלום مرحبا\u200f\u202e"),
    st.sampled_from("日本語森한국어हिन्दी"),
    st.sampled_from(["\0", "\t", "\n", "\r", "  ", "▁", " le ", "forêt", "<s>", "<0x0A>", "<|end|>", "été"]),
)
TEXTS = st.lists(ALPHABETS, max_size=20).map("".join)


def normalised():
    """A byte-level base that changes text before it divides it, with added tokens that are found before and after that."""
    base = make_tokenizer()
    base.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    base.add_tokens(
        [AddedToken("  ", normalized=False), AddedToken("été", normalized=True), AddedToken("森", single_word=True)]
    )
    base.add_special_tokens({"additional_special_tokens": ["<s>"]})
    return base


@pytest.fixture(scope="session", params=["byte-level", "normalised", *spm.SETTINGS])
def pair(request, tmp_path_factory):
    """A base, and the same with pieces for French and a script that it spells in bytes."""
    toys = {"byte-level": make_tokenizer, "normalised": normalised}
    base = toys.get(request.param, lambda: spm.load(spm.write(tmp_path_factory.mktemp("base"), request.param)))()
    kind, backend = kinds.of(base), base.backend_tokenizer
    words = kind.word_counts(backend, [*sentences(FRENCH, 60, 9), *["हिन्दी में 日本語 森"] * 9])
    apart = kind.guarded(backend, kind.word_counts(backend, sentences(ENGLISH, 60, 11)))
    found = kind.learn(backend, words, 60, 5, apart)
    return base, found, kind.extended(base, found), kind.coarser


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example("e\u0301\u0301 ▁▁ \0<0xC3>é")
def test_what_the_base_gives_back_the_extended_one_gives_back(pair, text):
    base, found, bigger, coarser = pair
    assert roundtrip.lost(base, bigger, [text]) == ""
    before, after, first = roundtrip.encode(base, text), roundtrip.encode(bigger, text), next_id(base)
    if all(i < first for i in after):
        assert after == before
    if coarser:
        spelt = (found[i - first].base_ids if i >= first else (i,) for i in after)
        assert [i for run in spelt for i in run] == before


def test_original_text_has_the_same_ids(pair):
    base, _, bigger, _ = pair
    texts = sentences(ENGLISH, 60, 11)
    assert [roundtrip.encode(bigger, text) for text in texts] == [roundtrip.encode(base, text) for text in texts]
    assert roundtrip.lost(base, bigger, [*texts, *sentences(FRENCH, 20, 12)]) == ""
    assert any(i >= next_id(base) for text in sentences(FRENCH, 20, 12) for i in roundtrip.encode(bigger, text))


def test_a_loss_is_found(pair):
    base, _, bigger, _ = pair
    assert roundtrip.lost(base, Loud(bigger), ["the cat", "cat"]) == "the cat"


class Loud:
    """A tokenizer that decodes with a mistake."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, *texts, **settings):
        return self.tokenizer(*texts, **settings)

    def decode(self, ids, **settings):
        return self.tokenizer.decode(ids, **settings).upper()


def test_half_a_character_is_refused(pair):
    with pytest.raises(ValueError, match=r"lone surrogate \(U\+D83D\) at character 3"):
        roundtrip.encode(pair[0], "abc\ud83d")
    assert roundtrip.checked("abc😀") == "abc😀"


def test_bytes_of_text_are_those_of_all_characters_that_unicode_has():
    every = (chr(number) for number in range(sys.maxunicode + 1))
    text = "".join(sign for sign in every if unicodedata.category(sign) not in ("Cn", "Co", "Cs"))
    assert set(text.encode()) == roundtrip.BYTES_OF_TEXT
