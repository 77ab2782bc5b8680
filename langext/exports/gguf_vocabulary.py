"""The tokenizer of a GGUF file: the base's own pre-tokenizer, by llama.cpp's name for it, and our vocabulary.

llama.cpp's converter recognises a tokenizer by what it makes of a test string, which fails once the vocabulary is extended.
Here the rules that split text into words are compared instead: they stay those of the base.
"""

import json
from pathlib import Path
from typing import Any

import gguf
from transformers import AutoTokenizer

from langext.spec import ConfigError

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (LLAMA3,): "llama-bpe",
    (LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),): "qwen2",
}
"""How a tokenizer splits text -> llama.cpp's name."""
SPACE = "▁"


def pre_tokenizer(state: dict[str, Any]) -> str | None:
    """llama.cpp's name for the rules of a tokenizer.json with a byte-level BPE; None when they are not known here."""
    rules: Any = state.get("pre_tokenizer") or {}
    steps = rules.get("pretokenizers", [rules])
    found = []
    for step in steps:
        if step.get("type") == "Split":
            found.append(step["pattern"].get("Regex"))
        elif step.get("type") == "ByteLevel":
            found += ["ByteLevel"] if step.get("use_regex", True) else []
        elif step.get("type") == "Digits" and step.get("individual_digits"):
            found.append("Digits")
        else:
            return None
    return WORDS.get(tuple(found))


def add(writer: gguf.GGUFWriter, folder: Path, vocab_size: int, pre: str | None) -> None:
    """Write tokens, merges or scores, special tokens and the chat template. Raises ConfigError for an unknown kind."""
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = state["model"]
    if model["type"] != "BPE":
        raise ConfigError(f"GGUF: a tokenizer of type {model['type']} is not written; BPE is")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        _sentencepiece(writer, state, vocab_size, merges)
    else:
        name = pre or pre_tokenizer(state)
        if name is None:
            raise ConfigError(
                "GGUF: this tokenizer's rules for words are not known; name them as llama.cpp does, for example "
                "gguf_pre: llama-bpe"
            )
        tokens, types = _tokens(state, vocab_size)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(merges)
    _special(writer, AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


def _tokens(state: dict[str, Any], vocab_size: int) -> tuple[list[str], list[gguf.TokenType]]:
    """Token texts and types by id; rows of the embedding that no token uses get a name of their own. Added tokens without a
    row, which the model could not read either, are left out.
    """
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for text, number in state["model"]["vocab"].items():
        tokens[number], types[number] = text, gguf.TokenType.NORMAL
    for added in state["added_tokens"]:
        if added["id"] < vocab_size:
            kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
            tokens[added["id"]], types[added["id"]] = added["content"], kind
    return tokens, types


def _sentencepiece(writer: gguf.GGUFWriter, state: dict[str, Any], vocab_size: int, merges: list[str]) -> None:
    """Scores decide what is merged first: minus the rank of the merge that makes a token."""
    tokens, types = _tokens(state, vocab_size)
    for i, text in enumerate(tokens):
        if types[i] == gguf.TokenType.NORMAL and len(text) == 6 and text.startswith("<0x"):
            types[i] = gguf.TokenType.BYTE
        if text == state["model"].get("unk_token"):
            types[i] = gguf.TokenType.UNKNOWN
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    worst = float(len(merges))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(ranks.get(text, worst)) for text in tokens])
    writer.add_token_types(types)
    writer.add_add_space_prefix(SPACE in json.dumps(state.get("normalizer"), ensure_ascii=False) and _prepends(state))


def _prepends(state: dict[str, Any]) -> bool:
    """Does a text get a space in front?"""
    steps = state["normalizer"].get("normalizers", [state["normalizer"]])
    return any(step["type"] == "Prepend" for step in steps)


def _special(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    first = tokenizer("a").input_ids[:1]
    writer.add_add_bos_token(first == [tokenizer.bos_token_id])
    writer.add_add_eos_token(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
