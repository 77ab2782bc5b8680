"""What is refused when an extension is planned, and what the ids that a config names and the rows of a base say of new ones."""

import json

import pytest
import spm
from tokenizers import AddedToken
from toy import make_tokenizer
from transformers import AutoTokenizer

from tokenizer_tools import extension, protect, roles
from tokenizer_tools.vocabulary import ids, rounded, unrounded


def load(folder):
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_a_base_that_is_another_one_when_it_is_written_is_refused(tmp_path):
    """Here, because no space is put before text behind a special token any more when it is read again."""
    folder = spm.write(tmp_path / "base", "llama2", user_defined_symbols=["<b>", "é", "日本", "▁▁"])
    base = spm.load(folder)
    assert extension.kind_of(base, folder, spm.load).name == "BPE of SentencePiece"
    base.save_pretrained(tmp_path / "again")
    again = spm.load(tmp_path / "again")
    with pytest.raises(ValueError, match="the base itself encodes text around its added token .* in another way") as caught:
        extension.kind_of(base, folder, lambda _: again)
    assert "save it once with save_pretrained and take that folder, without tokenizer.model" in str(caught.value)
    plain = make_tokenizer()
    plain.add_tokens([AddedToken("<br>", lstrip=True, normalized=False), AddedToken("chat", single_word=True)])
    assert extension.kind_of(plain, tmp_path, load).name == "byte-level BPE"


CONFIG = {
    "eos_token_id": [1, 2],
    "pad_token_id": -1,
    "tie_word_embeddings": True,
    "image_token_index": 7,
    "text_config": {"bos_token_id": 3, "hidden_size": 999, "vocab_size": 400},
    "vision_config": {"eos_token_id": 49407},
    "suppress_tokens": [4, 5],
    "forced_decoder_ids": [[500, 6], [501, None]],
    "bad_words_ids": [[8], [9, 10]],
    "forced_bos_token_id": None,
}


def test_every_id_that_a_config_names_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert roles.named(tmp_path) == set(range(1, 11)) and roles.rows(tmp_path) == 400


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"text_config": {"eos_token_id": 320}},
            "config.json says that 320 is the eos token, which the tokenizer does not have",
        ),
        ({"image_token_index": 321}, "321 is a token of image_token_index, which"),
        ({"suppress_tokens": [1, 322]}, "322 is a token of suppress_tokens"),
        ({"forced_decoder_ids": [[1, 400]]}, "400 is a token of forced_decoder_ids"),
    ],
)
def test_an_id_that_would_be_that_of_a_new_token_is_refused(tmp_path, config, said):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        extension.kind_of(make_tokenizer(), tmp_path, load)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 319, "forced_decoder_ids": [[900, 2]]}))
    assert extension.kind_of(make_tokenizer(), tmp_path, load)


@pytest.mark.parametrize("template", ["{{ 1/0 }}", "{{ [].pop() }}", "{{ messages[5].content.x }}", "{% for %}"])
def test_a_chat_template_that_fails_is_one_without_text(template):
    base = make_tokenizer()
    base.chat_template = template
    assert protect.template(base) == []


def test_new_tokens_in_the_padding_of_a_base_are_not_rounded_and_that_is_said():
    base = make_tokenizer()
    assert rounded(10, 320, 64, rows=400) == 10  # the model keeps its 400 rows
    assert rounded(100, 320, 64, rows=400) == 80  # 384 would be fewer than the base has
    assert rounded(200, 320, 64, rows=400) == 192 and rounded(200, 320, 64) == 192
    given = ids(base, 10, (), 64, 400)
    assert given == list(range(320, 330))
    assert "does nothing: new tokens take rows that the base has, which keeps its 400" in unrounded(base, given, 64, 400)
    assert unrounded(base, [5, 6], 64) == "" and "keeps its 320" in unrounded(base, [5, 6], 7)
    assert unrounded(base, ids(base, 200, (), 64, 400), 64, 400) == "" == unrounded(base, [], 64, 400)
