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
    (False, "ByteLevel"): "gpt-2",
    (False, "Digits", "ByteLevel"): "smollm",
    (True, LLAMA3): "llama-bpe",
    (False, LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")): "qwen2",
}
"""Does a whole word that is a token skip the merges, and how text is split -> llama.cpp's name."""
SPACE = "▁"


def pre_tokenizer(state: dict[str, Any]) -> str | None:
    """llama.cpp's name for the rules of a tokenizer.json with a byte-level BPE; None when they are not known here."""
    rules: Any = state.get("pre_tokenizer") or {}
    steps = rules.get("pretokenizers", [rules])
    found: list[Any] = [bool(state["model"].get("ignore_merges"))]
    for step in steps:
        if step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            found.append(step["pattern"].get("Regex"))
        elif step.get("type") == "ByteLevel" and not step.get("add_prefix_space"):
            found += ["ByteLevel"] if step.get("use_regex", True) else []
        elif step.get("type") == "Digits" and step.get("individual_digits"):
            found.append("Digits")
        else:
            return None
    return WORDS.get(tuple(found))


def obstacle(folder: Path, pre: str | None) -> str:
    """Why the tokenizer of a model folder cannot be written to GGUF; empty when it can. An extended one has the same rules."""
    path = folder / "tokenizer.json"
    if not path.is_file():  # not written yet: the base is a .gguf file or has slow tokenizer files alone
        return ""
    state = json.loads(path.read_text(encoding="utf-8"))
    if state["model"]["type"] != "BPE":
        return f"a tokenizer of type {state['model']['type']} is not written; BPE is"
    if not state["model"].get("byte_fallback") and not (pre or pre_tokenizer(state)):
        return "this tokenizer's rules for words are not known; name them as llama.cpp does, for example gguf_pre: llama-bpe"
    return ""


def add(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any], pre: str | None) -> None:
    """Write tokens, merges or scores, special tokens and the chat template. Raises ConfigError for an unknown kind."""
    if reason := obstacle(folder, pre):
        raise ConfigError(f"GGUF: {reason}")
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, vocab_size = state["model"], config["vocab_size"]
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    largest = max(model["vocab"].values())
    if largest >= vocab_size:
        raise ConfigError(f"GGUF: the tokenizer has a token {largest}, and the model only {vocab_size} rows for tokens")
    if model.get("byte_fallback"):
        _sentencepiece(writer, state, vocab_size, pairs)
    else:
        name = pre or pre_tokenizer(state)
        assert name is not None, "obstacle() says so"
        tokens, types = _tokens(state, vocab_size)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges([" ".join(pair) for pair in pairs])
    _special(writer, config, AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


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


def _sentencepiece(writer: gguf.GGUFWriter, state: dict[str, Any], vocab_size: int, pairs: list[tuple[str, ...]]) -> None:
    """Scores decide what is merged first: minus the rank of the merge that makes a token."""
    tokens, types = _tokens(state, vocab_size)
    for i, text in enumerate(tokens):
        if types[i] == gguf.TokenType.NORMAL and len(text) == 6 and text.startswith("<0x"):
            types[i] = gguf.TokenType.BYTE
        if text == state["model"].get("unk_token"):
            types[i] = gguf.TokenType.UNKNOWN
        if types[i] == gguf.TokenType.USER_DEFINED and SPACE in text:  # runs of spaces, which merges make as well
            types[i] = gguf.TokenType.NORMAL
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(pairs):
        ranks.setdefault("".join(pair), rank)
    worst = float(len(pairs))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(ranks.get(text, worst)) for text in tokens])
    writer.add_token_types(types)
    writer.add_add_space_prefix(_prepends(state))


def _prepends(state: dict[str, Any]) -> bool:
    """Does a text get a space in front?"""
    normalizer, words = state.get("normalizer") or {}, state.get("pre_tokenizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), *words.get("pretokenizers", [words])]
    return any(
        step.get("type") == "Prepend" or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _special(writer: gguf.GGUFWriter, config: dict[str, Any], tokenizer: Any) -> None:
    """Numbers of the special tokens. Where the tokenizer names none the config's count, and a text begins with what ends one:
    llama.cpp would take token 11 for both.
    """
    found = {}
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        number = config.get(f"{name}_token_id") if number is None else number
        found[name] = number[0] if isinstance(number, list) else number
    found["bos"] = found["eos"] if found["bos"] is None else found["bos"]
    for name, number in found.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    whole, plain = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    writer.add_add_bos_token(whole[0] != plain[0] and whole[0] == found["bos"])
    writer.add_add_eos_token(whole[-1] != plain[-1] and whole[-1] == found["eos"])
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        templates = [{"name": name, "template": text} for name, text in templates.items()]
    if templates:
        writer.add_chat_template(templates)
