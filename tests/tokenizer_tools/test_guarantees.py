"""Each guarantee of an extension, broken on purpose, is named in one sentence."""

import copy
import json
from dataclasses import replace

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, processors
from toy import ENGLISH, FRENCH, make_tokenizer, sentences

from tokenizer_tools import byte_bpe, guarantees

TEXTS = [*sentences(FRENCH, 20, 10), *sentences(ENGLISH, 5, 11)]


@pytest.fixture(scope="module")
def made():
    base = make_tokenizer()
    words = byte_bpe.word_counts(base.backend_tokenizer, sentences(FRENCH, 100, 9))
    found = byte_bpe.continue_merges(base.backend_tokenizer, words, 30, 5)
    return base, byte_bpe.extended(base, found), found, words


def broken(made, written=None, found=None, configs=None):
    base, bigger, right, words = made
    return guarantees.broken(base, bigger, written or bigger, found or right, words, TEXTS, configs or {}, coarser=True)


def changed(tokenizer, change):
    """A copy whose state has gone through `change`."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    change(state)
    other = copy.deepcopy(tokenizer)
    other._tokenizer = Tokenizer.from_str(json.dumps(state))
    return other


def test_a_sound_extension_breaks_none(made):
    assert broken(made, configs={"config.json": {"eos_token_id": [0], "pad_token_id": None, "bos_token_id": 0}}) == ""


def test_moved_and_surplus_tokens(made):
    def swap(state):
        vocab = state["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    assert broken(made, changed(made[1], swap)) == "the token 'a' would get another id (65 -> 66)"
    assert "has the id" in broken(made, found=[made[2][1], made[2][0], *made[2][2:]])
    more = copy.deepcopy(made[1])
    more.add_tokens([AddedToken("<odd>")])
    assert broken(made, more) == "the token '<odd>' appears that is neither of the base nor new"


def test_special_tokens(made):
    other = copy.deepcopy(made[1])
    other.bos_token = "a"
    assert "the bos token would get another id (None ->" in broken(made, other)
    first = len(made[0])
    said = broken(made, configs={"generation_config.json": {"eos_token_id": [0, first]}})
    assert said.startswith(f"generation_config.json says that {first} is the eos token, which the tokenizer does not have")
    other = copy.deepcopy(made[1])
    other.chat_template = "x"
    assert "chat template" in broken(made, other)


def test_special_tokens_that_would_do_something_else(made):
    def plain(state):
        for token in state["added_tokens"]:
            token["special"] = False

    def bare(state):
        state["post_processor"] = None

    assert "the added token with the id" in broken(made, changed(made[1], plain))
    base = copy.deepcopy(made[0])
    base._tokenizer.post_processor = processors.TemplateProcessing("a $0", special_tokens=[("a", base.get_vocab()["a"])])
    bigger = byte_bpe.extended(base, made[2])
    assert broken((base, bigger, *made[2:])) == ""
    assert "other tokens would be put around text" in broken((base, bigger, *made[2:]), changed(bigger, bare))


def test_text_that_spells_a_special_token_must_not_become_it(made):
    base = copy.deepcopy(made[0])
    base.add_special_tokens({"additional_special_tokens": ["cat"]})
    bigger = byte_bpe.extended(base, made[2])
    assert broken((base, bigger, *made[2:])) == ""

    def whole(state):  # as in Llama 3: words of the vocabulary are taken whole
        state["model"]["ignore_merges"] = True

    assert "text that spells 'cat' would become a special token" in broken((base, bigger, *made[2:]), changed(bigger, whole))


def test_a_token_that_is_in_no_other_one_must_be_reached_by_itself(made):
    inner = {part for token in made[2] for part in (token.left, token.right)}
    alone = next(
        token for token in made[2] if token.text not in inner and any(token.text in t.text for t in made[2] if t != token)
    )

    def forget(state):
        state["model"]["merges"].remove([alone.left, alone.right])

    assert repr(alone.text) in broken(made, changed(made[1], forget))


def test_tokens_that_are_not_made_of_their_parts(made):
    wrong = replace(made[2][0], base_ids=made[2][0].base_ids[:1])
    assert "is not made of its tokens of the base" in broken(made, found=[wrong, *made[2][1:]])


def test_tokens_that_nothing_leads_to(made):
    def forget(state):
        state["model"]["merges"] = state["model"]["merges"][: -len(made[2])]

    assert "would never be used" in broken(made, changed(made[1], forget))


def test_another_tokenizer_when_read_again(made):
    """As a `tokenizer_class` that builds its own normalizer."""
    other = changed(made[1], lambda state: None)
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert "of tokenizer_config.json does not keep what tokenizer.json says" in broken(made, other)


def test_tokens_that_stand_for_other_text(made):
    base, bigger, found, words = made
    bare = changed(base, lambda state: state["model"]["merges"].reverse())
    said = guarantees.broken(bare, bigger, bigger, found, words, TEXTS, {}, coarser=True)
    assert "do not stand for what the base writes" in said
