"""Text stays text: what spells a special token is encoded as its letters, for every kind of tokenizer."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from toy import make_tokenizer
from transformers import AddedToken, PreTrainedTokenizerFast

from langext.data.documents import encode
from langext.data.plain_text import encode_text, special_ids
from langext.evaluation import neutrality

LETTERS = [*"abcdefghijklmnopqrstuvwxyz<|>/_", "▁"]


def byte_level():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "</s>"]})
    return tokenizer


def wrapped(model):
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return tokenizer


def unigram():
    """Its model knows the names of special tokens as pieces, and better than their letters."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in LETTERS)]
    return wrapped(models.Unigram(pieces, unk_id=0))


def bpe():
    names = ["<unk>", "<s>", "</s>", *LETTERS, "</", "s>"]
    vocab = {name: number for number, name in enumerate(names)}
    return wrapped(models.BPE(vocab, [("<", "/"), ("s", ">")], unk_token="<unk>"))


def unigram_nfkc():
    """As the models of SentencePiece: what is written wide becomes narrow, and then a name of a special token."""
    tokenizer = unigram()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, unigram, unigram_nfkc, bpe])
def test_text_never_becomes_a_special_token(make):
    tokenizer = make()
    special = special_ids(tokenizer)
    text = "a page about </s> and <|im_start|> user"
    assert special & set(tokenizer(text, add_special_tokens=False).input_ids)  # what happens without care
    rows = encode_text(tokenizer, [text, "a plain text"])
    assert not special & {i for row in rows for i in row}
    assert tokenizer.decode(rows[0]) == text
    assert rows[1] == tokenizer("a plain text", add_special_tokens=False).input_ids
    whole = encode(tokenizer, [text])
    assert whole[0][1:] == rows[0] and whole[0][0] == tokenizer.eos_token_id
    assert neutrality.encode(tokenizer, text) == whole[0]  # certificates have an encoding of their own
    assert tokenizer("</s>", add_special_tokens=False).input_ids[0] in special  # the tokenizer itself is as before


def test_a_name_in_wide_letters_is_text_too():
    tokenizer = unigram_nfkc()
    (row,) = encode_text(tokenizer, ["a\uff1c/s\uff1eb"])
    assert tokenizer.convert_ids_to_tokens(row) == ["▁", "a", "<", "/", "s", ">", "b"]


def test_letters_without_a_token_are_their_bytes_or_unknown_or_nothing():
    octets = [f"<0x{byte:02X}>" for byte in "ß".encode()]
    for known, unk, expected in ((octets, "<unk>", ["a", *octets]), ([], "<unk>", ["a", "<unk>"]), ([], None, ["a"])):
        vocab = {name: i for i, name in enumerate(["<unk>", "aß", "x", "a", *known])}
        backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="aß", unk_token=unk)
        (row,) = encode_text(tokenizer, ["x aß"])
        assert tokenizer.convert_ids_to_tokens(row) == ["x", *expected]
        assert neutrality.encode(tokenizer, "x aß") == [tokenizer.eos_token_id, *row]


def test_unknown_letters_and_tokens_that_are_not_special_stay():
    tokenizer = unigram()
    assert tokenizer.unk_token_id in encode_text(tokenizer, ["aßa"])[0]
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    for text in ("aßa", "a <tool>"):
        assert [neutrality.encode(tokenizer, text)] == encode(tokenizer, [text])
    assert encode_text(tokenizer, ["a <tool>"])[0][-1] == tokenizer.convert_tokens_to_ids("<tool>")


def test_bytes_that_a_tokenizer_flags_as_special_stay_bytes():
    names = ["<unk>", "<s>", "</s>", "▁", "a", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE({name: number for number, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = wrapped(model)
    wanted = tokenizer("aé", add_special_tokens=False).input_ids
    tokenizer.add_special_tokens({"additional_special_tokens": ["<0xC3>", "<0xA9>"]})
    assert encode_text(tokenizer, ["aé"]) == [wanted] and names.index("<0xC3>") in wanted
