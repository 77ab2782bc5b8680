"""Tiny SentencePiece bases, trained here in the settings of well-known models.

Of BPE there is tokenizer.model alone, which transformers converts as it should. For unigram models tokenizer.json is made here.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from toy import ENGLISH, sentences
from transformers import AutoTokenizer

SETTINGS: dict[str, dict[str, Any]] = {
    "llama2": {"model_type": "bpe", "normalization_rule_name": "identity", "byte_fallback": True, "split_digits": True},
    "gemma": {
        "model_type": "bpe", "normalization_rule_name": "identity", "byte_fallback": True, "split_digits": True,
        "add_dummy_prefix": False, "remove_extra_whitespaces": False, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3,
        "pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>", "user_defined_symbols": ["\n\n", "▁▁", "<b>"],
    },
    "llm-jp": {"model_type": "unigram", "normalization_rule_name": "identity", "byte_fallback": True, "split_digits": True},
    "t5": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "byte_fallback": False},
}  # fmt: skip
CLASSES = {"llama2": "LlamaTokenizer", "gemma": "GemmaTokenizer"}


USUAL: dict[str, Any] = {
    "vocab_size": 330, "character_coverage": 1.0, "hard_vocab_limit": False, "num_threads": 1, "minloglevel": 2,
}  # fmt: skip


def write(folder: Path, name: str, text: Sequence[str] = (), **more: Any) -> Path:
    """The files of a tokenizer that is trained on English and some more text."""
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    learnt_from = [*sentences(ENGLISH, 200, 1), "0 1 2 3 4 5 6 7 8 9", *text]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(learnt_from), model_writer=content, **{**USUAL, **SETTINGS[name], **more}
    )
    (folder / "tokenizer.model").write_bytes(content.getvalue())
    marks = ("<bos>", "<eos>", "<pad>") if name == "gemma" else ("<s>", "</s>", None)
    config = dict(zip(("bos_token", "eos_token", "pad_token"), marks, strict=True)) | {"unk_token": "<unk>"}
    config |= {
        "tokenizer_class": CLASSES.get(name, "PreTrainedTokenizerFast"),
        "legacy": True,
        "chat_template": "{{ messages[0].content }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({key: value for key, value in config.items() if value}))
    if name not in CLASSES:
        unigram(content.getvalue()).save(str(folder / "tokenizer.json"))
    return folder


def unigram(content: bytes) -> Tokenizer:
    """A unigram model as the tokenizers library has it."""
    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(content)
    vocab = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(vocab, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback))
    steps: list[Any] = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    charsmap = proto.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap), *steps] if charsmap else steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def load(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
