"""What every extension of a vocabulary guarantees, whatever its kind, checked on what was written and read again."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizer_tools import pieces, roles, roundtrip
from tokenizer_tools.vocabulary import NewPiece, NewToken, next_id

NAMED = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
New = Sequence[NewToken] | Sequence[NewPiece]
ById = Mapping[int, NewToken | NewPiece]


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
    ids: Sequence[int] | None = None,
) -> str:
    """The first guarantee that an extension breaks, in one sentence; empty when it keeps them all.

    `written` is `bigger` as it is read from the folder it was written to. `words` are those that it was learnt from, and
    `texts` some text. `configs` are config.json and generation_config.json of the base, by name. `coarser` says that a new
    token always stands for the tokens that the base writes in its place. `ids` are those of the new tokens, if some are
    reserved ones of the base; else they follow its last.
    """
    texts, first = list(texts), next_id(base)
    new = dict(zip(range(first, first + len(found)) if ids is None else ids, found, strict=True))
    return (
        _moved(base, written, new)
        or _special(base, written, new, configs)
        or _not_spelt(base, found)
        or _unreachable(written, found, words)
        or _read_otherwise(bigger, written, texts)
        or (_cut_anew(base, written, new, texts) if coarser else "")
        or _lost(base, written, texts)
    )


def _moved(base: Any, written: Any, new: ById) -> str:
    """Every id of the base is unchanged, and the new tokens have theirs."""
    had, has = {text: i for text, i in base.get_vocab().items() if i not in new}, written.get_vocab()
    for text, i in sorted(had.items(), key=lambda item: item[1]):  # the order of a vocabulary is another each time
        if has.get(text) != i:
            return f"the token {text!r} would get another id ({i} -> {has.get(text)})"
    for i, token in new.items():
        if has.get(token.text) != i:
            return f"the new token {token.text!r} has the id {has.get(token.text)} in place of {i}"
    if more := sorted(has.keys() - had.keys() - {token.text for token in new.values()}):
        return f"the token {more[0]!r} appears that is neither of the base nor new"
    return ""


def _special(base: Any, written: Any, new: ById, configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Special and other added tokens are those of the base and do the same, and no config names an id of a new token."""
    for name in NAMED:
        before, after = (getattr(each, f"{name}_token_id", None) for each in (base, written))
        if before != after:
            return f"the {name} token would get another id ({before} -> {after})"
    if reason := roles.unnamed(base, configs, set(new)):
        return reason
    before, after = ({i: _flags(token) for i, token in each.added_tokens_decoder.items()} for each in (base, written))
    if odd := [i for i in sorted(before.keys() | after.keys()) if i not in new and before.get(i) != after.get(i)]:
        return f"the added token with the id {odd[0]} would be another one ({before.get(odd[0])} -> {after.get(odd[0])})"
    special = {i for i, token in base.added_tokens_decoder.items() if token.special and i not in new}
    for name in sorted(base.added_tokens_decoder[i].content for i in special):
        before, after = (special.intersection(roundtrip.encode(each, name)) for each in (base, written))
        if before != after:
            return f"text that spells {name!r} would become a special token"
    around = [each("").input_ids for each in (base, written)]
    if around[0] != around[1]:
        return f"other tokens would be put around text ({around[0]} -> {around[1]})"
    if base.chat_template != written.chat_template:
        return "the chat template would be another one"
    return _beside(base, written, new)


def _beside(base: Any, written: Any, new: ById) -> str:
    """What stands beside an added token is encoded as by the base, if no new token is in it."""
    for name in sorted(token.content for i, token in base.added_tokens_decoder.items() if i not in new):
        for text in (f"a{name}b", f"{name}\n{name}", f"{name} {name}"):
            before, after = base(text).input_ids, written(text).input_ids
            if before != after and not new.keys() & set(after):
                return f"{text!r} would be encoded in another way ({before} -> {after})"
    return ""


def _flags(token: Any) -> tuple[Any, ...]:
    return token.content, token.special, token.lstrip, token.rstrip, token.single_word, token.normalized


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
    made_of = {token.text: token for token in found}
    reached = [text for text in made_of if text not in missing]
    while reached:  # what a token that occurs is made of does too, on the way to it
        text = reached.pop()
        token = made_of[text]
        inner = {token.left, token.right} if isinstance(token, NewToken) else {part for part in missing if part in text}
        reached += inner & missing
        missing -= inner
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


def _cut_anew(base: Any, written: Any, new: ById, texts: Sequence[str]) -> str:
    """With the tokens of the base in place of the new ones, the encoding is that of the base."""
    for text in texts:
        ids = (new[i].base_ids if i in new else (i,) for i in roundtrip.encode(written, text))
        if [i for run in ids for i in run] != roundtrip.encode(base, text):
            return f"new tokens do not stand for what the base writes in {text[:40]!r}"
    return ""


def _lost(base: Any, written: Any, texts: Sequence[str]) -> str:
    text = roundtrip.lost(base, written, texts)
    return f"decoding does not give {text[:40]!r} back, as it does with the base" if text else ""
