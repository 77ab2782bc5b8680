"""The layouts of real byte-level tokenizers, built small: nothing of the base moves, whatever surrounds its vocabulary."""

import json
from collections import Counter

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from toy import ENGLISH, FRENCH, make_tokenizer, sentences
from transformers import AutoTokenizer

from tokenizer_tools import kinds, protect
from tokenizer_tools.byte_bpe import continue_merges, extended, octets, plain, word_counts
from tokenizer_tools.texts import encode, made_of
from tokenizer_tools.vocabulary import NewToken, next_id, rounded, slots
from tokenizer_tools.words import counted, telling, told

# The regular expressions of the tokenizer.json files of Qwen 2, 2.5 and 3, and of Llama 3.
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
ODD = "l'été «à 1234 forêts»\n\n\tça coûte 3 € 🙂 naïve\u0301 हिन्दी ภาษา"


def changed(base, **model):
    """The tokenizer with other settings of its model."""
    state = json.loads(base.backend_tokenizer.to_str())
    state["model"] |= model
    base._tokenizer = Tokenizer.from_str(json.dumps(state))
    return base


def with_rule(rule: str, **model):
    """A tokenizer that divides text as Qwen or Llama 3 does."""
    base = make_tokenizer()
    split = pre_tokenizers.Split(Regex(rule), "isolated", invert=False)
    base.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    base.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return changed(base, **model)


def learnt(base, number=40, guarded=()):
    """New tokens of a toy French with typographic apostrophes, and the extended tokenizer."""
    state = base.backend_tokenizer
    text = [line.replace(" le ", " l’").replace(".", " ! ") for line in sentences(FRENCH, 300, 9)]
    apart = protect.pairs(state, word_counts(state, guarded))
    found = continue_merges(state, word_counts(state, text), number, 5, apart)
    return found, extended(base, found)


@pytest.mark.parametrize(
    "base",
    [
        lambda: with_rule(QWEN),
        lambda: with_rule(LLAMA),
        lambda: with_rule(LLAMA, ignore_merges=True),
        lambda: changed(make_tokenizer(), ignore_merges=True),
    ],
    ids=["Qwen", "Llama 3 without ignore_merges", "Llama 3", "ignore_merges"],
)
def test_new_tokens_stand_for_base_tokens_and_protected_text_stays(base, tmp_path):
    """Also where a word of the vocabulary is taken whole, without its merges: a new token is a word of the vocabulary then."""
    base = base()
    guarded = sentences(ENGLISH, 100, 11)
    found, bigger = learnt(base, guarded=guarded)
    bigger.save_pretrained(tmp_path)
    written, first = AutoTokenizer.from_pretrained(tmp_path), next_id(base)
    assert len(found) == 40
    words = [base.convert_tokens_to_string([token.text]) for token in found]
    for text in [*words, *sentences(FRENCH, 30, 12), ODD]:
        (ids,), (before,) = encode(written, [text]), encode(base, [text])
        spelt = [i for each in ids for i in (found[each - first].base_ids if each >= first else (each,))]
        assert spelt == before and written.decode(ids) == text
    assert encode(written, guarded) == encode(base, guarded)
    for token in found:  # every one is reached from its own text, and made of the tokens that the base writes there
        (one,) = written.backend_tokenizer.model.tokenize(token.text)
        assert (one.id, one.value) == (written.get_vocab()[token.text], token.text)
        assert [part.id for part in base.backend_tokenizer.model.tokenize(token.text)] == list(token.base_ids)


def test_a_word_taken_whole_is_the_token_that_its_merges_make():
    """Llama 3 ignores merges for words of its vocabulary; a new word must not mean another token for that."""
    merged, whole = with_rule(LLAMA), with_rule(LLAMA, ignore_merges=True)
    (found, without), (same, taken) = learnt(merged), learnt(whole)
    assert found == same
    texts = [*sentences(FRENCH, 50, 13), *sentences(ENGLISH, 50, 13), ODD]
    assert encode(without, texts) == encode(taken, texts)


def test_words_are_counted_as_the_tokenizer_divides_text():
    """Against a slow reference, with a normaliser; how far the reading is, is told."""
    backend = with_rule(QWEN).backend_tokenizer
    backend.normalizer = normalizers.NFC()
    texts, reference, lines = [ODD, "", *sentences(FRENCH, 30, 3)], Counter(), []
    for text in texts:
        reference.update(piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)))
    size = sum(len(text.encode()) for text in texts)
    assert counted(backend, told(texts, telling(lines.append, 0), size)) == reference
    assert len(lines) == len(texts) and lines[-1] == f"  bytes read: {size:,} of {size:,}, 0 s left"


