"""SentencePiece vocabularies with new pieces: every id stays, protected text too, and both files say the same."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
import spm
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from toy import ENGLISH, FRENCH, make_tokenizer, sentences
from transformers import PreTrainedTokenizerFast

from tokenizer_tools import audit, extension, guarantees, kinds, merges, model_file, pieces, protect, unigram
from tokenizer_tools.folder import write
from tokenizer_tools.vocabulary import NewPiece, next_id, slots
from tokenizer_tools.vocabulary import ids as ids_of

NEW = [*sentences(FRENCH, 150, 9), *["हिन्दी में किताब और दुकान 2024"] * 30, "l'été (1998) <s> <0x0A> <b>\n\n"]
OLD = [*sentences(ENGLISH, 60, 11), "a  b   c\n\n\tthe  <b>cat</b> 1998 </s> <0x41>", "naïve हि"]


def ids(tokenizer, texts):
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids


def extend(folder: Path, out: Path, apart: list[str], num: int = 60):
    """Base, kind, new pieces, words and the extended tokenizer as it is read again."""
    base = spm.load(folder)
    kind, backend = kinds.of(base), base.backend_tokenizer
    words = kind.word_counts(backend, NEW)
    found = kind.learn(backend, words, num, 5, kind.guarded(backend, kind.word_counts(backend, apart)))
    bigger = kind.extended(base, found)
    write(bigger, out)
    behind = range(next_id(base), next_id(base) + len(found))
    (out / model_file.NAME).write_bytes(model_file.extended(folder / model_file.NAME, base, found, behind))
    written = spm.load(out)
    assert guarantees.broken(base, bigger, written, found, words, NEW + OLD, {}, coarser=kind.coarser) == ""
    return base, kind, found, written


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Every setting -> the folder of the base, that of the protected extension, and what `extend` says of it."""
    root = tmp_path_factory.mktemp("spm")
    folders = {name: (spm.write(root / name, name), root / f"{name}+") for name in spm.SETTINGS}
    return {name: (here, out, *extend(here, out, OLD)) for name, (here, out) in folders.items()}


@pytest.mark.parametrize("name", spm.SETTINGS)
def test_every_id_stays_and_the_new_language_gets_shorter(made, name):
    _, _, base, kind, found, bigger = made[name]
    assert kind.name == ("unigram" if name in ("llm-jp", "t5") else "BPE of SentencePiece") and len(found) > 30
    assert {text: bigger.get_vocab()[text] for text in base.get_vocab()} == base.get_vocab()
    assert [bigger.get_vocab()[piece.text] for piece in found] == list(range(len(base), len(base) + len(found)))
    assert ids(bigger, OLD) == ids(base, OLD)
    assert sum(map(len, ids(bigger, NEW))) < 0.75 * sum(map(len, ids(base, NEW)))
    starts = [tokenizer("le").input_ids[0] == tokenizer.bos_token_id for tokenizer in (base, bigger)]
    assert bigger.chat_template == base.chat_template and starts[0] == starts[1]


@pytest.mark.parametrize("name", spm.SETTINGS)
def test_sentencepiece_and_tokenizers_give_equal_ids(made, name):
    """For each text on which they agree for the base, and that is nearly every one."""
    folder, out, base, _, _, bigger = made[name]
    slow = {path: sentencepiece.SentencePieceProcessor(model_file=str(path / model_file.NAME)) for path in (folder, out)}
    texts = [text for text, row in zip(NEW + OLD, ids(base, NEW + OLD), strict=True) if slow[folder].encode(text) == row]
    assert len(texts) >= 0.97 * len(NEW + OLD)
    assert slow[out].encode(texts) == ids(bigger, texts)
    assert model_file.difference((folder / model_file.NAME, base), (out / model_file.NAME, bigger), NEW + OLD) == ""


@pytest.mark.parametrize("name", spm.CLASSES)
def test_the_model_file_alone_makes_the_same_tokenizer(made, name, tmp_path):
    _, out, _, _, _, bigger = made[name]
    for file in (model_file.NAME, "tokenizer_config.json"):
        shutil.copy(out / file, tmp_path)
    texts = sentences(FRENCH, 40, 21) + sentences(ENGLISH, 40, 22)
    assert ids(spm.load(tmp_path), texts) == ids(bigger, texts)


