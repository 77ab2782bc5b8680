"""What every extension of a vocabulary guarantees, whatever its kind, checked on what was written and read again."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizer_tools import pieces, roundtrip
from tokenizer_tools.vocabulary import NewPiece, NewToken, next_id

NAMED = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
New = Sequence[NewToken] | Sequence[NewPiece]


def broken(
    base: Any,
    bigger: Any,
    written: Any,
    found: New,
    words: Counter[Any],
    texts: Iterable[str],
    configs: Mapping[str, Mapping[str, Any]],
    *,
    coarser: bool,
) -> str:
    """The first guarantee that an extension breaks, in one sentence; empty when it keeps them all.

    `written` is `bigger` as it is read from the folder it was written to. `words` are those that it was learnt from, and
    `texts` some text. `configs` are config.json and generation_config.json of the base, by name. `coarser` says that a new
    token always stands for the tokens that the base writes in its place.
    """
    texts = list(texts)
    return (
        _moved(base, written, found)
        or _special(base, written, configs)
        or _not_spelt(base, found)
        or _unreachable(written, found, words)
        or _read_otherwise(bigger, written, texts)
        or (_cut_anew(base, written, found, texts) if coarser else "")
        or _lost(base, written, texts)
    )


def _moved(base: Any, written: Any, found: New) -> str:
    """Every id of the base is unchanged, and those of the new tokens follow it."""
    had, has, first = base.get_vocab(), written.get_vocab(), next_id(base)
    for text, i in had.items():
        if has.get(text) != i:
            return f"the token {text!r} would get another id ({i} -> {has.get(text)})"
    for k, token in enumerate(found):
        if has.get(token.text) != first + k:
            return f"the new token {token.text!r} has the id {has.get(token.text)} in place of {first + k}"
    if more := next((text for text, i in has.items() if text not in had and not first <= i < first + len(found)), None):
        return f"the token {more!r} appears that is neither of the base nor new"
    return ""


def _special(base: Any, written: Any, configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Special tokens are those of the base, and no id that a config names has become a new token."""
    for name in NAMED:
        before, after = (getattr(each, f"{name}_token_id", None) for each in (base, written))
        if before != after:
            return f"the {name} token would get another id ({before} -> {after})"
    for file, config in configs.items():
        for name in NAMED:
            ids = config.get(f"{name}_token_id")
            for i in ids if isinstance(ids, list) else [ids]:
                if isinstance(i, int) and i >= next_id(base):
                    new = written.convert_ids_to_tokens(i)
                    return f"{file} says that {i} is the {name} token, which the tokenizer does not have; it would be {new!r}"
    if base.chat_template != written.chat_template:
        return "the chat template would be another one"
    return ""


def _not_spelt(base: Any, found: New) -> str:
    """Every new token is a concatenation of tokens of the base."""
    for token in found:
        names = base.convert_ids_to_tokens(list(token.base_ids))
        if token.text not in ("".join(names), _with_bytes(names)):
            return f"the new token {token.text!r} is not made of its tokens of the base, {names}"
    return ""


def _with_bytes(names: Sequence[str]) -> str:
    """The text of tokens, of which some can be bytes."""
    octets = (
        bytes([int(match[1], 16)]) if (match := pieces.BYTE.fullmatch(name)) else name.encode(errors="surrogatepass")
        for name in names
    )
    return b"".join(octets).decode(errors="replace")


def _unreachable(written: Any, found: New, words: Counter[Any]) -> str:
    """Every new token occurs: in the encoding of its text, of a word that it was learnt from, or within another new token."""
    model = written.backend_tokenizer.model
    missing = {token.text for token in found}
    for text in [token.text for token in found]:
        missing.difference_update(token.value for token in model.tokenize(text))
    for word in words:
        if not missing:
            return ""
        missing.difference_update(token.value for token in model.tokenize(word if isinstance(word, str) else "".join(word)))
    for token in found:
        missing -= {part for part in missing if part != token.text and part in token.text}
    return f"the new token {min(missing)!r} would never be used" if missing else ""


def _read_otherwise(bigger: Any, written: Any, texts: Sequence[str]) -> str:
    """What is written encodes as what was in memory: the class in tokenizer_config.json has not built something else."""
    for text in texts:
        if roundtrip.encode(bigger, text) != roundtrip.encode(written, text):
            return (
                f"read again, it encodes {text[:40]!r} in another way: {type(written).__name__} of tokenizer_config.json does "
                "not keep what tokenizer.json says"
            )
    return ""


def _cut_anew(base: Any, written: Any, found: New, texts: Sequence[str]) -> str:
    """With the tokens of the base in place of the new ones, the encoding is that of the base."""
    first = next_id(base)
    for text in texts:
        ids = (found[i - first].base_ids if i >= first else (i,) for i in roundtrip.encode(written, text))
        if [i for run in ids for i in run] != roundtrip.encode(base, text):
            return f"new tokens do not stand for what the base writes in {text[:40]!r}"
    return ""


def _lost(base: Any, written: Any, texts: Sequence[str]) -> str:
    text = roundtrip.lost(base, written, texts)
    return f"decoding does not give {text[:40]!r} back, as it does with the base" if text else ""