def test_nothing_is_learnt_of_or_across_added_tokens_that_text_can_hold():
    """GPT-NeoX has runs of blanks as added tokens, which are not special: encoding finds them before it divides text."""
    base = make_tokenizer()
    base.add_tokens([AddedToken("    ", normalized=False), AddedToken("<br>", lstrip=True, rstrip=True, normalized=False)])
    backend = base.backend_tokenizer
    words = word_counts(backend, ["a    forêt", "one <br> forêt <|end|>"])
    assert words["forÃªt"] == 2 and "ĠforÃªt" not in words and words["Ġ<|"] == 1  # a special token in text is text
    text = ["    forêt    déjà"] * 9
    found = continue_merges(backend, word_counts(backend, text), 20, 5)
    bigger = extended(base, found)
    guarded = ["    the    " + line for line in sentences(ENGLISH, 20, 3)]
    apart = protect.pairs(backend, word_counts(backend, guarded))
    kept = extended(base, continue_merges(backend, word_counts(backend, [*text, *guarded]), 30, 2, apart))
    assert len(encode(bigger, text)[0]) == 4 and encode(kept, guarded) == encode(base, guarded)


def test_an_added_token_that_is_a_word_is_no_part_of_longer_words():
    base = make_tokenizer()
    base.add_tokens([AddedToken("le", single_word=True, normalized=False)])
    assert set(word_counts(base.backend_tokenizer, ["lexu", "a le b"])) == {"lexu", "a", "Ġ", "Ġb"}


def test_the_words_of_a_chat_template_are_protected():
    base = make_tokenizer()
    mark = base.all_special_tokens[0]
    base.chat_template = f"{{% for m in messages %}}{mark}Le {{{{ m.role }}}} parle\n{{{{ m.content }}}}{mark}{{% endfor %}}"
    texts = protect.template(base)
    assert any("user parle" in text for text in texts) and not any(mark in text for text in texts)
    base.chat_template = None
    assert protect.template(base) == []


def test_special_tokens_in_text_stay_text():
    base, text = with_rule(QWEN), "documents about <|im_start|> and <|end|> tokens"
    _, bigger = learnt(base, guarded=[text])
    (before,), (after,) = encode(base, [text]), encode(bigger, [text])
    assert before == after and not {bigger.eos_token_id, bigger.get_vocab()["<|im_start|>"]} & set(after)


def test_added_tokens_in_the_middle_of_the_vocabulary(tmp_path):
    base = make_tokenizer()
    state = json.loads(base.backend_tokenizer.to_str())
    state["model"]["vocab"] = {text: i + (i >= 200) for text, i in state["model"]["vocab"].items()} | {"<|middle|>": 200}
    state["added_tokens"].append(state["added_tokens"][0] | {"id": 200, "content": "<|middle|>"})
    base._tokenizer = Tokenizer.from_str(json.dumps(state))
    _, bigger = learnt(base)
    bigger.save_pretrained(tmp_path)
    written = AutoTokenizer.from_pretrained(tmp_path)
    before, after = base.get_vocab(), written.get_vocab()
    assert before["<|middle|>"] == 200 and {text: after[text] for text in before} == before
    assert written("<|middle|>").input_ids == [200] and sorted(after.values()) == list(range(361))


def test_ids_of_two_tokens_and_random_encodings_are_refused():
    """A hole in the vocabulary and added tokens outside of it: tokenizers numbers these by the size of the vocabulary."""
    base = make_tokenizer()
    base.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    state = json.loads(base.backend_tokenizer.to_str())
    state["model"]["vocab"] = {text: i + (i > 200) for text, i in state["model"]["vocab"].items()}
    last = max(state["model"]["vocab"], key=state["model"]["vocab"].get)
    base._tokenizer = Tokenizer.from_str(json.dumps(state))
    with pytest.raises(ValueError, match=r"the id 320 belongs to two tokens") as caught:
        kinds.of(base)
    assert repr(last) in str(caught.value) and "'<|im_end|>'" in str(caught.value)
    with pytest.raises(ValueError, match=r"leaves merges out at random \(dropout 0.1"):
        kinds.of(changed(make_tokenizer(), dropout=0.1))


