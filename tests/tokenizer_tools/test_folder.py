"""A tokenizer is written so that it is read as before, and what a folder says in two ways is refused."""

import json

import pytest
import sentencepiece
import spm
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from toy import ENGLISH, FRENCH, make_tokenizer, sentences
from transformers import AutoTokenizer

from tokenizer_tools import extension, folder, guarantees, kinds

BESIDE = ["<s>the cat</s>the dog", "</s>\nthe", "a</s>b <s> c"]


def configured(path, **more):
    """The folder, with more settings of its tokenizer."""
    file = path / folder.CONFIG
    file.write_text(json.dumps(folder.settings(path) | more))
    return path


@pytest.mark.parametrize("legacy", [True, False])
def test_what_stands_beside_special_tokens_is_encoded_as_before(legacy, tmp_path):
    """transformers writes no `legacy`, which says whether a space is put before the text behind a special token."""
    base = folder.read(configured(spm.write(tmp_path / "base", "llama2"), legacy=legacy))
    kind = extension.kind_of(base, tmp_path / "base", folder.read)
    words = kind.word_counts(base.backend_tokenizer, sentences(FRENCH, 100, 9))
    apart = kind.guarded(base.backend_tokenizer, kind.word_counts(base.backend_tokenizer, ["the cat a b c", "the dog"]))
    found = kind.learn(base.backend_tokenizer, words, 20, 5, apart)
    text = {"words": words, "texts": sentences(ENGLISH, 5, 2), "protected": {}}
    written = extension.write(tmp_path / "out", tmp_path / "base", kind, base, found, read=folder.read, **text).tokenizer
    wanted = [base(text).input_ids for text in BESIDE]
    assert [written(text).input_ids for text in BESIDE] == wanted
    assert folder.settings(tmp_path / "out")["legacy"] is legacy
    other = folder.read(configured(tmp_path / "out", legacy=not legacy))
    assert "would be encoded in another way" in guarantees.broken(base, written, other, found, words, [], {}, coarser=False)


def test_a_file_is_read_as_it_is_where_the_class_that_is_named_builds_another_tokenizer(tmp_path):
    """As of SmolLM2, whose file divides digits, and of one that cuts numbers into three digits, as Llama 3's does."""
    rule = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    by_digits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    by_rule = [pre_tokenizers.Split(Regex(rule), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    for name, steps in (("GPT2Tokenizer", by_digits), ("Qwen2Tokenizer", by_rule)):
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
        made.train_from_iterator(
            [*[f"{text} In 1984 « le ° chat » ①½." for text in sentences(ENGLISH, 200, 1)], " ① ½" * 9], trainer
        )
        path = tmp_path / name
        path.mkdir()
        made.save(str(path / "tokenizer.json"))
        base = folder.read(configured(path, tokenizer_class=name, eos_token="<|endoftext|>"))
        texts = [*folder.PROBES, "In 1984, ① ½ 12345"]
        wanted = [made.encode(text).ids for text in texts]
        plain = AutoTokenizer.from_pretrained(path)
        assert type(plain).__name__ == name and [plain(text).input_ids for text in texts] != wanted
        assert [base(text).input_ids for text in texts] == wanted and base.eos_token == "<|endoftext|>"
        assert extension.kind_of(base, path, folder.read).name == "byte-level BPE"
        folder.write(base, tmp_path / f"{name}+")
        again = AutoTokenizer.from_pretrained(tmp_path / f"{name}+")
        assert [again(text).input_ids for text in texts] == wanted


@pytest.mark.parametrize("config", [None, {}, {"tokenizer_class": "PreTrainedTokenizerFast"}])
def test_a_model_of_sentencepiece_beside_which_no_class_is_named_is_read_as_it_says(config, tmp_path):
    path = spm.write(tmp_path / "base", "llama2")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path / "tokenizer.model"))
    (path / "tokenizer_config.json").unlink()
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "config.json").write_text('{"model_type": "llama"}')
    base = folder.read(path)
    wanted = [pieces.EncodeAsIds(text) for text in ("The cats sleep.", "été\nun", " a")]
    assert [base(text, add_special_tokens=False).input_ids for text in ("The cats sleep.", "été\nun", " a")] == wanted
    folder.write(base, tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("The cats sleep.", add_special_tokens=False).input_ids == wanted[0]
    assert (again.bos_token_id, again.eos_token_id) == (pieces.bos_id(), pieces.eos_id())


def test_a_token_that_is_declared_with_another_id_is_refused(tmp_path):
    base = make_tokenizer()
    base.save_pretrained(tmp_path)
    declared = {
        "content": "<tool>",
        "special": True,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "single_word": False,
    }
    configured(tmp_path, added_tokens_decoder={"900": declared})
    base = folder.read(tmp_path)
    assert "says that '<tool>' is 900" in folder.misread(base, tmp_path)
    assert folder.misread(AutoTokenizer.from_pretrained(spm.write(tmp_path / "spm", "llama2")), tmp_path / "spm") == ""


def test_an_added_token_that_a_hole_in_the_ids_moves_is_named(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    said = json.loads(path.read_text())
    last = max(said["model"]["vocab"].values())
    name = next(text for text, i in said["model"]["vocab"].items() if i == 300)
    del said["model"]["vocab"][name]
    said["model"]["merges"] = [pair for pair in said["model"]["merges"] if name not in ("".join(pair), *pair)]
    said["added_tokens"].append({**said["added_tokens"][0], "id": last + 1, "content": "<end>"})
    path.write_text(json.dumps(said))
    assert f"tokenizer.json says that '<end>' is {last + 1}, and " in folder.misread(folder.read(tmp_path), tmp_path)


@pytest.mark.parametrize("prefix", [True, False])
def test_two_files_that_disagree_on_every_text_are_refused_with_the_cure(prefix, tmp_path):
    path = configured(spm.write(tmp_path, "llama2", add_dummy_prefix=prefix), add_prefix_space=not prefix)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((path / "tokenizer.model").read_bytes())
    model.pieces.add(piece="▁" * 16, score=-1e9, type=1)  # as Mistral's has, which is no text at all when it is stripped
    (path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="encode text in two ways") as caught:
        extension.kind_of(folder.read(path), path, folder.read)
    said = json.dumps(prefix)
    assert f"add_dummy_prefix: {said}; write add_prefix_space: {said}" in str(caught.value)
    configured(path, add_prefix_space=prefix)
    assert extension.kind_of(folder.read(path), path, folder.read) is kinds.of(folder.read(path))
