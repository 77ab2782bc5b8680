"""Continued merges: every base id stays, texts survive the round trip, and the result is what plain BPE would give."""

import itertools
import json
import subprocess
import sys

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from toy import ENGLISH, FRENCH, make_tokenizer, sentences

from tokenizer_tools import protect
from tokenizer_tools.byte_bpe import continue_merges, cut_before_marks, extended, obstacle, word_counts
from tokenizer_tools.start import subtoken_mean
from tokenizer_tools.vocabulary import next_id


@pytest.fixture(scope="module")
def pair():
    base = make_tokenizer()
    words = word_counts(base.backend_tokenizer, sentences(FRENCH, 300, 9))
    found = continue_merges(base.backend_tokenizer, words, 60, 5)
    return base, found, extended(base, found)


def test_base_ids_and_special_tokens_are_unchanged(pair):
    base, found, bigger = pair
    before, after = base.get_vocab(), bigger.get_vocab()
    assert all(after[token] == i for token, i in before.items())
    assert len(bigger) == len(base) + len(found)
    assert [after[token.text] for token in found] == list(range(len(base), len(base) + len(found)))
    assert bigger.eos_token_id == base.eos_token_id


def test_round_trip_and_shorter_new_language(pair):
    base, _, bigger = pair
    for text in [*sentences(FRENCH, 20, 10), *sentences(ENGLISH, 20, 11), "naïve — ça coûte 3 €\n\n\t日本 🙂<|end|>"]:
        assert bigger.decode(bigger(text).input_ids) == text
    text = " ".join(sentences(FRENCH, 50, 12))
    assert len(bigger(text).input_ids) < 0.7 * len(base(text).input_ids)


def test_new_tokens_stand_for_what_the_base_wrote(pair):
    base, found, bigger = pair
    first = len(base)
    text = " ".join(sentences(FRENCH, 30, 13))
    spelt = []
    for i in bigger(text).input_ids:
        spelt += found[i - first].base_ids if i >= first else [i]
    assert spelt == base(text).input_ids


def test_merges_are_the_most_frequent_first(pair):
    """Against a slow reference: count all pairs anew after every merge."""
    base, found, _ = pair
    words = word_counts(base.backend_tokenizer, sentences(FRENCH, 300, 9))
    split = {w: [t.value for t in base.backend_tokenizer.model.tokenize(w)] for w in words}
    for token in found[:12]:
        counts = {}
        for word, parts in split.items():
            for a, b in itertools.pairwise(parts):
                counts[a, b] = counts.get((a, b), 0) + words[word]
        assert counts[token.left, token.right] == max(n for (a, b), n in counts.items() if a + b not in base.get_vocab())
        for word, parts in split.items():
            joined = []
            for part in parts:
                if joined and joined[-1] == token.left and part == token.right:
                    joined[-1] = token.text
                else:
                    joined.append(part)
            split[word] = joined


def test_saved_and_loaded_it_is_the_same(pair, tmp_path):
    from transformers import AutoTokenizer

    _, _, bigger = pair
    bigger.save_pretrained(tmp_path)
    text = " ".join(sentences(FRENCH, 5, 14))
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == bigger(text).input_ids


def test_other_kinds_of_tokenizers_are_refused():
    with pytest.raises(ValueError, match="byte-level BPE only"):
        continue_merges(
            Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), word_counts(make_tokenizer().backend_tokenizer, ["a"]), 1, 2
        )


def test_rows_are_means_of_their_parts():
    weight = torch.randn(10, 4)
    rows = subtoken_mean(weight, [[1, 2], [3, 3, 5]])
    assert torch.allclose(rows[0], (weight[1] + weight[2]) / 2)
    assert torch.allclose(rows[1], (2 * weight[3] + weight[5]) / 3)


def test_it_does_not_import_langext():
    code = "import sys, tokenizer_tools.byte_bpe, tokenizer_tools.start; sys.exit('langext' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("layout", ["after the vocabulary", "a hole in it"])
def test_added_tokens_and_holes_keep_their_ids(tmp_path, layout):
    """As in Llama 3 and Qwen, whose special tokens follow the vocabulary and are not part of it."""
    from transformers import AutoTokenizer

    base = make_tokenizer()
    if layout == "after the vocabulary":
        base.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    else:
        state = json.loads(base.backend_tokenizer.to_str())
        state["model"]["vocab"] = {text: i + (i > 300) for text, i in state["model"]["vocab"].items()}
        base._tokenizer = Tokenizer.from_str(json.dumps(state))
    words = word_counts(base.backend_tokenizer, sentences(FRENCH, 300, 9))
    found = continue_merges(base.backend_tokenizer, words, 20, 5)
    extended(base, found).save_pretrained(tmp_path)
    bigger = AutoTokenizer.from_pretrained(tmp_path)
    before, after = base.get_vocab(), bigger.get_vocab()
    assert {text: after[text] for text in before} == before
    first = max(before.values()) + 1
    assert next_id(base) == first and [after[token.text] for token in found] == list(range(first, first + 20))
    assert all(bigger(name).input_ids == [i] for name, i in before.items() if name.startswith("<|"))
    text = " ".join(sentences(FRENCH, 5, 14))
    assert bigger.decode(bigger(text).input_ids) == text and len(bigger(text).input_ids) < len(base(text).input_ids)


def test_parts_of_words_that_begin_with_a_vowel_sign_are_counted():
    backend = make_tokenizer().backend_tokenizer
    letters = pre_tokenizers.Split(Regex(r"\p{L}+|[^\p{L}]"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([letters, pre_tokenizers.ByteLevel(False, use_regex=False)])
    assert cut_before_marks(word_counts(backend, ["हिन्दी में किताब"])) > 0.2
    assert cut_before_marks(word_counts(backend, ["a forêt in summer"])) == 0
    assert cut_before_marks(word_counts(backend, ["می\u200cروم کتاب\u200cها"])) > 0.2
    whole = make_tokenizer().backend_tokenizer
    assert obstacle(whole) == "" and "not byte-level" in obstacle(Tokenizer(models.BPE()))


def test_protected_text_is_encoded_as_before_and_other_text_still_gets_shorter():
    base = make_tokenizer()
    state = base.backend_tokenizer
    new = word_counts(state, [*sentences(FRENCH, 300, 9), *sentences(ENGLISH, 300, 10)])
    guarded = [*sentences(ENGLISH, 100, 11), *sentences(FRENCH, 1, 12)]
    apart = protect.pairs(state, word_counts(state, guarded))
    shares = {}
    for name, kept_apart in (("free", set()), ("protected", apart)):
        found = continue_merges(state, new, 60, 5, kept_apart)
        bigger, spelt = extended(base, found), {len(base) + i: token.base_ids for i, token in enumerate(found)}
        assert not any((token.left, token.right) in kept_apart for token in found)
        english, french = (
            protect.identity(zip(base(texts).input_ids, bigger(texts).input_ids, strict=True), spelt)
            for texts in (guarded, sentences(FRENCH, 50, 13))
        )
        assert french.share < 0.5 and french.replaced > 0.2 * french.tokens
        shares[name] = english.share, english.replaced
    assert shares["free"][0] < 1 and shares["free"][1] > 0 and shares["protected"] == (1, 0)