def test_every_kind_can_be_audited_and_a_size_learnt_alone(made):
    for name in spm.SETTINGS:
        folder, _, base, kind, found, _ = made[name]
        seen = audit.use(base, [*NEW, "é鿀"])
        assert seen.tokens and (seen.parts > 0) == spm.SETTINGS[name]["byte_fallback"]
        assert extension.kind_of(base, folder, spm.load) is kind
        again = kind.first(found, 10, lambda number: ["anew"] * number)
        assert again == (found[:10] if kind.prefixes else ["anew"] * 10) and kind.prefixes == (kind.name != "unigram")
    assert audit.close(audit.use(base, ["鿀"] * 9), [audit.use(base, OLD)]) is None  # t5: few tokens, all unknown


def test_an_extension_that_breaks_a_guarantee_leaves_nothing(made, tmp_path):
    folder, _, base, kind, found, _ = made["llama2"]
    given = {"read": spm.load, "words": Counter(), "texts": NEW}
    with pytest.raises(ValueError, match="in another way: 1 of 63 documents of code, such as 'le chat"):
        sets = {"eng": OLD, "code": [*OLD, "le chat dort dans la maison"]}
        extension.write(tmp_path / "out", folder, kind, base, found, protected=sets, **given)
    assert not list(tmp_path.iterdir())
    written = extension.write(tmp_path / "out", folder, kind, base, found, protected={"eng": OLD}, **given)
    alike, bigger = written.compared["eng"], written.tokenizer
    assert alike.documents == alike.identical == len(OLD) and alike.replaced == 0
    assert len(bigger) == len(base) + len(found) and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_new_pieces_look_like_pieces_of_the_base(made):
    """Base pieces hold no two digits and no sign beside a letter; bytes make whole characters or nothing."""
    for name in ("llama2", "gemma"):
        *_, found, _ = made[name]
        assert not any(pieces.SPACE in piece.text[1:] or "<" in piece.text for piece in found)
        assert not any(sum(map(str.isdigit, piece.text)) > 1 or "'" in piece.text for piece in found)
        assert {"क", "न"} <= {piece.text for piece in found}


def test_the_model_file_keeps_everything_else(made):
    folder, out, *_, found, _ = made["llama2"]
    before, after = (sentencepiece_model_pb2.ModelProto() for _ in range(2))
    before.ParseFromString((folder / model_file.NAME).read_bytes())
    after.ParseFromString((out / model_file.NAME).read_bytes())
    assert list(after.pieces)[: len(before.pieces)] == list(before.pieces)
    assert after.normalizer_spec == before.normalizer_spec and after.trainer_spec.byte_fallback
    scores = [piece.score for piece in after.pieces][len(before.pieces) :]
    assert scores == sorted(scores, reverse=True) and max(scores) < min(piece.score for piece in before.pieces)
    assert [piece.piece for piece in after.pieces][len(before.pieces) :] == [piece.text for piece in found]


def test_scores_of_new_pieces_differ_also_below_very_low_ones(made, tmp_path):
    """Mistral's file has pieces of -1e9, from which float32 cannot take 1 away: equal scores, and merges in any order."""
    folder, _, base, _, found, bigger = made["llama2"]
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / model_file.NAME).read_bytes())
    last = max(i for i, piece in enumerate(proto.pieces) if piece.type == model_file.NORMAL)
    proto.pieces[last].score = -1e9
    (tmp_path / model_file.NAME).write_bytes(proto.SerializeToString())
    ids_of_new = range(next_id(base), next_id(base) + len(found))
    content = model_file.extended(tmp_path / model_file.NAME, base, found, ids_of_new)
    proto.ParseFromString(content)
    scores = [proto.pieces[i].score for i in ids_of_new]
    assert scores == sorted(set(scores), reverse=True) and max(scores) < -1e9
    slow = sentencepiece.SentencePieceProcessor(model_proto=content)
    assert slow.encode(NEW[:-1]) == ids(bigger, NEW[:-1])


def test_without_protection_the_original_text_changes(tmp_path):
    folder = spm.write(tmp_path / "base", "llama2")
    base, _, found, bigger = extend(folder, tmp_path / "free", [])
    spelt = {len(base) + i: piece.base_ids for i, piece in enumerate(found)}
    alike = protect.identity(zip(ids(base, OLD), ids(bigger, OLD), strict=True), spelt)
    assert alike.share < 1 and alike.replaced > 0


