"""Write the tokenizer into a GGUF file: llama.cpp's name of the base's pre-tokenizer, and the model's vocabulary.

llama.cpp's own converter recognises a tokenizer by how it encodes a test string. That fails once the vocabulary is extended.
The one rule here: compare only the rules that split text into words, because an extension never changes them.
"""

import json
from pathlib import Path
from typing import Any

import gguf
from transformers import AutoTokenizer

from langext.errors import ConfigError

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = {
    (False, "ByteLevel"): "gpt-2",
    (False, "Digits", "ByteLevel"): "smollm",
    (True, LLAMA3): "llama-bpe",
    (False, LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")): "qwen2",
}
"""(whether a word that is a token as a whole skips the merges, steps that split text into words) -> llama.cpp's name.
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp"""
SPACE = "▁"
"""What SentencePiece writes in a token for a space."""


def pre_tokenizer(state: dict[str, Any]) -> str | None:
    """Return llama.cpp's name of the pre-tokenizer in a tokenizer.json (as a dict) with a byte-level BPE.

    None when the rules are not in `WORDS`. A rule with an unusual setting is not matched: a near miss would split text wrongly.
    """
    rules: Any = state.get("pre_tokenizer") or {}
    steps = rules.get("pretokenizers", [rules])
    signature: list[Any] = [bool(state["model"].get("ignore_merges"))]
    for step in steps:
        if step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            signature.append(step["pattern"].get("Regex"))
        elif step.get("type") == "ByteLevel" and not step.get("add_prefix_space"):
            signature += ["ByteLevel"] if step.get("use_regex", True) else []
        elif step.get("type") == "Digits" and step.get("individual_digits"):
            signature.append("Digits")
        else:
            return None
    return WORDS.get(tuple(signature))


def obstacle(folder: Path, pre: str | None) -> str:
    """Explain why the tokenizer of a model folder cannot be written to GGUF; empty text when it can.

    The base's folder gives the answer for an extended tokenizer too, because both have the same rules for words.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():  # written later: the base is a .gguf file, or has only files of a slow tokenizer
        return ""
    state = json.loads(path.read_text(encoding="utf-8"))
    if state["model"]["type"] != "BPE":
        return f"a tokenizer of type {state['model']['type']} is not written; BPE is"
    if not state["model"].get("byte_fallback") and not (pre or pre_tokenizer(state)):
        return "this tokenizer's rules for words are not known; name them as llama.cpp does, for example gguf_pre: llama-bpe"
    return ""


def add(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any], pre: str | None) -> None:
    """Write tokens, merges or scores, special tokens and the chat template of the tokenizer in `folder`.

    `config` is the model's config and `pre` llama.cpp's name of the pre-tokenizer, if the user gave one. Raises ConfigError for
    a tokenizer that cannot be written, and for one that has more tokens than the model has rows.
    """
    if reason := obstacle(folder, pre):
        raise ConfigError(f"GGUF: {reason}")
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, vocab_size = state["model"], config["vocab_size"]
    # Older files write a merge as one text, newer ones as a list of two.
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    largest = max(model["vocab"].values())
    if largest >= vocab_size:
        raise ConfigError(f"GGUF: the tokenizer has a token {largest}, but the model has only {vocab_size} rows for tokens")
    if model.get("byte_fallback"):  # a SentencePiece tokenizer, converted to BPE
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
    """The text and the type of each token id below `vocab_size`.

    Ids without a token (unused rows of the embedding) get a name like [PAD5], because llama.cpp needs a text for every row.
    Added tokens that have no row are left out: the model cannot read them either.
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
    """Write a SentencePiece vocabulary with scores. llama.cpp merges the pair with the highest score first.

    The score of a token is therefore minus the rank of the merge that makes it. Tokens that no merge makes come last.
    """
    tokens, types = _tokens(state, vocab_size)
    for i, text in enumerate(tokens):
        if types[i] == gguf.TokenType.NORMAL and len(text) == 6 and text.startswith("<0x"):
            types[i] = gguf.TokenType.BYTE
        if text == state["model"].get("unk_token"):
            types[i] = gguf.TokenType.UNKNOWN
        if types[i] == gguf.TokenType.USER_DEFINED and SPACE in text:  # runs of spaces, which merges make too
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
    """True if the tokenizer puts a space in front of a text."""
    normalizer, words = state.get("normalizer") or {}, state.get("pre_tokenizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), *words.get("pretokenizers", [words])]
    return any(
        step.get("type") == "Prepend" or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _special(writer: gguf.GGUFWriter, config: dict[str, Any], tokenizer: Any) -> None:
    """Write the ids of the special tokens, whether texts get them at their ends, and the chat template.

    An id that the tokenizer does not give is taken from the config. A missing bos gets the id of eos, because llama.cpp would
    take token 11 for a bos or eos that is not written.
    """
    ids = {}
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        number = config.get(f"{name}_token_id") if number is None else number
        ids[name] = number[0] if isinstance(number, list) else number
    ids["bos"] = ids["eos"] if ids["bos"] is None else ids["bos"]
    for name, number in ids.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    # What the tokenizer does, and not what its settings say: there are several settings for it.
    whole, plain = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    writer.add_add_bos_token(whole[0] != plain[0] and whole[0] == ids["bos"])
    writer.add_add_eos_token(whole[-1] != plain[-1] and whole[-1] == ids["eos"])
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        templates = [{"name": name, "template": text} for name, text in templates.items()]
    if templates:
        writer.add_chat_template(templates)