def test_tokens_of_the_config_alone_and_the_longest_text_stay(tmp_path):
    """Qwen 3.5 names seven tokens in tokenizer_config.json only; they have ids, and new ids begin behind them."""
    base = make_tokenizer()
    base.model_max_length = 777
    base.chat_template = "{{ messages }}"
    base.save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    more = {str(320 + i): {"content": f"<tool_{i}>", "special": True} for i in range(3)}
    path.write_text(json.dumps(config | {"added_tokens_decoder": more}))
    base = AutoTokenizer.from_pretrained(tmp_path / "base")
    first = next_id(base)
    found, bigger = learnt(base)
    bigger.save_pretrained(tmp_path / "bigger")
    written = AutoTokenizer.from_pretrained(tmp_path / "bigger")
    alone = Tokenizer.from_file(str(tmp_path / "bigger" / "tokenizer.json"))
    assert {t: written.get_vocab()[t] for t in base.get_vocab()} == base.get_vocab()
    assert written.get_vocab()[found[0].text] == first and alone.get_vocab() == written.get_vocab()
    assert written.model_max_length == 777 and written.chat_template == base.chat_template
    text = sentences(FRENCH, 3, 4)
    assert [alone.encode(line).ids for line in text] == encode(written, text)


@pytest.mark.parametrize("name", ["<|reserved_special_token_{}|>", "<|placeholder{}|>", "[UNUSED_TOKEN_{}]", "<reserved_{}>"])
def test_reserved_tokens_give_their_ids_to_new_tokens(tmp_path, name):
    """Llama 3, Phi 3, InternLM 2 and Baichuan have free ids; new tokens that take them need no new rows."""
    base = make_tokenizer()
    names = [name.format(i) for i in range(30)]
    base.add_special_tokens({"additional_special_tokens": ["<|eot_id|>", *names]})
    base.chat_template = f"{{{{ '{names[7]}' }}}}"
    spare = slots(base)
    assert len(spare) == 29 and base.get_vocab()[names[7]] not in spare and base.get_vocab()["<|eot_id|>"] not in spare
    words = word_counts(base.backend_tokenizer, sentences(FRENCH, 300, 9))
    found = continue_merges(base.backend_tokenizer, words, 40, 5)
    ids = [*spare, *range(next_id(base), next_id(base) + 11)]
    extended(base, found, ids).save_pretrained(tmp_path)
    written = AutoTokenizer.from_pretrained(tmp_path)
    after = written.get_vocab()
    assert [after[token.text] for token in found] == ids and len(set(after.values())) == len(after) == 320 + 31 + 11
    assert {t: after[t] for t, i in base.get_vocab().items() if i not in spare} == {
        t: i for t, i in base.get_vocab().items() if i not in spare
    }
    assert written(names[7]).input_ids == [base.get_vocab()[names[7]]] and len(written(names[0]).input_ids) > 1
    behind, text = extended(base, found), sentences(FRENCH, 20, 12)
    new_id = {behind.get_vocab()[token.text]: i for token, i in zip(found, ids, strict=True)}
    assert encode(written, text) == [[new_id.get(i, i) for i in row] for row in encode(behind, text)]
    with pytest.raises(ValueError, match="is no reserved token, so its id 320 stays"):
        extended(base, found[:1], [base.get_vocab()["<|eot_id|>"]])


@pytest.mark.parametrize(("found", "first", "number"), [(100, 320, 64), (64, 320, 64), (63, 320, 0), (8000, 49153, 7999)])
def test_a_vocabulary_is_rounded_with_tokens_that_exist(found, first, number):
    assert rounded(found, first, 64) == number and (first + number) % 64 == 0 and rounded(found, first, 1) == found


def test_new_tokens_are_sorted_by_what_they_are_made_of():
    def token(text: str) -> NewToken:
        piece = make_tokenizer().backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)[0][0]
        return NewToken(piece[:1], piece[1:], (0,))

    kinds = ["letters", "marks", "digits", "letters", "marks"]
    assert [made_of(plain(token(text))) for text in ("forêt", "’’", "12", " é", " !")] == kinds
    assert made_of(plain(NewToken("à", "¤", (0,)))) == "parts" and octets("à¤") == b"\xe0\xa4"