def test_added_tokens_behind_the_pieces_keep_their_ids(tmp_path):
    """A pad token that only tokenizer.json has is written into tokenizer.model, at its id; so is an id that nobody has."""
    base = spm.load(spm.write(tmp_path / "base", "llama2"))
    base.add_special_tokens({"pad_token": AddedToken("<pad>", special=True)})
    base.save_pretrained(tmp_path / "base")
    base, _, found, bigger = extend(tmp_path / "base", tmp_path / "out", [], 20)
    pad = base.pad_token_id
    slow = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / model_file.NAME))
    assert bigger.pad_token_id == pad == 330 and slow.is_control(pad) and slow.id_to_piece(pad) == "<pad>"
    assert slow.id_to_piece(pad + 1) == found[0].text == bigger.convert_ids_to_tokens(pad + 1)
    far = sentencepiece.SentencePieceProcessor(
        model_proto=model_file.extended(tmp_path / "base" / model_file.NAME, base, found, range(pad + 3, pad + 3 + len(found)))
    )
    assert far.is_control(pad + 2) and far.id_to_piece(pad + 3) == found[0].text


@pytest.mark.parametrize("name", ["<unused{}>", "[control_{}]"])
def test_reserved_pieces_give_their_ids_to_new_ones_in_both_files(tmp_path, name):
    """Gemma has <unused0> to <unused98>, Mistral control pieces: new pieces that take their ids need no new rows."""
    names, own = [name.format(i) for i in range(9)], ["\n\n", "▁▁", "<b>"]
    control = name.startswith("[")
    symbols = {"control_symbols": names, "user_defined_symbols": own} if control else {"user_defined_symbols": [*own, *names]}
    base = spm.load(spm.write(tmp_path / "base", "gemma", **symbols))
    base.add_tokens([AddedToken(each, normalized=False, special=control) for each in names], special_tokens=control)
    base.save_pretrained(tmp_path / "base")
    base, kind = spm.load(tmp_path / "base"), kinds.of(spm.load(tmp_path / "base"))
    backend, spare = base.backend_tokenizer, slots(base)
    words = kind.word_counts(backend, NEW)
    found = kind.learn(backend, words, 20, 5, kind.guarded(backend, kind.word_counts(backend, OLD)))
    assert len(spare) == 9 == len(found) - 11
    given = ids_of(base, 20, spare)
    told = {"read": spm.load, "words": words, "texts": NEW, "protected": {"eng": OLD}}
    bigger = extension.write(tmp_path / "out", tmp_path / "base", kind, base, found, ids=given, **told).tokenizer
    assert [bigger.get_vocab()[piece.text] for piece in found] == given and len(bigger) == len(base) + 11
    assert not set(names) & bigger.get_vocab().keys() and base.get_vocab()["<b>"] == bigger.get_vocab()["<b>"]
    slow = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / model_file.NAME))
    assert slow.encode(NEW) == ids(bigger, NEW) and {*spare} & {i for row in ids(bigger, NEW) for i in row}
    assert [slow.id_to_piece(i) for i in given] == [piece.text for piece in found]


def test_added_tokens_behind_the_pieces_of_a_unigram_model_stay_there(tmp_path):
    """They become pieces that no text is written in; where the base could not write their names otherwise, it is refused."""
    base = spm.load(spm.write(tmp_path / "base", "llm-jp", required_chars="<pad>"))
    base.add_special_tokens({"pad_token": AddedToken("<pad>", special=True)})
    base.save_pretrained(tmp_path / "base")
    base, _, found, bigger = extend(tmp_path / "base", tmp_path / "out", OLD, 20)
    assert bigger.pad_token_id == base.pad_token_id == next_id(base) - 1 and len(found) == 20
    assert bigger.get_vocab()[found[0].text] == next_id(base)
    text = ["le <pad> chat", "<pad>", "鿀 <pad>"]
    assert bigger.pad_token_id not in {i for row in ids(bigger, text) for i in row}
    assert bigger("<pad>", add_special_tokens=False).input_ids[-1] == bigger.pad_token_id
    slow = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / model_file.NAME))
    assert slow.is_control(bigger.pad_token_id) and slow.encode(NEW[:-1]) == ids(bigger, NEW[:-1])
    base = spm.load(spm.write(tmp_path / "t5", "t5"))
    base.add_special_tokens({"pad_token": AddedToken("<pad>", special=True)})
    with pytest.raises(ValueError, match="cannot spell the added token '<pad>' behind its pieces"):
        kinds.of(base)


