"""What a new piece of a SentencePiece vocabulary may look like: as the usual ones of the base, whatever odd piece that has."""

import itertools
import json
import random
from typing import Any

import pytest
import spm
from tokenizers import Tokenizer

from tokenizer_tools import kinds, pieces, roundtrip

SIGNS = ["le chat\nla maison, 12 !\n\nle jour ; été\u2028~"] * 30
ODD = "日\ufffd本 \ufffd\ufffd <0xE6>"


def learnt(tokenizer: Tokenizer, kind: Any, new: list[str], protected: list[str]) -> list[Any]:
    apart = kind.guarded(tokenizer, kind.word_counts(tokenizer, protected))
    return kind.learn(tokenizer, kind.word_counts(tokenizer, new), 60, 5, apart)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Bases: two with pieces of one kind of signs each, and two whose pieces often join letters, digits and signs."""
    root, text = tmp_path_factory.mktemp("spm"), ["the a1b cat's x86 don't."] * 50
    dice = random.Random(1)
    words = [" ".join("".join(dice.choices("aeiorstn", k=dice.randint(2, 6))) for _ in range(20)) for _ in range(200)]
    free = {"split_by_unicode_script": False, "split_by_number": False, "split_digits": False, "vocab_size": 450}
    found = {}
    for name in ("llama2", "llm-jp"):
        found[name] = spm.load(spm.write(root / name, name, words, vocab_size=600))
        found[f"{name} mixed"] = spm.load(spm.write(root / f"{name}+", name, text, **free))
    return found


def with_piece(base: Any, text: str) -> Tokenizer:
    """The tokenizer of a base with one more piece."""
    state = json.loads(base.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    if isinstance(vocab, list):
        vocab.append([text, -30.0])
    else:
        vocab[text] = max(vocab.values()) + 1
    return Tokenizer.from_str(json.dumps(state))


@pytest.mark.parametrize("name", ["llama2", "llm-jp"])
@pytest.mark.parametrize("odd", ["x'", "1'", "98"])
def test_one_odd_piece_is_no_rule(made: dict[str, Any], name: str, odd: str) -> None:
    base = made[name]
    found = learnt(with_piece(base, odd), kinds.of(base), SIGNS, [])
    plain = learnt(base.backend_tokenizer, kinds.of(base), SIGNS, [])
    assert [piece.text for piece in found] == [piece.text for piece in plain] and len(found) > 5
    assert not any(set(piece.text) & set("\n\u2028~") or "12" in piece.text for piece in found)


@pytest.mark.parametrize("name", ["llama2 mixed", "llm-jp mixed"])
def test_lines_and_ascii_stay_whatever_is_protected(made: dict[str, Any], name: str) -> None:
    """Where pieces of letters and signs are usual, new ones are learnt too; a break of lines is part of none."""
    base = made[name]
    kind, backend = kinds.of(base), base.backend_tokenizer
    assert frozenset("LS") in pieces.of(backend).common
    found = learnt(backend, kind, [*SIGNS, *["l'été d'où"] * 30], [])
    assert any("'" in piece.text for piece in found)
    assert not any(set(piece.text) & set("\n\u2028") or (len(piece.text) == 1 and piece.text.isascii()) for piece in found)
    bigger = kind.extended(base, found)
    for text in ("the cat\nthe dog\n", "a ~ b\r\n\tc"):
        assert roundtrip.encode(bigger, text) == roundtrip.encode(base, text)


@pytest.mark.parametrize("name", ["llama2", "llm-jp", "llama2 mixed", "llm-jp mixed"])
def test_a_replacement_character_is_a_character(made: dict[str, Any], name: str) -> None:
    """U+FFFD in a text is written in three bytes as others are: it hides no neighbour, and no piece is named as a byte."""
    base = made[name]
    kind, backend = kinds.of(base), base.backend_tokenizer
    new = ["日本 日本日本 日 本"] * 20 + [ODD] * 20
    found = learnt(backend, kind, new, [ODD, "the dog"])
    bigger = kind.extended(base, found)
    assert roundtrip.encode(bigger, ODD) == roundtrip.encode(base, ODD)
    free = learnt(backend, kind, new, [])
    assert free and not any(pieces.BYTE.search(piece.text) for piece in [*found, *free])


def test_bytes_that_spell_no_character_keep_their_names(made: dict[str, Any]) -> None:
    rules = pieces.of(made["llama2"].backend_tokenizer)
    names = [f"<0x{byte:02X}>" for byte in b"\xe6\xc3\xa9\xef\xbf\xbd\xa9"]
    assert list(rules.words([*names, "a"])) == [("é", "\ufffd"), ("a",)]


def test_characters_and_merges_are_ranked_by_the_tokens_that_they_save(made: dict[str, Any]) -> None:
    """Ten of each rare character save less than a merge of three that are frequent; and n pieces begin as more do."""
    base = made["llama2"]
    kind, backend = kinds.of(base), base.backend_tokenizer
    signs = [chr(0x4E00 + i) for i in range(60)]
    new = ["".join(signs[:3]) + " "] * 1000 + [" ".join(signs)] * 10
    words, told = kind.word_counts(backend, new), []
    found = kind.learn(backend, words, 50, 5, (), progress=lambda *line: told.append(line))
    texts = [piece.text for piece in found]
    assert set(texts[:4]) > set(signs[:3]) and "".join(signs[:3]) in {text.strip("▁") for text in texts[:8]}
    assert len(texts) == 50 and set(texts[8:]) <= set(signs) and told[-1] == ("pieces learnt", 50, 50)
    for number in (2, 5, 20):
        assert kind.learn(backend, words, number, 5, ()) == found[:number]
    bigger = kind.extended(base, found)
    assert len(roundtrip.encode(bigger, "".join(signs[:3]))) == 1


def test_text_without_spaces_is_cut_into_runs_that_overlap_by_one(made: dict[str, Any]) -> None:
    """So a sentence is no word of its own, and every two neighbours of protected text are still found."""
    rules = pieces.of(made["llama2"].backend_tokenizer)
    letters = [chr(0xE01 + i % 40) for i in range(200)]
    runs = list(rules.words(letters))
    assert max(map(len, runs)) == pieces.LONGEST_RUN and [run[0] for run in runs[1:]] == [run[-1] for run in runs[:-1]]
    pairs = [pair for run in runs for pair in itertools.pairwise(run)]
    assert pairs == list(itertools.pairwise(letters))


def test_a_token_is_one_string_wherever_it_occurs(made: dict[str, Any]) -> None:
    """Also one that the base spells in bytes: text in such a script would take kilobytes a word."""
    base = made["llama2"]
    words = kinds.of(base).word_counts(base.backend_tokenizer, ["日本語 語日本", "the dog", "日 the"])
    tokens = [token for word in words for token in word]
    assert "日" in tokens and len({id(token) for token in tokens}) == len(set(tokens)) < len(tokens)
