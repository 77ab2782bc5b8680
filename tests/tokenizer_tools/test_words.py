"""Words are counted as they are, however the text is divided for it, and memory does not grow with what occurs once."""

import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import spm
from toy import ENGLISH, FRENCH, make_tokenizer, sentences

from tokenizer_tools import byte_bpe, kinds
from tokenizer_tools.words import frequent, ordered, tallied


@pytest.fixture(params=["byte", "llama2", "llm-jp"])
def base(request: Any, tmp_path: Any) -> Any:
    return make_tokenizer() if request.param == "byte" else spm.load(spm.write(tmp_path, request.param))


def test_the_words_that_are_learnt_from_are_bounded_by_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most frequent win."""
    monkeypatch.setattr("tokenizer_tools.words.MOST_TOKENS", 7)
    words = Counter({("b", "b"): 3, ("a", "a"): 3, ("c", "d", "e", "f"): 5, ("x",): 2, ("y",) * 9: 1})
    assert list(frequent(words, tuple)) == [(("c", "d", "e", "f"), 5), (ordered(words)[1], 3)]
    monkeypatch.setattr("tokenizer_tools.words.MOST_TOKENS", 18)
    assert [count for _, count in frequent(words, tuple)] == [5, 3, 3, 2, 1]


def test_a_word_of_many_tokens_takes_the_room_of_many_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a script without spaces a word is a clause: their number alone says nothing of the memory."""
    base = make_tokenizer().backend_tokenizer
    words = byte_bpe.word_counts(base, [*["日本日本日本日本"] * 5, *["été"] * 3])
    assert {len(base.model.tokenize(word)) for word in words} == {24, 5}

    def accents() -> int:
        return sum("Ã©" in token.text for token in byte_bpe.continue_merges(base, words, 50, 2))

    assert accents()
    monkeypatch.setattr("tokenizer_tools.words.MOST_TOKENS", 24)
    assert not accents() and byte_bpe.continue_merges(base, words, 50, 2)


def test_text_is_counted_alike_in_one_go_and_in_many(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, text = kinds.of(base), [*sentences(FRENCH, 100, 3), "", *sentences(ENGLISH, 20, 4)]
    whole = kind.word_counts(base.backend_tokenizer, iter(text))
    for characters in (1, 50, 1000):
        monkeypatch.setattr("tokenizer_tools.words.CHARACTERS", characters)
        for thin in (False, True):
            assert kind.word_counts(base.backend_tokenizer, iter(text), thin) == whole
    assert whole.total() > 300


def test_of_very_many_words_rare_ones_go_but_never_those_of_protected_text(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frequent ones stay with all their counts, and of text in which nothing occurs twice a part is left."""
    kind, often = kinds.of(base), "chien"
    text = [f"{often} {often} {''.join(chr(97 + (i * k) % 26) for k in range(3, 9))}{i}" for i in range(300)]
    whole = kind.word_counts(base.backend_tokenizer, text)
    for name, value in (("MOST_SIGNS", 500), ("CHARACTERS", 200)):
        monkeypatch.setattr(f"tokenizer_tools.words.{name}", value)
    assert kind.word_counts(base.backend_tokenizer, text) == whole
    thin = kind.word_counts(base.backend_tokenizer, text, True)
    best, count = whole.most_common(1)[0]
    assert thin[best] == count >= 300 and sum(map(len, thin)) <= 500 + 200 < sum(map(len, whole))
    assert all(count <= whole[word] for word, count in thin.items())
    once = tallied([[(str(i), "x")] for i in range(1000)], thin=True)
    assert 250 <= sum(map(len, once)) <= 502 and set(once.values()) == {1}


def test_what_is_left_out_is_the_same_in_every_process_and_no_matter_of_letters() -> None:
    code = """
import hashlib
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizer_tools import words
words.MOST_SIGNS, words.CHARACTERS = 2000, 3000
made = Tokenizer(models.BPE())
made.pre_tokenizer = pre_tokenizers.Whitespace()
text = [" ".join(f"{a}{b}{n}" for a in "abcxyz") for b in "klm" for n in range(100, 140)]
found = words.counted(made, text, thin=True)
firsts = {word[0] for word in found}
print(len(firsts), hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest())
"""
    said = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1 and said.pop().startswith("6 ")