def test_what_a_piece_for_an_added_token_would_change_is_refused():
    """Its score is the lowest, and the unknown penalty hangs on that: `z` `aX` would be `za` and an unknown X no longer."""

    def made(*more):
        scores = {"<unk>": 0.0, "▁": -2, "z": -28, "a": -5, "za": -5, "aX": -29, "x": -4, "<": -8, ">": -8} | dict.fromkeys(
            more, -40
        )
        whole = Tokenizer(models.Unigram(list(scores.items()), 0, False))
        whole.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        base = PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>")
        base.add_special_tokens({"additional_special_tokens": ["<x>"]})
        return base

    with pytest.raises(ValueError, match="the added token '<x>' behind .* 'X' is no piece itself, but a part of 'aX'"):
        kinds.of(made())
    base = made("X")
    bigger = kinds.of(base).extended(base, [NewPiece("xx", (6, 6), -5.0)])
    texts = ["zaX", "zaé", "aX<x>", "éz aé"]
    assert ids(bigger, texts) == ids(base, texts) and bigger.get_vocab()["<x>"] == base.get_vocab()["<x>"]


def test_a_unigram_model_learns_as_it_will_be_written():
    """With `ba` and an unknown X `baX` is -40.1, with the new piece `b` `aX` -40.6."""
    scores = {"<unk>": 0.0, "▁": -2, "b": -30, "a": -5, "ba": -0.1, "<": -8, ">": -8, "<0x58>": -9}
    whole = Tokenizer(models.Unigram(list(scores.items()), 0, True))
    base = PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>")
    words = Counter({"aX": 5, "a": 200_000})
    assert [piece.text for piece in unigram.learn(whole, words, 5, 5, ["baX"])] == ["aX"]
    base.add_special_tokens({"additional_special_tokens": ["<a>"]})
    assert unigram.learn(base.backend_tokenizer, words, 5, 5, ["baX"]) == []
    assert len(unigram.learn(base.backend_tokenizer, words, 5, 5, ["b"])) == 1


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (models.WordLevel({"a": 0}, unk_token="a"), "its model is WordLevel, and only byte-level BPE"),
        (models.WordPiece({"a": 0}, unk_token="a"), "its model is WordPiece"),
        (models.BPE({"a": 0}, [], unk_token="a"), "neither byte-level nor does it fall back to bytes"),
        (models.BPE({"a": 0, "<0x41>": 1}, [], byte_fallback=True), "is to fall back to bytes, but has no token for 238"),
        (models.Unigram([("a", 0.0)], 0), "does not write ▁"),
    ],
)
def test_other_kinds_are_refused_with_a_reason(model, said):
    with pytest.raises(ValueError, match=said):
        kinds.of(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model)))
    assert kinds.of(make_tokenizer()).name == "byte-level BPE"


def test_a_model_file_that_says_something_else_is_refused(made, tmp_path):
    """Numbered as XLM-R, whose ids are those of its file and one more; or read as BPE though it is a unigram model."""
    folder, _, base, *_ = made["llm-jp"]
    state = json.loads(base.backend_tokenizer.to_str())
    state["model"]["vocab"].insert(3, ["odd", -9.0])
    moved = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), unk_token="<unk>")
    assert "gives the piece '<" in model_file.obstacle(folder / model_file.NAME, moved)
    assert "is a unigram model" in model_file.obstacle(folder / model_file.NAME, made["llama2"][2])
    assert "is BPE" in model_file.obstacle(made["llama2"][0] / model_file.NAME, base)
    assert model_file.obstacle(folder / model_file.NAME, base) == ""
    (tmp_path / model_file.NAME).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="no file of SentencePiece"):
        model_file.obstacle(tmp_path / model_file.NAME, base)


def test_a_merge_known_by_its_text_is_joined_from_whatever_sides():
    """The most frequent way is the one that is told; two ways that overlap are left out, since programs choose differently."""
    words = [(["x", "ab", "c"], 3), (["a", "bc"], 4), (["ab", "c", "d"], 1)]
    assert list(merges.continued(words, 2, lambda name: False, merges.text)) == [("a", "bc", 8), ("x", "abc", 3)]
    overlapping = [(["ab", "a", "ba"], 5)]
    assert ("ab", "a", 5) not in list(merges.continued(overlapping, 2, lambda name: False, merges.text))
    assert list(merges.continued([(["ab", "a", "ba"], 5)], 2, lambda name: False, merges.pair)) == [
        ("a", "ba", 5),
        ("ab", "aba", 5),
    ]


def test_no_piece_makes_a_piece_of_the_base_in_a_new_way(made):
    """Else sentencepiece, which knows no list of merges, would find base pieces where the base did not write them."""
    _, _, base, _, found, _ = made["llama2"]
    rules = pieces.of(base.backend_tokenizer)
    known = rules.ids.keys() | {piece.text for piece in found}
    new = known - rules.ids.keys()
    ways = [(piece[:k], piece[k:]) for piece in rules.ids for k in range(1, len(piece))]
    assert ways and not [way for way in ways if known.issuperset(way) and not new.isdisjoint(way)]
